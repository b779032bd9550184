"""Deployments in a world without a bus: where replicas go, when a job is deployed, what follows a loss."""

from typing import Any

from llmos.contracts.deployments import DeploymentChanged, ReplicaFailed, ReplicaReady, ReplicaUnloaded
from llmos.contracts.jobs import JobCancelling, JobDeployed, JobFailed
from llmos.contracts.nodes import WorkerJoined, WorkerLost
from llmos.errors import Problem


def deploying(world: Any, id: str = "j", replicas: int = 1, **fields: Any) -> None:
    world.submit(id, deploy=replicas, **fields)
    world.run(id, until="deploying")
    world.settle()


def break_replica(world: Any, node: str, name: str = "j", *, retryable: bool = True) -> None:
    assigned = world.deployed[node, name]
    problem = Problem("unreadable", "the model can't be read")
    world.say(
        ReplicaFailed(name, assigned.tenant, node, assigned.generation, problem, assigned.job, retryable=retryable)
    )
    world.settle()


def test_a_job_is_deployed_when_every_replica_is_ready(world: Any) -> None:
    world.node("a").node("edge", cpus=0, kinds=("serve",))
    deploying(world, replicas=2)
    assert {node for node, _ in world.deployed} == {"a", "edge"}
    world.ready("a", "j")
    world.settle()
    assert world.state.jobs["j"].state == "deploying"
    world.ready("edge", "j")
    world.settle()
    assert world.said(JobDeployed) == [JobDeployed("j", "default", "j", 1, ["a", "edge"])]


def test_replicas_are_spread_over_the_nodes_with_the_fewest(world: Any) -> None:
    world.node("a").node("b")
    deploying(world, "one")
    deploying(world, "two")
    assert sorted(node for node, _ in world.deployed) == ["a", "b"]


def test_a_node_whose_memory_is_too_small_serves_nothing_large(world: Any) -> None:
    from llmos.contracts.models import ModelVersion
    from llmos_scheduler.rollout import choose

    world.say(WorkerJoined("small", "inferencer", ["serve"], memory=100))
    world.say(WorkerJoined("unknown", "inferencer", ["serve"]))
    version = ModelVersion("m", 1, "default", "t", "sha256:x", "j", 0.0, size=200)
    assert choose(world.state, None, version, 2) == ["unknown"]


def test_too_few_nodes_get_what_they_can_carry_and_more_come_when_a_node_joins(world: Any) -> None:
    world.node("a")
    deploying(world, replicas=2)
    world.ready("a", "j")
    world.settle()
    assert world.state.jobs["j"].state == "deploying"
    world.node("b").settle()
    world.ready("a", "j")
    world.ready("b", "j")
    world.settle()
    assert world.state.jobs["j"].state == "deployed"


def test_a_rollout_without_progress_fails_and_leaves_nothing_behind(world: Any) -> None:
    world.node("a")
    deploying(world, replicas=2)
    world.ready("a", "j")
    world.wait(119)
    assert world.state.jobs["j"].state == "deploying"
    world.wait(1)
    (failed,) = world.said(JobFailed)
    assert failed.problem.code == "not_deployed"
    assert failed.problem.message == "1 of 2 replicas of j are ready: a can serve, one replica a node"
    assert world.deployed["a", "j"].desired == "absent"


def test_a_job_without_any_node_that_serves_fails_after_a_while(world: Any) -> None:
    world.node("a", kinds=("check", "train", "export"))
    deploying(world)
    world.wait(120)
    (failed,) = world.said(JobFailed)
    assert "no node can serve" in failed.problem.message


def test_a_new_version_goes_to_the_nodes_of_the_old_one(world: Any) -> None:
    world.node("a").node("b")
    world.submit("one", name="mood", deploy=1)
    world.run("one")
    world.submit("two", name="mood", deploy=1)
    world.run("two")
    first, second = world.said(DeploymentChanged)
    assert (first.nodes, first.generation, first.version.version) == (["a"], 1, 1)
    assert (second.nodes, second.generation, second.version.version) == (["a"], 2, 2)


def test_two_jobs_for_one_deployment_take_turns(world: Any) -> None:
    world.node("a")
    for id in ("one", "two"):
        world.submit(id, name="mood", deploy=1)
    world.run("one", until="deploying")
    world.run("two", until="deploying")
    world.settle()
    assert [event.job for event in world.said(DeploymentChanged)] == ["one"]
    world.wait(110)
    world.ready("a", "mood")
    world.wait(15)
    assert world.state.jobs["two"].state == "deploying", "it is its own rollout that has to make progress"
    world.ready("a", "mood")
    world.settle()
    assert [world.state.jobs[id].state for id in ("one", "two")] == ["deployed", "deployed"]


