"""Hardware that is shared: preemption, gangs, shares of GPUs, models and labels, MIG slices, cordons, reservations."""

from typing import Any

from llmos.contracts.jobs import JobCancelling
from llmos.contracts.nodes import Gpu, Inventory, NodeCordoned, NodeInventoried, NodeUncordoned, WorkerJoined
from llmos.contracts.queues import QueuesChanged, QueueSettings, ReservationEnded, ReservationMade
from llmos.contracts.tasks import TaskCancelled, TaskCheckpointed, TaskFailed, TaskLost, TaskPlaced, TaskPreempting
from llmos.errors import Problem

GIB = 1 << 30
PREEMPTS = QueuesChanged([QueueSettings("default", "priority-preempt")])


def training(world: Any, id: str, **wants: Any) -> tuple[str, int]:
    """A job whose training has begun; its key."""
    world.submit(id, **wants)
    world.check(id).settle()
    (key,) = (key for key in world.queue if key[0] == f"{id}-train")
    world.start(key)
    return key  # type: ignore[no-any-return]


def work_for(world: Any, seconds: float, *keys: tuple[str, int]) -> None:
    """Time passes in which these give signs of life."""
    for _ in range(2):
        world.now += seconds / 2
        for key in keys:
            world.progress(key)


def where(world: Any, job: str) -> list[str]:
    """Where the job's training was placed, one after the other."""
    return [event.node for event in world.said(TaskPlaced) if event.task == f"{job}-train"]


# --- preemption ---


def preempted(world: Any) -> tuple[str, int]:
    """A training that an urgent one pushes aside on the only GPU."""
    world.node("a", cpus=8, memory=16 * GIB, gpus=1)
    world.say(PREEMPTS)
    key = training(world, "low", gpus=1, priority=10)
    work_for(world, 100, key)
    world.submit("high", gpus=1, priority=90)
    world.check("high").settle()
    return key


def test_preempted_work_saves_its_state_and_waits_in_its_old_place_at_no_cost(world: Any) -> None:
    key = preempted(world)
    (asked,) = world.said(TaskPreempting)
    assert (asked.task, asked.lease, asked.by, asked.reason) == (
        "low-train",
        key[1],
        "high",
        "high has a higher priority",
    )
    assert world.saves == {key}
    assert where(world, "high") == [], "the GPU is not free yet"
    world.obey(key)
    world.settle()
    task = world.task("low")
    assert (task.state, task.preemptions, task.failures, task.not_before) == ("waiting", 1, 0, world.now)
    assert where(world, "high") == ["a"]
    world.run("high", until="succeeded")
    world.settle()
    assert where(world, "low") == ["a", "a"], "no back-off"
    assert world.said(TaskPlaced)[-1].attempt == 1
    assert task.done == 100.0, "what the checkpoint holds"


def test_the_room_that_was_made_is_kept_for_whom_it_was_made(world: Any) -> None:
    key = preempted(world)
    world.submit("thief", gpus=1, priority=80)
    world.check("thief").settle()
    world.obey(key)
    world.settle()
    assert where(world, "high") == ["a"]
    assert where(world, "thief") == []


def test_preempted_work_that_does_not_stop_is_given_up_after_two_minutes_at_no_cost(world: Any) -> None:
    key = preempted(world)
    for _ in range(11):
        world.progress(key)
        world.wait(10)
    assert world.said(TaskLost) == []
    world.progress(key)
    world.wait(10)
    assert [event.task for event in world.said(TaskLost)] == ["low-train"]
    assert world.task("low").failures == 0
    assert where(world, "high") == ["a"]


def test_preempted_work_that_no_worker_took_up_is_taken_back(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB, gpus=1)
    world.submit("j", gpus=1)
    world.check("j").settle()
    world.say(NodeCordoned("a", drain=True))
    world.settle()
    assert world.queue == {}
    world.wait(1)
    (lost,) = world.said(TaskLost)
    assert lost.reason == "a is drained, and it had not started"
    world.node("b", cpus=8, memory=16 * GIB, gpus=1).wait(2)
    assert where(world, "j") == ["a", "b"]


def test_work_that_finished_while_it_was_asked_to_stop_has_succeeded(world: Any) -> None:
    key = preempted(world)
    world.succeed(key)
    world.settle()
    assert world.task("low").kind == "export"
    assert where(world, "high") == ["a"]


def test_a_cancelled_job_is_told_to_stop_for_good_although_it_was_asked_to_save(world: Any) -> None:
    key = preempted(world)
    world.saves.clear()
    world.say(JobCancelling("low", "default"))
    world.settle()
    assert key in world.stops
    assert world.saves == set()
    world.obey(key)
    world.settle()
    assert world.state.jobs["low"].state == "cancelled"


def test_what_a_preempted_lease_says_later_changes_nothing(world: Any) -> None:
    key = preempted(world)
    node, work = world.taken[key]
    world.obey(key)
    world.settle()
    before = world.snapshot()
    world.say(TaskPreempting(work.task, work.job, work.tenant, work.kind, work.lease, node, "high"))
    world.say(TaskCheckpointed(work.task, work.job, work.tenant, work.lease, 9, "sha256:late"))
    world.say(TaskCancelled(work.task, work.job, work.tenant, work.kind, work.lease, node))
    assert world.snapshot() == before


