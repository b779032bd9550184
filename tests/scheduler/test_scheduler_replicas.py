"""Replicas that lease hardware: through the planner like tasks, before preemptible training, one on a node."""

from typing import Any

from llmos.contracts.deployments import DeploymentChanged, ReplicaFailed, ReplicaUnloaded
from llmos.contracts.nodes import NodeCordoned
from llmos.contracts.tasks import TaskPlaced, TaskPreempting
from llmos.errors import Problem

GIB = 1 << 30
ONE = {"gpus": 1}


def test_a_replica_leases_devices_and_is_told_which(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB, gpus=2)
    world.submit("j", deploy=1, replica={"gpus": 1, "gpu_milli": 500, "gpu_memory": 8 * GIB})
    world.run("j")
    (change,) = world.said(DeploymentChanged)
    assert (change.nodes, change.leases, change.replicas) == (["a"], {"a": ["a-gpu0"]}, 1)
    told = world.deployed["a", "j"]
    assert (told.devices, told.gpu_milli, told.gpu_memory) == (["a-gpu0"], 500, 8 * GIB)
    world.submit("k", gpus=2)
    world.check("k").settle()
    assert [event.job for event in world.said(TaskPlaced) if event.kind == "train"] == ["j"], "half of a GPU is taken"


def test_replicas_go_to_different_nodes_and_to_different_zones(world: Any) -> None:
    for name, zone in (("a", "x"), ("b", "x"), ("c", "y")):
        world.node(name, cpus=8, memory=16 * GIB, gpus=2, labels={"zone": zone})
    world.submit("j", deploy=2, replica=ONE, spread="zone")
    world.run("j")
    nodes = world.said(DeploymentChanged)[-1].nodes
    assert len(nodes) == 2
    assert "c" in nodes


def test_without_leases_replicas_are_spread_over_zones_too(world: Any) -> None:
    for name, zone in (("a", "x"), ("b", "x"), ("c", "y")):
        world.node(name, labels={"zone": zone})
    world.submit("j", deploy=2, spread="zone")
    world.run("j")
    assert world.said(DeploymentChanged)[-1].nodes == ["a", "c"]


def test_a_replica_preempts_training_at_once_and_training_never_a_replica(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB, gpus=1)
    world.submit("j", deploy=1, replica=ONE, priority=10)
    world.run("j", until="deploying")
    world.submit("t", gpus=1, priority=90)
    world.check("t").settle()
    world.ready("a", "j")
    world.settle()
    assert world.state.jobs["j"].state == "deployed"
    assert world.said(TaskPreempting) == []
    assert [event for event in world.said(TaskPlaced) if event.task == "t-train"] == []


def test_training_gives_way_to_a_new_replica(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB, gpus=1)
    world.submit("t", gpus=1, priority=90)
    world.check("t").settle()
    (key,) = world.queue
    world.start(key)
    world.submit("j", deploy=1, replica=ONE, priority=10)
    world.run("j", until="deploying")
    world.settle()
    (asked,) = world.said(TaskPreempting)
    assert (asked.task, asked.by, asked.reason) == ("t-train", "deployment/j/0", "deployment/j/0 serves requests")
    world.obey(key)
    world.settle()
    assert world.said(DeploymentChanged)[-1].leases == {"a": ["a-gpu0"]}
    assert world.task("t").state == "waiting"


def test_a_new_version_takes_over_the_leases_of_the_old_one(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB, gpus=1)
    for id in ("one", "two"):
        world.submit(id, name="mood", deploy=1, replica=ONE)
        world.run(id)
    first, second = world.said(DeploymentChanged)
    assert first.leases == second.leases == {"a": ["a-gpu0"]}
    assert (second.version.version, second.generation) == (2, 2)


def test_a_lost_replica_gets_a_lease_elsewhere_or_keeps_its_place(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB, gpus=1)
    world.submit("j", deploy=1, replica=ONE)
    world.run("j")
    world.lose("a").wait(200)
    assert len(world.said(DeploymentChanged)) == 1
    world.node("b", cpus=8, memory=16 * GIB, gpus=1).settle()
    change = world.said(DeploymentChanged)[-1]
    assert (change.nodes, change.leases) == (["b"], {"b": ["b-gpu0"]})


def test_a_drained_replica_moves_and_its_lease_is_free_once_it_has_gone(world: Any) -> None:
    for name in "ab":
        world.node(name, cpus=8, memory=16 * GIB, gpus=1)
    world.submit("j", deploy=1, replica=ONE)
    world.run("j")
    world.say(NodeCordoned("a", drain=True))
    world.settle()
    change = world.said(DeploymentChanged)[-1]
    assert change.leases == {"b": ["b-gpu0"]}
    assert list(world.state.deployments["j"].vacating) == ["a"]
    world.say(ReplicaUnloaded("j", "default", "a", change.generation, 1, "told to"))
    assert world.state.deployments["j"].vacating == {}