def test_a_failed_upgrade_goes_back_to_what_served_before(world: Any) -> None:
    world.node("a")
    world.submit("one", name="mood", deploy=1)
    world.run("one")
    world.submit("two", name="mood", deploy=1)
    world.run("two", until="deploying")
    world.settle()
    break_replica(world, "a", "mood", retryable=False)
    assert world.state.jobs["two"].state == "failed"
    assert world.deployed["a", "mood"].version.version == 1
    assert world.deployed["a", "mood"].generation == 3
    world.ready("a", "mood")
    world.settle()
    assert world.state.deployments["mood"].ready


def test_a_replica_may_fail_twice_before_its_job_does(world: Any) -> None:
    world.node("a")
    deploying(world)
    break_replica(world, "a")
    break_replica(world, "a")
    assert world.state.jobs["j"].state == "deploying"
    break_replica(world, "a")
    (failed,) = world.said(JobFailed)
    assert failed.problem == Problem("unreadable", "the replica on a failed 3 times: the model can't be read")


def test_cancelling_a_rollout_takes_it_back(world: Any) -> None:
    world.node("a")
    deploying(world)
    world.say(JobCancelling("j", "default"))
    world.settle()
    assert world.state.jobs["j"].state == "cancelled"
    assert world.deployed["a", "j"].desired == "absent"


def test_a_replica_on_a_lost_node_moves_and_the_node_is_told_for_its_return(world: Any) -> None:
    world.node("a").node("b")
    world.submit("j", deploy=1)
    world.run("j")
    world.lose("a").settle()
    assert world.said(DeploymentChanged)[-1].nodes == ["b"]
    assert world.deployed["a", "j"].desired == "absent"
    world.ready("b", "j")
    world.node("a").settle()
    assert world.said(DeploymentChanged)[-1].nodes == ["b"], "nobody moves back"
    world.say(ReplicaUnloaded("j", "default", "a", world.deployed["a", "j"].generation, 1, "taken down"))
    assert world.state.deployments["j"].leaving == {}


def test_a_lost_node_without_a_replacement_keeps_its_place(world: Any) -> None:
    world.node("a")
    world.submit("j", deploy=1)
    world.run("j")
    world.lose("a").wait(500)
    assert len(world.said(DeploymentChanged)) == 1
    assert world.deployed["a", "j"].desired == "present"
    world.node("a").settle()
    world.ready("a", "j")
    assert world.state.deployments["j"].ready


def test_a_node_that_is_lost_in_a_rollout_is_replaced(world: Any) -> None:
    world.node("a").node("b")
    deploying(world)
    world.lose("a").settle()
    world.ready("b", "j")
    world.settle()
    assert world.said(JobDeployed)[0].nodes == ["b"]


def test_what_a_replica_of_an_older_generation_says_changes_nothing(world: Any) -> None:
    world.node("a")
    world.submit("one", name="mood", deploy=1)
    world.run("one")
    world.submit("two", name="mood", deploy=1)
    world.run("two", until="deploying")
    world.settle()
    before = world.snapshot()
    world.say(ReplicaReady("mood", "default", "a", 1, "mood", 1, "one"))
    world.say(ReplicaFailed("mood", "default", "a", 1, Problem("late", "late"), "one"))
    assert world.snapshot() == before


def test_a_replica_whose_inferencer_is_gone_is_not_ready(world: Any) -> None:
    for node in ("a", "b"):
        world.node(node, kinds=("check", "train", "export"))
        world.say(WorkerJoined(node, "inferencer", ["serve"]))
    deploying(world, replicas=2)
    world.ready("a", "j")
    world.say(WorkerLost("a", "inferencer"))
    world.ready("b", "j")
    world.settle()
    assert world.state.jobs["j"].state == "deploying"
    world.say(WorkerJoined("a", "inferencer", ["serve"]))
    world.ready("a", "j")
    world.settle()
    assert world.state.jobs["j"].state == "deployed"


def test_the_name_of_a_deployment_is_claimed_by_the_first_tenant(world: Any) -> None:
    world.node("a")
    world.submit("j", deploy=1, tenant="red")
    assert world.state.claimant("j") == "red"
    world.run("j")
    assert world.state.claimant("j") == "red"
    assert world.state.claimant("other") == ""
