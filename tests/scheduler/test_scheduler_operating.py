"""What operators ask for: what follows, what is refused, and what they are shown."""

from collections.abc import Callable
from typing import Any

import pytest

from llmos.contracts.deployments import DeploymentChanged
from llmos.contracts.jobs import JobSpec, ResourceRequest
from llmos.contracts.nodes import CordonRequested, NodeCordoned, NodeUncordoned, UncordonRequested
from llmos.contracts.queues import (
    QueuesChanged,
    QueueSettings,
    ReservationEnded,
    ReservationMade,
    ReserveRequested,
    SetQueuesRequested,
    UnreserveRequested,
)
from llmos.errors import NotFound, Rejected
from llmos_scheduler.foresight import foresee
from llmos_scheduler.operating import cordon, reserve, set_queues, uncordon, unreserve
from llmos_scheduler.views_cluster import view_nodes, view_queues, view_reservations

NOW = 1_000_000.0


def test_a_node_is_cordoned_once_and_again_only_if_that_says_more(world: Any) -> None:
    world.node("a")
    fact = cordon(world.state, CordonRequested("a", reason="fan", requested_by="ann"))
    assert fact == NodeCordoned("a", False, "ann", "fan")
    world.say(fact)
    assert cordon(world.state, CordonRequested("a", reason="fan", requested_by="bob")) is None
    assert cordon(world.state, CordonRequested("a", drain=True, reason="fan")) == NodeCordoned("a", True, "", "fan")
    assert uncordon(world.state, UncordonRequested("a", "ann")) == NodeUncordoned("a", "ann")
    world.say(NodeUncordoned("a"))
    assert uncordon(world.state, UncordonRequested("a")) is None


def test_a_node_that_nobody_heard_of_is_not_found(world: Any) -> None:
    with pytest.raises(NotFound, match="no node 'x'"):
        cordon(world.state, CordonRequested("x"))
    with pytest.raises(NotFound, match="no node 'x'"):
        uncordon(world.state, UncordonRequested("x"))
    with pytest.raises(NotFound, match="no node 'x'"):
        reserve(world.state, ReserveRequested("r", ["x"], "q"), NOW)


def test_queues_are_set_as_a_whole_and_every_fault_is_named(world: Any) -> None:
    wanted = [QueueSettings("a", quota=1), QueueSettings("a/b", "srsf")]
    fact = set_queues(world.state, SetQueuesRequested(wanted, "ann"))
    assert fact == QueuesChanged(wanted, "ann")
    world.say(fact)
    assert set_queues(world.state, SetQueuesRequested(wanted, "bob")) is None
    wrong = [QueueSettings("a", "nonsense", quota=4, limit=1), QueueSettings("a", weight=-1)]
    with pytest.raises(Rejected, match=r"queues\[0\].policy: .*queues\[0\].limit: .*queues\[1\].name: .*weight: "):
        set_queues(world.state, SetQueuesRequested(wrong))


def test_a_reservation_is_made_changed_and_ended(world: Any) -> None:
    world.node("a").node("b")
    request = ReserveRequested("exam", ["a", "b", "a"], "students", end=NOW + 60, requested_by="ann")
    fact = reserve(world.state, request, NOW)
    assert fact == ReservationMade("exam", ["a", "b"], "students", end=NOW + 60, by="ann")
    world.say(fact)
    assert reserve(world.state, request, NOW) is None
    assert [(view.reservation, view.active) for view in view_reservations(world.state, NOW)] == [("exam", True)]
    assert [view.reservations for view in view_nodes(world.state, NOW)] == [["exam"], ["exam"]]
    assert view_reservations(world.state, NOW + 61) == []
    assert view_nodes(world.state, NOW + 61)[0].reservations == []
    assert unreserve(world.state, UnreserveRequested("exam")) == ReservationEnded("exam")
    world.say(ReservationEnded("exam"))
    with pytest.raises(NotFound, match="no reservation 'exam'"):
        unreserve(world.state, UnreserveRequested("exam"))


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (ReserveRequested("a b", ["a"], "q"), "names no reservation"),
        (ReserveRequested("r", ["a"]), "nobody is named"),
        (ReserveRequested("r", [], "q"), "0 nodes are named"),
        (ReserveRequested("r", ["a"], "q//r"), "queue: 'q//r' must be names"),
        (ReserveRequested("r", ["a"], tenant="a.b"), "can't be a tenant"),
        (ReserveRequested("r", ["a"], "q", end=NOW), "would end before it begins"),
        (ReserveRequested("r", ["a"], "q", start=NOW + 9, end=NOW + 8), "would end before it begins"),
    ],
)
def test_a_reservation_that_makes_no_sense_is_refused(world: Any, request_: ReserveRequested, word: str) -> None:
    world.node("a")
    with pytest.raises(Rejected, match=word):
        reserve(world.state, request_, NOW)


