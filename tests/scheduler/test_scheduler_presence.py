"""Heartbeats become facts: who joined, who is lost, and what must not be concluded from silence."""

from typing import Any

from llmos.contracts.nodes import Heartbeat, NodeLost, WorkerJoined, WorkerLost
from llmos_scheduler.presence import Beat, hear, notice


class Ears:
    """Heartbeats as the scheduler hears them."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.beats: dict[str, Beat] = {}
        self.since = world.now

    def hear(self, node: str, service: str, *kinds: str, retired: bool = False) -> None:
        beat = Heartbeat(node, service, "i", 0.0, list(kinds))
        self.beats[f"{node}.{service}"] = Beat(beat, self.world.now, retired)

    def notice(self) -> list[Any]:
        facts = list(notice(self.world.state, self.beats, self.world.now, since=self.since))
        for fact in facts:
            assert fact.id not in self.world.ids
            self.world.say(fact.event, fact.id)
        return [fact.event for fact in facts]


def test_a_worker_joins_once(world: Any) -> None:
    ears = Ears(world)
    ears.hear("a", "trainer", "check", "train")
    assert ears.notice() == [WorkerJoined("a", "trainer", ["check", "train"])]
    ears.hear("a", "trainer", "check", "train")
    assert ears.notice() == []
    assert world.state.nodes["a"].runs("train")


def test_a_worker_that_takes_other_work_than_before_joins_again(world: Any) -> None:
    ears = Ears(world)
    ears.hear("a", "trainer", "check")
    ears.notice()
    ears.hear("a", "trainer", "check", "train")
    assert ears.notice() == [WorkerJoined("a", "trainer", ["check", "train"])]


def test_a_silent_worker_is_lost_after_twenty_seconds_and_its_node_with_the_last_one(world: Any) -> None:
    ears = Ears(world)
    ears.hear("a", "trainer", "train")
    ears.hear("a", "exporter", "export")
    ears.notice()
    world.now += 15
    ears.hear("a", "exporter", "export")
    assert ears.notice() == []
    world.now += 5
    assert ears.notice() == [WorkerLost("a", "trainer")]
    world.now += 15
    assert ears.notice() == [WorkerLost("a", "exporter"), NodeLost("a")]
    assert ears.notice() == []


def test_a_worker_that_comes_back_joins_again_under_a_new_id(world: Any) -> None:
    ears = Ears(world)
    for _ in range(3):
        ears.hear("a", "trainer", "train")
        assert ears.notice() == [WorkerJoined("a", "trainer", ["train"])]
        world.now += 20
        assert ears.notice() == [WorkerLost("a", "trainer"), NodeLost("a")]


def test_a_service_that_took_its_heartbeat_back_is_lost_at_once(world: Any) -> None:
    ears = Ears(world)
    ears.hear("a", "trainer", "train")
    ears.notice()
    ears.hear("a", "trainer", "train", retired=True)
    assert ears.notice() == [WorkerLost("a", "trainer"), NodeLost("a")]


def test_after_a_start_nobody_is_lost_before_the_scheduler_has_listened_for_a_while(world: Any) -> None:
    world.node("a")
    ears = Ears(world)
    world.now += 19.9
    assert ears.notice() == []
    world.now += 0.2
    assert ears.notice() == [WorkerLost("a", "worker"), NodeLost("a")]


def test_what_a_dead_service_left_in_the_bucket_makes_nobody_alive(world: Any) -> None:
    for age, counts in ((0.0, True), (19.0, True), (20.0, False), (29.0, False), (-3600.0, True)):
        beat = hear(None, Heartbeat("a", "trainer", "i", world.now - age, ["train"]), world.now)
        assert bool([*notice(world.state, {"a.trainer": beat}, world.now, since=world.now)]) == counts


def test_a_service_whose_clock_is_an_hour_late_joins_with_its_second_heartbeat(world: Any) -> None:
    late = Heartbeat("a", "trainer", "i", world.now - 3600, ["train"])
    first = hear(None, late, world.now)
    assert not [*notice(world.state, {"a.trainer": first}, world.now, since=world.now)]
    second = hear(first, late, world.now + 5)
    assert [*notice(world.state, {"a.trainer": second}, world.now + 5, since=world.now)]


def test_a_node_whose_loss_was_cut_short_by_a_crash_is_still_lost(world: Any) -> None:
    world.node("a")
    world.say(WorkerLost("a", "worker"))
    ears = Ears(world)
    assert ears.notice() == [NodeLost("a")]