def test_the_lease_of_a_replica_that_never_says_that_it_went_ends_after_a_minute(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB, gpus=1)
    world.submit("j", deploy=1, replica=ONE)
    world.run("j", until="deploying")
    world.settle()
    assigned = world.deployed["a", "j"]
    problem = Problem("unreadable", "no")
    world.say(ReplicaFailed("j", "default", "a", assigned.generation, problem, "j", retryable=False))
    world.settle()
    assert world.state.jobs["j"].state == "failed"
    world.submit("t", gpus=1)
    world.check("t").wait(59)
    assert [event for event in world.said(TaskPlaced) if event.task == "t-train"] == []
    world.wait(1)
    assert [event.devices for event in world.said(TaskPlaced) if event.task == "t-train"] == [["a-gpu0"]]


def test_a_failed_upgrade_keeps_the_leases_of_what_served_before(world: Any) -> None:
    world.node("a", cpus=8, memory=16 * GIB, gpus=1)
    world.submit("one", name="mood", deploy=1, replica=ONE)
    world.run("one")
    world.submit("two", name="mood", deploy=1, replica=ONE)
    world.run("two", until="deploying")
    world.settle()
    assigned = world.deployed["a", "mood"]
    world.say(ReplicaFailed("mood", "default", "a", assigned.generation, Problem("no", "no"), "two", retryable=False))
    world.settle()
    change = world.said(DeploymentChanged)[-1]
    assert (change.version.version, change.leases) == (1, {"a": ["a-gpu0"]})


def test_a_rollout_without_room_says_what_it_waits_for(world: Any) -> None:
    from llmos_scheduler.rollout import obstacle

    world.node("a", cpus=8, memory=16 * GIB, gpus=1)
    world.submit("j", deploy=1, replica={"gpus": 4})
    world.run("j", until="deploying")
    world.settle()
    waits = obstacle(world.state, world.state.jobs["j"])
    assert waits == "0 of 1 replicas of j are ready: 1 wait for a node with 1 cpus, 1GiB, 4 GPUs free"


def test_a_replica_that_moves_keeps_its_canary(world: Any) -> None:
    import msgspec

    for name in "ab":
        world.node(name, cpus=8, memory=16 * GIB, gpus=1)
    world.submit("j", deploy=1, replica=ONE)
    world.run("j")
    (change,) = world.said(DeploymentChanged)
    world.say(msgspec.structs.replace(change, generation=2, canary=change.version, weight=20, by="me"))
    world.ready("a", "j")
    world.say(NodeCordoned("a", drain=True))
    world.settle()
    moved = world.said(DeploymentChanged)[-1]
    assert (moved.leases, moved.weight, moved.canary) == ({"b": ["b-gpu0"]}, 20, change.version)


def test_two_replicas_push_two_trainings_aside_and_no_third_whichever_stops_first(make_world: Any) -> None:
    for first, second in ((0, 1), (1, 0)):
        world = make_world(compare=True)
        keys = []
        for name in "abc":
            world.node(name, cpus=8, memory=16 * GIB, gpus=1)
            world.submit(f"t{name}", gpus=1)
            world.check(f"t{name}").settle()
            keys += world.queue
            world.start(keys[-1])
        world.submit("j", deploy=2, replica=ONE, method="none")
        world.run("j", until="deploying")
        world.settle()
        asked = world.said(TaskPreempting)
        assert [event.by for event in asked] == ["deployment/j/0", "deployment/j/1"]
        for number in (first, second):
            world.obey(next(key for key in keys if key[0] == asked[number].task))
            world.settle()
        assert len(world.said(TaskPreempting)) == 2
        assert sorted(world.said(DeploymentChanged)[-1].leases) == sorted(event.node for event in asked)


def test_one_replica_that_can_not_be_loaded_does_not_keep_a_lost_one_from_moving(world: Any) -> None:
    for name in "ab":
        world.node(name, cpus=8, memory=16 * GIB, gpus=1)
    world.submit("j", deploy=2, replica=ONE)
    world.run("j")
    generation = world.deployed["a", "j"].generation
    world.say(ReplicaFailed("j", "default", "a", generation, Problem("no", "no"), "j", retryable=False))
    world.lose("b")
    world.node("c", cpus=8, memory=16 * GIB, gpus=1).settle()
    assert set(world.said(DeploymentChanged)[-1].leases) == {"a", "c"}