def test_queues_show_what_they_and_those_below_them_hold(world: Any, spec_of: Callable[..., JobSpec]) -> None:
    world.node("a", cpus=8, gpus=2)
    world.say(QueuesChanged([QueueSettings("lab", quota=1), QueueSettings("idle", weight=3.0)]))
    for id, queue in (("one", "lab/vision"), ("two", "lab/text"), ("three", "students")):
        world.submit(id, queue=queue, gpus=1)
        world.check(id)
    world.settle()
    queues = {view.name: view for view in view_queues(world.state, world.now).queues}
    assert list(queues) == sorted(queues)
    assert queues.keys() == {"idle", "lab", "lab/text", "lab/vision", "students"}
    assert (queues["lab"].quota, queues["idle"].weight) == (1, 3.0)
    assert sum(queues[name].gpus for name in ("lab", "students")) == 2.0
    assert queues["lab"].gpus == queues["lab/text"].gpus + queues["lab/vision"].gpus
    assert sum(queues[name].running for name in ("lab", "students")) == 2
    assert sum(queues[name].waiting for name in ("lab", "students")) == 1


def test_a_node_shows_shares_replicas_and_why_it_was_cordoned(world: Any) -> None:
    world.node("a", cpus=8, gpus=2)
    world.submit("j", gpus=1)
    world.run("j", until="training")
    half = ResourceRequest(cpus=1.0, memory="1GiB", gpus=1, gpu_milli=500)
    version = world.version("j")
    world.say(DeploymentChanged("d", "default", 1, "gone", version, ["a"], half, {"a": ["a-gpu1"]}, replicas=1))
    world.say(NodeCordoned("a", True, "ann", "driver"))
    (view,) = view_nodes(world.state, world.now)
    assert view.gpu_milli_leased == {"a-gpu0": 1000, "a-gpu1": 500}
    assert (view.gpus_leased, view.replicas, view.cpus_leased) == (["a-gpu0", "a-gpu1"], ["d"], 2.0)
    assert (view.cordoned, view.draining, view.reason) == (True, True, "driver")


def test_a_plan_says_where_a_job_would_start_and_leaves_nothing_behind(
    world: Any, spec_of: Callable[..., JobSpec]
) -> None:
    world.node("a", gpus=1).settle()
    before = world.snapshot()
    answer = foresee(world.state, world.brain, spec_of(gpus=1), world.now)
    assert (answer.summary, answer.starts_on, answer.job) == ("Train would start now on a.", ["a"], "")
    waits = foresee(world.state, world.brain, spec_of(gpus=2), world.now)
    assert waits.summary == "Train needs 1 cpus, 1GiB, 2 GPUs, and no node is that large."
    assert waits.waits_for[0].kind == "resources"
    assert waits.would_run == ["1 GPU instead of 2"]
    assert "Ask for less: resources.gpus of at most 1." in waits.remedies
    world.settle()
    assert world.snapshot() == before


def test_a_plan_knows_how_long_the_jobs_like_took(world: Any, spec_of: Callable[..., JobSpec]) -> None:
    world.node("a", gpus=1)
    spec = spec_of(gpus=1)
    for seconds in (50.0, 60.0):
        world.state.durations.learn(spec, "train", seconds)
    seen = []
    planner = world.settle().brain.planner
    what_if = planner.what_if
    planner.what_if = lambda work, now: seen.append(work.duration) or what_if(work, now)
    foresee(world.state, world.brain, spec, world.now)
    assert seen == [57_500]