def test_work_that_is_not_preemptible_keeps_its_lease(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB, gpus=1)
    world.say(PREEMPTS)
    training(world, "low", gpus=1, priority=10, preemptible=False)
    world.submit("high", gpus=1, priority=90)
    world.check("high").wait(100)
    assert world.said(TaskPreempting) == []


def test_a_queue_takes_back_what_it_is_guaranteed(world: Any) -> None:
    world.node("a", cpus=16, memory=16 * GIB, gpus=2)
    world.say(QueuesChanged([QueueSettings("lab", quota=1)]))
    keys = [training(world, f"j{number}", gpus=1) for number in range(2)]
    work_for(world, 100, *keys)
    world.submit("mine", gpus=1, queue="lab/vision")
    world.check("mine").settle()
    (asked,) = world.said(TaskPreempting)
    assert asked.reason == "mine takes back what its queue is guaranteed"
    world.obey(next(key for key in keys if key[0] == asked.task))
    world.settle()
    assert where(world, "mine") == ["a"]


# --- gangs ---


def gang(world: Any, nodes: int = 2) -> tuple[str, int]:
    for name in "abc"[:nodes]:
        world.node(name, cpus=8, memory=16 * GIB, gpus=2)
    return training(world, "j", gpus=2, nodes=2)


def test_every_member_of_a_gang_gets_its_own_assignment(world: Any) -> None:
    key = gang(world)
    (placed,) = (event for event in world.said(TaskPlaced) if event.kind == "train")
    assert [(member.node, member.devices) for member in placed.members] == [
        ("a", ["a-gpu0", "a-gpu1"]),
        ("b", ["b-gpu0", "b-gpu1"]),
    ]
    assert (placed.node, placed.devices) == ("a", ["a-gpu0", "a-gpu1"])
    first, second = world.taken[key][1], world.ranks[*key, 1][1]
    assert (first.rank, first.world, second.rank, second.world) == (0, 2, 1, 2)
    assert (world.ranks[*key, 1][0], second.devices) == ("b", ["b-gpu0", "b-gpu1"])


def test_a_gang_waits_until_all_of_it_fits(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB, gpus=2)
    world.submit("j", gpus=2, nodes=2)
    world.check("j").settle()
    assert where(world, "j") == []
    world.node("b", cpus=8, memory=16 * GIB, gpus=2).settle()
    assert where(world, "j") == ["a"]


def test_a_node_whose_trainer_can_do_no_gangs_gets_no_member(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB).node("b", cpus=8, memory=16 * GIB, kinds=("check", "train"))
    world.submit("j", nodes=2)
    world.check("j").settle()
    assert where(world, "j") == []
    world.say(WorkerJoined("b", "worker", ["check", "train", "gang"]))
    world.settle()
    assert where(world, "j") == ["a"]


def test_the_loss_of_any_member_loses_the_lease_and_frees_the_others(world: Any) -> None:
    key = gang(world, nodes=3)
    lost = next(node for rank, (node, _) in ((k[2], v) for k, v in world.ranks.items()) if rank == 1)
    world.lose(lost).settle()
    (event,) = world.said(TaskLost)
    assert (event.task, event.reason) == ("j-train", f"the node {lost} is gone")
    assert key in world.saves, "the others are told to stop, and to leave the checkpoint alone"
    world.wait(2)
    again = [event for event in world.said(TaskPlaced) if event.kind == "train"][-1]
    assert lost not in {member.node for member in again.members}


def test_a_gang_that_broke_costs_no_attempt(world: Any) -> None:
    key = gang(world)
    world.break_gang(key)
    assert world.task("j").failures == 0
    world.wait(2)
    assert len(where(world, "j")) == 2


def test_a_gang_that_failed_for_good_leaves_no_work_behind_in_the_queues(world: Any) -> None:
    from llmos_scheduler.effects import WithdrawWork

    key = gang(world)
    world.fail(key, retryable=False)
    left = [effect.node for effect in world.step() if isinstance(effect, WithdrawWork)]
    assert left == ["a", "b"]
    assert world.state.jobs["j"].state == "failed"


# --- shares, models, labels, slices ---


def test_shares_of_a_gpu_add_up_to_one_and_to_its_memory(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB, gpus=1)
    for id, milli, memory in (("j", 400, 30), ("k", 400, 30), ("l", 200, 30)):
        world.submit(id, gpus=1, gpu_milli=milli, gpu_memory=memory * GIB)
        world.check(id)
    world.settle()
    placed = [event for event in world.said(TaskPlaced) if event.kind == "train"]
    assert [(event.job, event.devices, event.gpu_milli) for event in placed] == [
        ("j", ["a-gpu0"], 400),
        ("k", ["a-gpu0"], 400),
    ], "80 GiB hold two of 30"
    assert {work.gpu_memory for _, work in world.queue.values()} == {30 * GIB}


