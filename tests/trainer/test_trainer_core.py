"""What the trainer decides about assignments and about children that ended."""

import pytest

from llmos.contracts.jobs import Fault
from llmos.contracts.tasks import TaskStopRequested
from llmos.errors import Problem
from llmos_trainer.core import (
    CRASHES,
    Effect,
    HandBack,
    Intent,
    LetGo,
    SayCancelled,
    SayFailed,
    SayRejected,
    SaySucceeded,
    StartAgain,
    decide_assigned,
    decide_ended,
    intent_of,
    newest_stop,
    overrides,
)
from llmos_trainer.orders import End, Failed, Faulted, Finished, Stopped

DONE = Finished({"model": "/m"}, {"loss": 1.0})
WRONG = Failed(Problem("diverged", "no"), retryable=False)


@pytest.mark.parametrize(
    ("running", "stopped", "decision"),
    [
        (None, None, "start"),
        (5, None, "join"),
        (4, None, "replace"),
        (6, None, "let go"),
        (None, 5, "stop"),
        (None, 4, "start"),
        (None, 6, "let go"),
        (4, 4, "replace"),
        (4, 5, "stop"),
        (5, 5, "join"),
    ],
)
def test_an_assignment_under_lease_5(running: int | None, stopped: int | None, decision: str) -> None:
    assert decide_assigned(5, running, stopped) == decision


@pytest.mark.parametrize(
    ("end", "intent", "effect"),
    [
        (DONE, None, SaySucceeded({"model": "/m"}, {"loss": 1.0})),
        (DONE, "drain", SaySucceeded({"model": "/m"}, {"loss": 1.0})),
        (DONE, "cancel", SayCancelled()),
        (DONE, "superseded", LetGo()),
        (WRONG, None, SayFailed(WRONG.problem, retryable=False)),
        (WRONG, "cancel", SayCancelled()),
        (Faulted([Fault("a", "b")]), None, SayRejected([Fault("a", "b")])),
        (Stopped(3), "drain", HandBack()),
        (Stopped(3), "cancel", SayCancelled()),
        (None, "drain", HandBack()),
        (None, "cancel", SayCancelled()),
        (DONE, "preempt", SaySucceeded({"model": "/m"}, {"loss": 1.0})),
        (WRONG, "preempt", SayFailed(WRONG.problem, retryable=False)),
        (Stopped(3), "preempt", SayCancelled()),
        (None, "preempt", SayCancelled()),
        (None, None, StartAgain()),
    ],
)
def test_what_a_child_was_told_counts_more_than_how_it_ended(
    end: End | None, intent: Intent | None, effect: Effect
) -> None:
    assert decide_ended(end, "killed by SIGKILL", intent, 0) == effect


def test_a_child_that_dies_is_started_again_twice_then_the_attempt_fails_with_the_signal_named() -> None:
    effects = [decide_ended(None, "killed by SIGKILL", None, crashes) for crashes in range(CRASHES + 1)]
    *again, last = effects
    assert again == [StartAgain()] * 2
    assert isinstance(last, SayFailed)
    assert last.retryable
    assert "3 times" in last.problem.message and "SIGKILL" in last.problem.message
    assert "resources.memory" in last.problem.remedy


def test_a_cancelled_run_stays_cancelled_when_the_service_stops() -> None:
    assert not overrides("drain", "cancel")
    assert overrides("cancel", "drain")
    assert overrides("superseded", "cancel")
    assert overrides("drain", None)
    assert not overrides("cancel", "cancel")


def test_a_preempted_run_says_so_when_the_service_stops_as_well_and_is_cancelled_when_its_job_is() -> None:
    assert overrides("preempt", "drain")
    assert not overrides("drain", "preempt")
    assert overrides("cancel", "preempt")
    assert not overrides("preempt", "cancel")


def test_the_stop_request_that_counts_is_the_newest_lease_s_and_saves_nothing_if_any_said_so() -> None:
    save, drop, newer = TaskStopRequested("t", 5, checkpoint=True), TaskStopRequested("t", 5), TaskStopRequested("t", 6)
    assert newest_stop(None, save) is save
    assert newest_stop(save, drop) is newest_stop(drop, save) is drop
    assert newest_stop(newer, save) is newest_stop(save, newer) is newer
    assert [intent_of(request) for request in (save, drop)] == ["preempt", "cancel"]
