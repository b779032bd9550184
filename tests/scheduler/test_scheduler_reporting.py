"""What is counted and timed of the facts that the scheduler hears."""

from typing import Any

from llmos.contracts.jobs import Fault, JobRejected
from llmos.contracts.queues import QueuesChanged, QueueSettings
from llmos.contracts.tasks import TaskPreempting
from llmos.telemetry import METRICS
from llmos_scheduler.reporting import Reporting


class Meters:
    """Remembers what was counted and recorded."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def count(self, name: str, value: int = 1, **attributes: str) -> None:
        assert name in METRICS
        self.seen.append((name, value, *attributes.values()))

    def record(self, name: str, value: float, **attributes: str) -> None:
        assert name in METRICS
        self.seen.append((name, value, *attributes.values()))


class Silence:
    def info(self, _what: str, **_fields: Any) -> None: ...


def report(world: Any) -> list[tuple[Any, ...]]:
    """Play the world's log again and report it."""
    from llmos_scheduler.records import State
    from llmos_scheduler.state import apply

    meters, state = Meters(), State()
    reporting = Reporting(meters, Silence())  # type: ignore[arg-type]
    for event, at, id in world.log:
        reporting.on_event(apply(state, event, at, id), event, at)
    return meters.seen


def test_a_job_is_counted_and_timed_from_submission_to_its_end(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.now += 4
    for _ in range(3):
        world.settle()
        (key,) = world.queue
        world.start(key)
        world.now += 10
        world.succeed(key)
    world.settle()
    assert report(world) == [
        ("llmos.jobs.submitted", 1, "admitted"),
        ("llmos.task.queue_wait", 4.0, "check"),
        ("llmos.task.duration", 10.0, "check", "succeeded"),
        ("llmos.task.queue_wait", 0.0, "train"),
        ("llmos.task.duration", 10.0, "train", "succeeded"),
        ("llmos.task.queue_wait", 0.0, "export"),
        ("llmos.task.duration", 10.0, "export", "succeeded"),
        ("llmos.jobs.ended", 1, "succeeded"),
        ("llmos.job.duration", 34.0, "succeeded"),
    ]


def test_a_back_off_is_no_queue_wait(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.settle()
    (key,) = world.queue
    world.start(key)
    world.fail(key)
    world.wait(2)
    assert [seen for seen in report(world) if "wait" in seen[0]] == [("llmos.task.queue_wait", 0.0, "check")] * 2


def test_a_submission_that_was_turned_away_is_counted_as_rejected(world: Any) -> None:
    world.say(JobRejected("j", "acme", [Fault("name", "is missing")]))
    assert report(world) == [("llmos.jobs.submitted", 1, "rejected")]


def test_a_preemption_is_counted_by_for_whom_it_was(world: Any) -> None:
    where: dict[str, Any] = {"task": "j-train", "job": "j", "tenant": "a", "kind": "train", "lease": 1, "node": "a"}
    for by in ("job-9", "deployment/reviews", ""):
        world.say(TaskPreempting(**where, by=by))
    world.say(QueuesChanged([QueueSettings("lab")], "ann"))
    assert report(world) == [
        ("llmos.task.preempted", 1, "train", "job"),
        ("llmos.task.preempted", 1, "train", "deployment"),
        ("llmos.task.preempted", 1, "train", "nobody"),
    ]
