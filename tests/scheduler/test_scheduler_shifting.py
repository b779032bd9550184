"""Canaries, promotions and going back, in a world without a bus."""

from typing import Any

import pytest
from msgspec.structs import replace

from llmos.contracts.deployments import ReplicaFailed, RollbackRequested, ShiftRequested
from llmos.contracts.models import ModelVersion
from llmos.errors import Busy, NotFound, Problem, Rejected
from llmos_scheduler.shifting import rollback, shift


@pytest.fixture
def versions(world: Any) -> dict[int, ModelVersion]:
    """A world in which `mood` is served at version 2 and was at version 1; a version 3 is registered."""
    world.node("a").node("b")
    for job in ("one", "two"):
        world.submit(job, name="mood", deploy=2)
        world.run(job)
    world.settle()
    second = world.state.deployments["mood"].change.version
    first = world.state.deployments["mood"].before.version
    return {1: first, 2: second, 3: replace(second, version=3, artifact="sha256:three")}


def apply(world: Any, change: Any, up: bool = True) -> None:
    world.say(change)
    world.settle()
    for node in ("a", "b") if up else ():
        world.ready(node, "mood")
    world.settle()


def serving(world: Any) -> list[tuple[int, int, int]]:
    """What each node was told last: its version, its canary and the canary's weight."""
    told = [world.deployed[node, "mood"] for node in ("a", "b")]
    return [(each.version.version, each.canary.version if each.canary else 0, each.weight) for each in told]


def test_a_canary_goes_to_every_replica_beside_the_version_and_is_promoted_or_taken_back(
    world: Any, versions: Any
) -> None:
    apply(world, shift(world.state, ShiftRequested("mood", versions[3], 10, requested_by="ann")))
    assert serving(world) == [(2, 3, 10)] * 2
    assert world.state.deployments["mood"].change.by == "ann"
    assert shift(world.state, ShiftRequested("mood", versions[3], 10)) is None
    apply(world, shift(world.state, ShiftRequested("mood", versions[3], 60)))
    assert serving(world) == [(2, 3, 60)] * 2
    apply(world, rollback(world.state, RollbackRequested("mood")))
    assert serving(world) == [(2, 0, 0)] * 2
    apply(world, shift(world.state, ShiftRequested("mood", versions[3])))
    assert serving(world) == [(3, 0, 0)] * 2


def test_a_rollback_goes_to_the_version_before_and_a_second_one_back_again(world: Any, versions: Any) -> None:
    apply(world, rollback(world.state, RollbackRequested("mood")))
    assert serving(world) == [(1, 0, 0)] * 2
    apply(world, rollback(world.state, RollbackRequested("mood")))
    assert serving(world) == [(2, 0, 0)] * 2


def test_a_rollback_before_the_new_version_came_up_goes_to_what_serves(world: Any, versions: Any) -> None:
    apply(world, shift(world.state, ShiftRequested("mood", versions[3])), up=False)
    apply(world, rollback(world.state, RollbackRequested("mood")))
    assert serving(world) == [(2, 0, 0)] * 2


def test_a_canary_that_cannot_be_loaded_is_taken_back_by_itself(world: Any, versions: Any) -> None:
    apply(world, shift(world.state, ShiftRequested("mood", versions[3], 10)), up=False)
    told = world.deployed["a", "mood"]
    problem = Problem("unreadable", "the model can't be read")
    world.say(ReplicaFailed("mood", told.tenant, "a", told.generation, problem, told.job, retryable=False))
    world.settle()
    assert serving(world) == [(2, 0, 0)] * 2
    for node in ("a", "b"):
        world.ready(node, "mood")
    assert world.state.deployments["mood"].ready


def test_how_replicas_are_kept_changes_without_another_version(world: Any, versions: Any) -> None:
    apply(world, shift(world.state, ShiftRequested("mood", pinned=True, idle=60)))
    told = world.deployed["a", "mood"]
    assert (told.version.version, told.pinned, told.idle) == (2, True, 60)
    apply(world, shift(world.state, ShiftRequested("mood", versions[3], 10)))
    assert world.deployed["a", "mood"].pinned


def test_a_replica_that_moves_takes_the_canary_along(world: Any, versions: Any) -> None:
    apply(world, shift(world.state, ShiftRequested("mood", versions[3], 10)))
    world.node("c")
    world.lose("b")
    world.settle()
    told = world.deployed["c", "mood"]
    assert (told.version.version, told.canary.version, told.weight) == (2, 3, 10)


def test_what_cannot_be_is_refused_by_name(world: Any, versions: Any) -> None:
    with pytest.raises(NotFound, match="nothing is deployed as 'x'"):
        shift(world.state, ShiftRequested("x", versions[3]))
    with pytest.raises(Rejected, match="belongs to other"):
        shift(world.state, ShiftRequested("mood", replace(versions[3], tenant="other")))
    with pytest.raises(Rejected, match="is for embeddings"):
        shift(world.state, ShiftRequested("mood", replace(versions[3], task="embeddings")))
    with pytest.raises(Rejected, match="weight is 101"):
        shift(world.state, ShiftRequested("mood", versions[3], 101))
    with pytest.raises(Rejected, match="idle"):
        shift(world.state, ShiftRequested("mood", idle=-1))
    world.submit("three", name="mood", deploy=2)
    world.run("three", until="deploying")
    world.settle()
    with pytest.raises(Busy, match="rolled out by job three"):
        shift(world.state, ShiftRequested("mood", versions[3]))


def test_a_deployment_that_never_had_another_version_has_nothing_to_go_back_to(world: Any) -> None:
    world.node("a")
    world.submit("one", name="mood", deploy=1)
    world.run("one")
    with pytest.raises(Rejected, match="never served another"):
        rollback(world.state, RollbackRequested("mood"))
