"""The scheduler's decisions, one rule a test, in a world without a bus."""

from typing import Any

import pytest

from llmos.contracts.jobs import (
    Fault,
    JobAdmitted,
    JobCancelled,
    JobCancelling,
    JobFailed,
    JobRefused,
    JobRejected,
    JobSucceeded,
)
from llmos.contracts.nodes import WorkerLost
from llmos.contracts.tasks import (
    TaskCancelled,
    TaskLost,
    TaskPlaced,
    TaskProgressed,
    TaskRefused,
    TaskRejected,
    TaskStarted,
    TaskSucceeded,
)
from llmos_scheduler.effects import DispatchWork, StopTask

GIB = 1 << 30


def test_a_job_goes_through_check_train_and_export_and_ends(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.run("j", until="succeeded")
    assert [event.kind for event in world.said(TaskPlaced)] == ["check", "train", "export"]
    assert world.said(JobSucceeded) == [JobSucceeded("j", "default", "j", 1)]


def test_each_task_gets_what_the_earlier_ones_made(world: Any) -> None:
    world.node("a")
    world.submit("j")
    seen = {}
    for _ in range(3):
        world.settle()
        (key,) = world.queue
        seen[world.queue[key][1].kind] = world.queue[key][1].inputs
        world.start(key)
        world.succeed(key)
    assert seen == {
        "check": {},
        "train": {"dataset": "sha256:d", "base": "sha256:b"},
        "export": {"dataset": "sha256:d", "base": "sha256:b", "model": "sha256:m"},
    }


def test_work_is_handed_over_only_after_the_lease_is_in_the_history(world: Any) -> None:
    world.node("a")
    world.submit("j")
    first = world.step()
    assert not [effect for effect in first if isinstance(effect, DispatchWork)]
    second = world.step()
    assert [effect.key for effect in second if isinstance(effect, DispatchWork)] == ["j-check.1"]


def test_the_higher_priority_goes_first_and_the_older_among_equals(world: Any) -> None:
    world.node("a", cpus=1)
    world.submit("first")
    world.run("first", until="training")
    for id, priority in (("old", 50), ("young", 50), ("urgent", 90)):
        world.submit(id, priority=priority)
        world.check(id)
    while world.settle().queue:
        (key,) = world.queue
        world.start(key)
        world.succeed(key)
    order = [event.job for event in world.said(TaskPlaced) if event.kind == "train"]
    assert order == ["first", "urgent", "old", "young"]


def test_a_smaller_job_may_pass_one_that_fits_nowhere(world: Any) -> None:
    world.node("a", cpus=2)
    world.submit("large", cpus=64, priority=90)
    world.submit("small", cpus=1, priority=10)
    world.check("large")
    world.run("small", until="succeeded")
    assert world.state.jobs["large"].state == "queued"


def test_gpus_are_leased_one_by_one_and_only_large_enough_ones(world: Any) -> None:
    world.node("a", cpus=8, memory=64 * GIB, gpus=2)
    for id in ("j", "k"):
        world.submit(id, gpus=1, gpu_memory="40GiB")
        world.check(id)
    world.submit("greedy", gpus=1, gpu_memory="100GiB")
    world.check("greedy").settle()
    devices = {event.job: event.devices for event in world.said(TaskPlaced) if event.kind == "train"}
    assert devices == {"j": ["a-gpu0"], "k": ["a-gpu1"]}


def test_an_export_needs_no_gpu(world: Any) -> None:
    world.node("a", gpus=1, kinds=("check", "train"))
    world.node("b", kinds=("export",))
    world.submit("j", gpus=1)
    world.run("j", until="succeeded")
    assert [event.node for event in world.said(TaskPlaced)] == ["a", "a", "b"]


def test_bad_data_is_reported_although_every_cpu_is_leased(world: Any) -> None:
    world.node("a", cpus=2)
    world.submit("long", cpus=2)
    world.run("long", until="training")
    world.submit("bad")
    world.settle()
    assert world.state.jobs["bad"].state == "checking"


def test_a_node_without_inventory_gets_no_work(world: Any) -> None:
    world.node("edge", cpus=0)
    world.submit("j")
    world.settle()
    assert world.said(TaskPlaced) == []


def test_a_rejected_check_rejects_the_job_with_every_fault(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.settle()
    faults = [Fault("data.train", "no label", 3), Fault("data.train", "no text", 9)]
    world.say(TaskRejected("j-check", "j", "default", 1, "a", faults))
    world.settle()
    assert world.said(JobRejected) == [JobRejected("j", "default", faults, "j")]
    assert world.state.live_tasks() == []


def test_a_refused_export_refuses_the_job_with_its_numbers(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.run("j", until="exporting")
    task = world.task("j")
    world.say(TaskRefused(task.id, "j", "default", task.lease, "a", ["accuracy 0.5 < 0.9"], {"accuracy": 0.5}))
    world.settle()
    assert world.said(JobRefused) == [JobRefused("j", "default", ["accuracy 0.5 < 0.9"], {"accuracy": 0.5})]


def test_a_failed_attempt_is_tried_again_later_each_time_and_elsewhere(world: Any) -> None:
    world.node("a").node("b")
    world.submit("j", attempts=3)
    nodes, waits = [], []
    for _ in range(2):
        world.settle()
        (key,) = world.queue
        nodes.append(world.queue[key][0])
        world.start(key)
        world.fail(key)
        waits.append(world.task("j").not_before - world.now)
        world.settle()
        assert world.queue == {}, "no new attempt before the back-off is over"
        world.wait(waits[-1])
    assert nodes == ["a", "b"]
    assert waits == [2.0, 4.0]
    assert [event.attempt for event in world.said(TaskPlaced)] == [1, 2, 3]


def test_what_an_ended_lease_left_in_the_queue_is_gone_before_the_next_one(world: Any) -> None:
    from llmos_scheduler.effects import Emit, WithdrawWork

    world.node("a")
    world.submit("j")
    world.settle()
    (key,) = world.queue
    world.start(key)
    world.fail(key)
    world.now += 2
    first, second = world.step()
    assert isinstance(first, WithdrawWork)
    assert (first.task, first.node, first.lease) == ("j-check", "a", 1)
    assert isinstance(second, Emit)
    assert second.id == "j-check.2.placed"


def test_a_job_fails_when_its_attempts_are_used_up(world: Any) -> None:
    world.node("a")
    world.submit("j", attempts=2)
    for _ in range(2):
        world.wait(100)
        (key,) = world.queue
        world.start(key)
        world.fail(key)
    world.settle()
    (failed,) = world.said(JobFailed)
    assert failed.problem.code == "broken"
    assert "check failed on a (attempt 2 of 2): it broke" in failed.problem.message


def test_a_failure_that_no_retry_can_help_ends_the_job_at_once(world: Any) -> None:
    world.node("a")
    world.submit("j", attempts=5)
    world.settle()
    (key,) = world.queue
    world.start(key)
    world.fail(key, retryable=False)
    world.settle()
    assert world.state.jobs["j"].state == "failed"


def test_a_task_on_a_lost_node_is_placed_again_under_a_new_lease(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.run("j", until="training")
    (old,) = world.queue
    world.start(old)
    world.node("b").lose("a").wait(20)
    (lost,) = world.said(TaskLost)
    assert (lost.lease, lost.node) == (old[1], "a")
    world.wait(3)
    (new,) = world.queue
    assert new[0] == old[0]
    assert new[1] > old[1]
    assert world.queue[new][0] == "b"
    assert world.queue[new][1].attempt == 2


def test_a_task_whose_worker_is_silent_but_goes_on_itself_is_not_lost(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.settle()
    (key,) = world.queue
    world.start(key)
    world.say(WorkerLost("a", "worker"))
    for _ in range(5):
        world.wait(9)
        world.progress(key)
    assert world.said(TaskLost) == []


def test_a_task_without_any_sign_of_life_for_a_minute_is_lost(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.settle()
    (key,) = world.queue
    world.start(key)
    world.wait(59)
    assert world.said(TaskLost) == []
    world.wait(1)
    assert len(world.said(TaskLost)) == 1
    assert key in world.stops, "whoever still works under the lease is told to stop"


def test_a_lease_that_no_worker_took_up_costs_no_attempt(world: Any) -> None:
    world.node("a")
    world.submit("j", attempts=1)
    world.wait(0)
    for _ in range(3):
        world.wait(60)
        assert world.queue == {}, "what was lost is taken out of the queue"
        world.wait(60)
    assert [event.attempt for event in world.said(TaskPlaced)] == [1, 1, 1, 1]
    world.run("j", until="succeeded")


def test_silence_before_the_scheduler_listened_does_not_count(world: Any) -> None:
    from llmos_scheduler.brain import Brain
    from llmos_scheduler.core import decide

    world.node("a")
    world.submit("j")
    world.settle()
    world.now += 500

    def lost(since: float) -> list[Any]:
        return [
            e for e in decide(world.state, Brain(world.state), world.now, since=since) if "lost" in getattr(e, "id", "")
        ]

    assert not lost(since=world.now)
    assert lost(since=world.now - 60)


def test_what_a_dead_lease_says_changes_nothing_and_it_is_told_to_stop(world: Any) -> None:
    world.node("a").node("b")
    world.submit("j")
    world.settle()
    (old,) = world.queue
    world.start(old)
    node, work = world.taken[old]
    world.wait(60).wait(3)
    before = world.snapshot()
    world.stops.clear()
    for event in (
        TaskStarted(work.task, "j", "default", "check", work.lease, node),
        TaskProgressed(work.task, "j", "default", "check", work.lease, node, "check"),
    ):
        world.say(event)
    assert world.snapshot() == before
    world.settle()
    assert world.stops == {old}
    world.say(TaskSucceeded(work.task, "j", "default", "check", work.lease, node, {"dataset": "sha256:x"}))
    assert world.snapshot() == before
    world.stops.clear()
    world.wait(3)
    assert world.stops == set(), "it has ended: nobody is left to be stopped"


def test_cancelling_a_waiting_job_ends_it_at_once(world: Any) -> None:
    world.submit("j")
    world.say(JobCancelling("j", "default"))
    world.settle()
    assert world.said(JobCancelled) == [JobCancelled("j", "default")]


def test_cancelling_stops_running_work_and_waits_for_it(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.settle()
    (key,) = world.queue
    world.start(key)
    world.say(JobCancelling("j", "default"))
    world.settle()
    assert world.state.jobs["j"].state == "cancelling"
    assert world.stops == {key}
    for _ in range(3):
        world.stops.clear()
        world.wait(2)
        assert world.stops == {key}, "asked again until it has stopped"
    world.obey(key)
    world.settle()
    assert world.state.jobs["j"].state == "cancelled"
    assert world.state.live_tasks() == []


def test_cancelling_takes_back_what_no_worker_has_taken_up(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.settle()
    world.say(JobCancelling("j", "default"))
    world.settle()
    assert world.queue == {}
    assert world.state.jobs["j"].state == "cancelling", "a worker may have it in hand already"
    world.wait(1)
    assert world.state.jobs["j"].state == "cancelled"


def test_a_worker_that_does_not_stop_is_given_up_after_a_minute(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.settle()
    (key,) = world.queue
    world.start(key)
    world.say(JobCancelling("j", "default"))
    for _ in range(8):
        world.progress(key)
        world.wait(9)
    assert world.state.jobs["j"].state == "cancelled"
    world.stops.clear()
    world.progress(key)
    world.wait(2)
    assert world.stops == {key}, "it is still told to stop"


def test_a_task_that_finishes_while_it_is_cancelled_does_not_save_the_job(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.settle()
    (key,) = world.queue
    world.start(key)
    world.say(JobCancelling("j", "default"))
    world.succeed(key)
    world.settle()
    assert world.state.jobs["j"].state == "cancelled"


def test_a_worker_that_gives_a_task_back_costs_no_attempt(world: Any) -> None:
    world.node("a")
    world.submit("j", attempts=1)
    world.settle()
    (key,) = world.queue
    world.start(key)
    world.obey(key)
    world.wait(2)
    assert world.said(TaskPlaced)[-1].attempt == 1
    world.run("j", until="succeeded")


def test_a_passed_deadline_stops_the_work_and_fails_the_job(world: Any) -> None:
    world.node("a")
    world.submit("j", deadline=world.now + 30)
    world.settle()
    (key,) = world.queue
    world.start(key)
    world.wait(29)
    assert world.stops == set()
    world.wait(1)
    assert world.stops == {key}
    world.obey(key)
    world.settle()
    (failed,) = world.said(JobFailed)
    assert failed.problem.code == "deadline"


def test_a_job_that_finished_by_its_deadline_has_succeeded(world: Any) -> None:
    world.node("a")
    world.submit("j", deadline=world.now + 30)
    world.run("j", until="exporting")
    world.now += 29.9
    (key,) = world.queue
    world.start(key)
    world.succeed(key)
    world.now += 1
    world.settle()
    assert world.state.jobs["j"].state == "succeeded"


def test_a_second_admission_of_a_job_changes_nothing(world: Any, spec_of: Any) -> None:
    world.node("a")
    world.submit("j")
    world.settle()
    before = world.snapshot()
    world.say(JobAdmitted("j", spec_of("other"), world.now))
    world.say(JobRejected("j", "somebody-else", [Fault("", "the id is taken")]))
    assert world.snapshot() == before


def test_every_fact_names_the_one_that_led_to_it_and_the_trace_of_its_job(world: Any) -> None:
    from llmos_scheduler.effects import Emit

    world.node("a")
    job = world.submit("j")
    (placed,) = [effect for effect in world.step() if isinstance(effect, Emit)]
    assert (placed.id, placed.cause, placed.traceparent) == ("j-check.1.placed", "j.admitted", job.traceparent)


@pytest.mark.parametrize("kind", ["check", "train", "export"])
def test_a_task_is_dispatched_again_until_it_has_started(world: Any, kind: str) -> None:
    world.node("a")
    world.submit("j")
    while world.task("j").kind != kind:
        world.settle()
        (key,) = world.queue
        world.start(key)
        world.succeed(key)
    world.settle()
    (key,) = world.queue
    world.now += 15
    assert [effect.key for effect in world.step() if isinstance(effect, DispatchWork)] == [f"{key[0]}.{key[1]}"]
    world.start(key)
    world.now += 15
    assert not [effect for effect in world.step() if isinstance(effect, DispatchWork | StopTask)]


def test_a_cancelled_worker_is_not_mistaken_for_a_finished_one(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.settle()
    (key,) = world.queue
    world.start(key)
    world.say(TaskCancelled("j-check", "j", "default", "check", key[1] + 7, "a"))
    assert world.task("j").state == "running"
