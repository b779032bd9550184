"""`explain` on a shared cluster: each kind of obstacle is named, with who holds it, until when, and what helps."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.contracts.jobs import Explanation, JobAdmitted, JobSpec, ResourceRequest
from llmos.contracts.nodes import NodeCordoned
from llmos.contracts.queues import QueuesChanged, QueueSettings, ReservationMade
from llmos.contracts.tasks import TaskProgressed
from llmos_scheduler.explain import explain, owners
from llmos_scheduler.foresight import foresee
from llmos_scheduler.placement import by_node

GIB = 1 << 30


@pytest.fixture
def shared(world: Any) -> Any:
    """Two nodes of four GPUs each, for two queues."""
    for name in ("gpu-1", "gpu-2"):
        world.node(name, cpus=64, memory=512 * GIB, gpus=4)
    world.say(QueuesChanged([QueueSettings("students", quota=4, limit=6), QueueSettings("research", quota=4)]))
    return world.settle()


def run(world: Any, id: str, **fields: Any) -> None:
    """The job trains, if it can."""
    world.submit(id, **fields)
    world.check(id).settle()
    for key in [key for key, (_, work) in world.queue.items() if work.job == id]:
        world.start(key)


def why(world: Any, job: str) -> Explanation:
    return explain(world.state, world.brain, world.state.jobs[job], world.now)


def kinds(answer: Explanation) -> set[str]:
    return {obstacle.kind for obstacle in answer.waits_for}


def fill(world: Any) -> None:
    """Students hold one node, research the other; it is known when two of them end."""
    for number in range(4):
        run(world, f"s{number}", gpus=1, queue="students", duration=3600.0)
    run(world, "r0", gpus=2, queue="research", duration=1800.0)
    run(world, "r1", gpus=2, queue="research")


def test_hardware_that_others_hold_is_named_by_class_with_its_holders_and_their_end(shared: Any) -> None:
    fill(shared)
    run(shared, "j", gpus=2, queue="students")
    answer = why(shared, "j")
    hardware = next(obstacle for obstacle in answer.waits_for if obstacle.kind == "resources")
    assert (hardware.node_class, hardware.nodes) == ("4 x H100", 2)
    assert set(hardware.held_by) == {"s0", "s1", "s2", "s3", "r0", "r1"}
    assert answer.earliest_start == shared.now + 1800
    assert {"r0 ends", "r1 ends"} <= set(answer.would_run)
    assert answer.reasons[1] == "gpu-2: needs 2 GPUs, 0 of 4 are free; held by r0, r1"


def test_a_quota_that_is_used_up_is_named_with_the_jobs_that_use_it(shared: Any) -> None:
    fill(shared)
    run(shared, "j", gpus=2, queue="students")
    answer = why(shared, "j")
    quota = next(obstacle for obstacle in answer.waits_for if obstacle.kind == "quota")
    assert "holds 4 GPUs of its quota of 4" in quota.message
    assert quota.held_by == ["s0", "s1", "s2", "s3"]
    assert "Raise the queue's quota: llmos queues apply." in answer.remedies


def test_a_limit_is_named_even_when_hardware_is_free(shared: Any) -> None:
    for number in range(6):
        run(shared, f"s{number}", gpus=1, queue="students")
    run(shared, "j", gpus=1, queue="students")
    answer = why(shared, "j")
    assert kinds(answer) == {"limit"}
    assert answer.summary == (
        "Train needs 1 cpus, 1GiB, 1 GPU and waits: queue 'students' holds 6 GPUs of its limit of 6."
    )
    assert answer.held_by == [f"s{number}" for number in range(6)]
    assert answer.earliest_start is None
    (key,) = (key for key in shared.taken if key[0] == "s3-train")
    shared.say(TaskProgressed("s3-train", "s3", "default", "train", key[1], "gpu-1", "train", 3, 12, eta=90.0))
    assert why(shared, "j").earliest_start == shared.now + 90
    assert "s3 ends" in why(shared, "j").would_run
    run(shared, "k", gpus=1, queue="students")
    assert (why(shared, "k").ahead, why(shared, "k").would_run, why(shared, "k").earliest_start) == (["j"], [], None)


def test_reserved_and_cordoned_nodes_are_told_apart(shared: Any) -> None:
    shared.say(NodeCordoned("gpu-1", False, "ann", "fan"))
    shared.say(ReservationMade("exam", ["gpu-2"], "students/exam"))
    run(shared, "j", gpus=1, queue="research")
    answer = why(shared, "j")
    assert kinds(answer) >= {"cordon", "reservation"}
    assert "Let a node take work again: llmos uncordon gpu-1." in answer.remedies
    assert "Wait for the reservation's end, or end it (exam): llmos unreserve." in answer.remedies
    assert answer.reasons == ["gpu-1: is cordoned: fan", "gpu-2: is reserved (exam)"]
    assert next(one.message for one in answer.waits_for if one.kind == "reservation").startswith("1 node is reserved")


def test_a_reservation_for_a_tenant_of_a_queue_is_for_nobody_else(world: Any, spec_of: Callable[..., JobSpec]) -> None:
    world.node("a", cpus=8, gpus=2)
    world.say(ReservationMade("exam", ["a"], "students", "ann"))
    world.settle()

    def starts(queue: str, tenant: str) -> bool:
        spec = spec_of(queue=queue, tenant=tenant, gpus=1)
        return bool(foresee(world.state, world.brain, spec, world.now).starts_on)

    assert starts("students/late", "ann")
    assert not starts("students", "bob")
    assert not starts("research", "ann")


def test_a_gang_says_how_many_nodes_it_needs_and_how_many_have_room(
    shared: Any, spec_of: Callable[..., JobSpec]
) -> None:
    run(shared, "s0", gpus=1, queue="students")
    gang = ResourceRequest(cpus=1.0, memory="1GiB", gpus=4, nodes=2)
    shared.state.nodes["gpu-1"].workers["worker"].kinds.append("gang")
    spec = msgspec.structs.replace(spec_of(queue="research"), resources=gang)
    answer = foresee(shared.state, shared.brain, spec, shared.now)
    assert answer.starts_on == []
    assert "nodes" in answer.summary


def test_work_that_would_be_preempted_for_it_is_named(world: Any, spec_of: Callable[..., JobSpec]) -> None:
    world.node("a", gpus=2)
    world.say(QueuesChanged([QueueSettings("q", "priority-preempt")]))
    run(world, "low", gpus=2, queue="q", priority=10)
    world.now += 61  # a minute of running is due to whoever started
    world.progress(next(iter(world.taken)))
    world.settle()
    answer = foresee(world.state, world.brain, spec_of(gpus=1, queue="q", priority=90), world.now)
    assert (answer.preempts, answer.summary) == (["low"], "Train would start as soon as low has saved its work.")
    least = foresee(world.state, world.brain, spec_of(gpus=1, queue="q", priority=5), world.now)
    assert any(offer.startswith("priority ") for offer in least.would_run)
    run(world, "high", gpus=2, queue="q", priority=90)
    assert why(world, "high").preempts == ["low"]
    assert why(world, "low").summary.startswith("Train on a saves its work and waits again: high has a higher priority")


def test_the_word_of_a_worker_tells_when_hardware_comes_free(world: Any) -> None:
    world.node("a", gpus=1)
    run(world, "first", gpus=1)
    (key,) = world.taken
    world.say(TaskProgressed("first-train", "first", "default", "train", key[1], "a", "train", 3, 12, eta=240.0))
    run(world, "next", gpus=1)
    assert why(world, "next").earliest_start == world.now + 240
    run(world, "last", gpus=1)
    assert why(world, "last").ahead == ["next"]
    assert why(world, "last").earliest_start is None


def test_a_model_or_a_label_that_nobody_has_is_told_with_what_there_is(
    shared: Any, spec_of: Callable[..., JobSpec]
) -> None:
    wants = ResourceRequest(cpus=1.0, memory="1GiB", gpus=1, gpu_models=["A100"])
    answer = foresee(shared.state, shared.brain, msgspec.structs.replace(spec_of(), resources=wants), shared.now)
    assert answer.summary == "Train needs 1 cpus, 1GiB, 1 A100, and no node is that large."
    assert "Allow another GPU model: there is H100." in answer.remedies
    assert (answer.earliest_start, answer.would_run) == (None, [])
    wants = ResourceRequest(cpus=1.0, memory="1GiB", labels={"zone": "b"})
    answer = foresee(shared.state, shared.brain, msgspec.structs.replace(spec_of(), resources=wants), shared.now)
    assert "Ask for another label: no node has zone=b." in answer.remedies
    assert answer.reasons[0] == "gpu-1: has no label zone=b"


def test_many_nodes_are_told_by_class(world: Any) -> None:
    for number in range(20):
        world.node(f"n{number:02}", cpus=1 + number % 2)
    world.node("big", cpus=64, gpus=2)
    world.submit("j", cpus=100, memory=GIB)
    world.check("j").settle()
    told, open_nodes = by_node(world.state, "train", world.task("j").request)
    assert open_nodes == []
    assert told == [
        "1 node (2 x H100): the best, big, needs 100 cpus, 64 of 64 are free",
        "20 nodes (no GPUs): the best, n19, needs 100 cpus, 2 of 2 are free",
    ]


def test_works_of_the_planner_are_told_as_jobs_and_deployments() -> None:
    works = ["job-1-train", "deployment/reviews@n1", "deployment/reviews/0", "a-b-export", "job-1-train"]
    assert owners(works) == ["job-1", "deployment/reviews", "a-b"]


JOBS = st.lists(
    st.tuples(
        st.sampled_from(["lab", "lab/vision", "students"]),
        st.integers(0, 3),  # GPUs
        st.sampled_from([0, 50, 100]),  # priority
        st.sampled_from([1000, 1000, 500]),  # milli
        st.sampled_from([None, 60.0, 3600.0]),  # duration
        st.integers(1, 2),  # nodes
    ),
    max_size=12,
)


@given(
    jobs=JOBS,
    gpus=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    policy=st.sampled_from(["", "priority-preempt", "srsf", "las", "fifo"]),
    quota=st.sampled_from([None, 1, 3]),
    limit=st.sampled_from([None, 3]),
    cordoned=st.booleans(),
    reserved=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_job_that_waits_is_told_why_and_what_it_waits_for(
    make_world: Callable[[], Any],
    spec_of: Callable[..., JobSpec],
    jobs: list[tuple[str, int, int, int, float | None, int]],
    gpus: list[int],
    policy: str,
    quota: int | None,
    limit: int | None,
    cordoned: bool,
    reserved: bool,
) -> None:
    world = make_world()
    for number, count in enumerate(gpus):
        world.node(f"n{number}", cpus=4, gpus=count, kinds=("check", "train", "export", "gang"))
    world.say(QueuesChanged([QueueSettings("lab", policy, 1.0, quota, limit)]))
    if reserved:
        world.say(ReservationMade("kept", ["n0"], "lab"))
    for number, (queue, count, priority, milli, duration, nodes) in enumerate(jobs):
        share = milli if (count, nodes) == (1, 1) else 1000
        wants = ResourceRequest(cpus=1.0, memory="1GiB", gpus=count, gpu_milli=share, nodes=nodes)
        spec = spec_of(f"j{number}", queue=queue, priority=priority, duration=duration)
        world.say(JobAdmitted(f"j{number}", msgspec.structs.replace(spec, resources=wants), world.now))
        world.check(f"j{number}")
    if cordoned:
        world.say(NodeCordoned("n0"))
    world.settle()
    for job in world.state.living_jobs():
        answer = explain(world.state, world.brain, job, world.now)
        assert answer.summary
        if job.state != "queued":
            continue
        assert answer.waits_for or answer.preempts, answer
        assert all(obstacle.message for obstacle in answer.waits_for)
        assert set(answer.held_by) | set(answer.ahead) <= set(world.state.jobs)
        assert job.id not in {*answer.held_by, *answer.ahead, *answer.preempts}
        assert answer.earliest_start is None or answer.earliest_start >= world.now
