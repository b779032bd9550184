"""The brain is a cache: what it wants again and when, and that one that follows the state decides as a new one does."""

from llmos_scheduler.agenda import Agenda
from llmos_scheduler.effects import StopTask
from llmos_scheduler.wanted import Wanted


def test_a_command_is_repeated_at_its_own_pace_and_forgotten_when_nobody_wants_it() -> None:
    wanted, stop = Wanted(), StopTask("t", 1, "")
    wanted.set("j", [stop])
    assert wanted.due(0.0) == [stop]
    assert wanted.due(1.9) == []
    wanted.set("j", [stop])
    assert wanted.due(1.9) == [], "who wants it still does not want it sooner"
    assert wanted.due(2.0) == [stop]
    wanted.set("j", [])
    assert wanted.due(99.0) == []
    wanted.set("j", [stop])
    assert wanted.due(99.0) == [stop]


def test_everything_wanted_is_due_when_something_failed() -> None:
    wanted, stops = Wanted(), [StopTask(name, 1, "") for name in "abc"]
    for stop in stops:
        wanted.set(stop.task, [stop])
    assert wanted.due(0.0) == stops
    wanted.ask_again()
    assert wanted.due(0.1) == stops
    assert wanted.due(2.0) == []
    assert wanted.due(2.1) == stops


def test_an_agenda_names_each_once_at_its_newest_time() -> None:
    agenda = Agenda()
    agenda.set("a", 5.0)
    agenda.set("b", 3.0)
    agenda.set("a", 2.0)
    agenda.set("b")
    assert agenda.due(1.9) == []
    assert agenda.due(9.0) == ["a"]
    assert agenda.due(9.0) == []