def test_only_the_models_and_labels_that_were_asked_for_will_do(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB, gpus=1, model="T4", labels={"zone": "x"})
    world.node("b", cpus=8, memory=16 * GIB, gpus=1, model="H100", labels={"zone": "x"})
    world.node("c", cpus=8, memory=16 * GIB, gpus=1, model="H100", labels={"zone": "y"})
    world.submit("j", gpus=1, gpu_models=["H100", "H200"], labels={"zone": "y"})
    world.check("j").settle()
    assert where(world, "j") == ["c"]


def test_a_gpu_that_is_cut_into_slices_is_no_device_and_its_slices_are(world: Any) -> None:
    parts = [Gpu(f"MIG-{at}", "H100", 10 * GIB, 0, parent="GPU-0", profile="1g.10gb") for at in range(2)]
    has = Inventory(8, 16 * GIB, gpus=[Gpu("GPU-0", "H100", 80 * GIB, 0), *parts])
    world.say(NodeInventoried("a", 1, has))
    world.say(WorkerJoined("a", "worker", ["check", "train", "export"]))
    world.submit("large", gpus=1, gpu_memory=40 * GIB, priority=90)
    world.check("large")
    for id in ("j", "k"):
        world.submit(id, gpus=1)
        world.check(id)
    world.settle()
    placed = {event.job: event.devices for event in world.said(TaskPlaced) if event.kind == "train"}
    assert placed == {"j": ["MIG-0"], "k": ["MIG-1"]}


def test_a_gpu_that_vanished_from_the_inventory_stays_leased_to_whoever_holds_it(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB, gpus=2)
    training(world, "j", gpus=1)
    held = world.task("j").devices
    left = [gpu for gpu in world.state.nodes["a"].inventory.gpus if gpu.id not in held]
    world.say(NodeInventoried("a", 2, Inventory(8, 16 * GIB, gpus=left)))
    for id in ("k", "l"):
        world.submit(id, gpus=1)
        world.check(id)
    world.settle()
    placed = [event.devices for event in world.said(TaskPlaced) if event.kind == "train"]
    assert placed == [held, [left[0].id]]


# --- cordon, drain, reservations, no training ---


def test_nothing_new_starts_on_a_cordoned_node_and_what_runs_there_goes_on(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB)
    key = training(world, "j")
    world.say(NodeCordoned("a", by="me", reason="a fan"))
    world.submit("k")
    world.wait(30)
    assert key not in world.stops
    assert world.state.jobs["k"].state == "queued"
    world.say(NodeUncordoned("a"))
    world.settle()
    assert world.state.jobs["k"].state == "checking"


def test_draining_a_node_moves_preemptible_training_off_it_with_its_checkpoint(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB)
    key, other = training(world, "j"), training(world, "fixed", preemptible=False)
    world.node("b", cpus=8, memory=16 * GIB)
    world.say(NodeCordoned("a", drain=True))
    world.settle()
    (asked,) = world.said(TaskPreempting)
    assert (asked.task, asked.by, asked.reason) == ("j-train", "", "a is drained")
    assert world.saves == {key}
    assert other not in world.stops
    world.obey(key)
    world.settle()
    assert where(world, "j") == ["a", "b"]


def test_replicas_move_off_a_node_that_is_drained(world: Any) -> None:
    world.node("a").node("b")
    world.submit("j", deploy=1)
    world.run("j")
    world.say(NodeCordoned("a", drain=True))
    world.settle()
    assert list(world.state.deployments["j"].replicas) == ["b"]
    assert world.deployed["a", "j"].desired == "absent"


def test_reserved_nodes_take_work_of_their_queue_only_for_as_long_as_they_are_reserved(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB)
    world.say(ReservationMade("r", ["a"], queue="lab", start=world.now, end=world.now + 50))
    for id, queue in (("j", "default"), ("mine", "lab/vision")):
        world.submit(id, queue=queue)
        world.check(id)
    world.settle()
    assert (where(world, "j"), where(world, "mine")) == ([], ["a"])
    world.wait(49)
    assert where(world, "j") == []
    world.wait(1)
    assert where(world, "j") == ["a"]
    world.say(ReservationMade("s", ["a"], queue="lab"))
    world.submit("k")
    world.check("k").settle()
    assert where(world, "k") == []
    world.say(ReservationEnded("s"))
    world.settle()
    assert where(world, "k") == ["a"]


def test_a_job_that_trains_nothing_goes_from_its_check_to_its_export(world: Any) -> None:
    world.node("a")
    world.submit("j", method="none")
    world.run("j", until="exporting")
    (work,) = (work for _, work in world.queue.values())
    assert (work.kind, work.inputs) == ("export", {"dataset": "sha256:d", "base": "sha256:b"})
    world.run("j", until="succeeded")


def test_a_failure_of_a_worker_while_its_lease_is_asked_back_counts_as_any(world: Any) -> None:
    key = preempted(world)
    node, work = world.taken.pop(key)
    world.say(TaskFailed(work.task, work.job, work.tenant, work.kind, work.lease, node, Problem("oom", "no memory")))
    assert world.task("low").failures == 1
