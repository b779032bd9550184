"""The planner on nodes: random histories keep its rules (`planner_world`); what each rule means on small clusters."""

import pytest

from llmos_scheduler.cluster import Device, Machine, Shape
from llmos_scheduler.order import HOUR
from llmos_scheduler.planner import Planner
from llmos_scheduler.queues import Queue
from llmos_scheduler.work import Places, Plan, Reservation, Rules, Work
from planner_world import history

A, B = Device("a", 16), Device("b", 40)
NOW = 100 * HOUR


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_random_histories_keep_every_rule(first: int) -> None:
    """Never over-committed, never inverted, gangs whole, reservations and limits kept, only lawful preemption, every
    verdict gives a cause, nothing starves, and a planner that is built from scratch plans the same to the byte."""
    for seed in range(first, first + 10):
        history(seed)


def node(gpus: int = 2, model: Device = A, **labels: str) -> Machine:
    return Machine(8_000, 64, (model,) * gpus, labels)


def work(number: int, gpus: int = 1, **of: object) -> Work:
    shape = of.pop("shape", Shape(1_000, 8, gpus))
    return Work(id=f"w{number}", number=number, submitted=0, since=0, shape=shape, **of)  # type: ignore[arg-type]


def runs(planner: Planner, what: Work, *places: tuple[str, tuple[int, ...]], since: int = 0) -> Work:
    what.since = since
    planner.run(what, places)
    return what


def starts(made: Plan) -> dict[str, Places]:
    return {start.work.id: start.places for start in made.starts}


def stops(made: Plan) -> list[tuple[str, str, str]]:
    return [(stop.work.id, stop.by.id, stop.reason) for stop in made.stops]


def test_a_gang_gets_all_its_nodes_on_one_fabric_or_waits() -> None:
    planner = Planner({"a": node(fabric="x"), "b": node(fabric="y"), "c": node(fabric="y")})
    planner.wait(work(1, 2, nodes=2))
    assert starts(planner.plan(NOW)) == {"w1": (("b", (0, 1)), ("c", (0, 1)))}
    planner.wait(work(1, 2, nodes=4))
    assert planner.plan(NOW).starts == []
    causes = planner.why("w1", NOW).causes
    assert [(cause.kind, cause.nodes) for cause in causes[:2]] == [("gang", 4), ("resources", 3)]


def test_shares_of_a_gpu_go_together_and_its_memory_counts() -> None:
    planner = Planner({"n": node(2)})
    for number, memory in ((1, 10), (2, 10), (3, 5)):
        planner.wait(work(number, shape=Shape(100, 1, 1, 300, memory)))
    assert starts(planner.plan(NOW)) == {"w1": (("n", (0,)),), "w2": (("n", (1,)),), "w3": (("n", (0,)),)}


def test_a_replica_preempts_training_at_once_and_training_never_a_replica() -> None:
    planner = Planner({"n": node(1)}, rules=Rules(min_run=HOUR, order="priority-preempt"))
    runs(planner, work(1), ("n", (0,)), since=NOW)
    replica = work(2, latency=True, preemptible=False)
    planner.wait(replica)
    assert stops(planner.plan(NOW)) == [("w1", "w2", "latency")]
    assert planner.why("w2", NOW).preempts == ("w1",)
    planner.leave("w1")
    runs(planner, replica, ("n", (0,)), since=NOW)
    planner.wait(work(3, priority=9))
    assert planner.plan(NOW + 9 * HOUR).stops == []


def test_what_was_freed_for_one_is_kept_for_it() -> None:
    planner = Planner({"n": node(2)}, rules=Rules(order="priority-preempt"))
    low, other = work(1), work(2)
    runs(planner, low, ("n", (0,)))
    runs(planner, other, ("n", (1,)))
    high = work(3, 2, priority=9)
    planner.wait(high)
    assert stops(planner.plan(NOW)) == [("w2", "w3", "priority"), ("w1", "w3", "priority")]
    planner.leave("w2")
    low.gives_way, high.room = "w3", frozenset({"n"})
    planner.run(low, (("n", (0,)),))
    planner.wait(high)
    planner.wait(work(4, priority=10))  # ranks better, and came too late
    made = planner.plan(NOW)
    assert (made.starts, made.stops) == ([], [])
    assert "w1" in planner.why("w3", NOW).held_by
    planner.leave("w1")
    assert starts(planner.plan(NOW)) == {"w3": (("n", (0, 1)),)}


def test_the_victims_lose_least_on_the_node_that_loses_least() -> None:
    planner = Planner({"a": node(2), "b": node(2)}, rules=Rules(order="priority-preempt"))
    for number, (name, gpu, saved) in enumerate([("a", 0, 0), ("a", 1, 0), ("b", 0, 50), ("b", 1, 60)]):
        runs(planner, work(number, saved=saved * HOUR), (name, (gpu,)))
    planner.wait(work(9, 1, priority=99))
    assert stops(planner.plan(NOW)) == [("w3", "w9", "priority")]
    planner.wait(work(9, 2, priority=99))
    assert [id for id, _, _ in stops(planner.plan(NOW))] == ["w3", "w2"]


def test_a_gang_is_stopped_whole_and_counts_whole() -> None:
    planner = Planner({"a": node(1), "b": node(1), "c": node(1)}, rules=Rules(order="priority-preempt"))
    runs(planner, work(1, nodes=2, saved=90 * HOUR), ("a", (0,)), ("b", (0,)))
    runs(planner, work(2, saved=85 * HOUR), ("c", (0,)))
    planner.wait(work(3, priority=99))
    assert stops(planner.plan(NOW)) == [("w2", "w3", "priority")]  # 15 GPU-hours, not 2 x 10


def test_quota_is_taken_back_from_who_borrows() -> None:
    planner = Planner({"a": node(2), "b": node(2)}, [Queue("mine", quota=2), Queue("yours", quota=1)])
    for number, (name, gpu) in enumerate([("a", 0), ("a", 1), ("b", 0), ("b", 1)]):
        runs(planner, work(number, queue="yours"), (name, (gpu,)), since=number)
    planner.wait(work(8, 2, queue="mine"))
    assert {(by, reason) for _, by, reason in stops(planner.plan(NOW))} == {("w8", "reclaim")}
    planner.wait(work(8, 3, queue="mine", shape=Shape(0, 0, 2), nodes=2))
    assert planner.plan(NOW).stops == []
    assert "quota" in {cause.kind for cause in planner.why("w8", NOW).causes}


def test_a_limit_is_named_with_who_holds_it_and_when_it_ends() -> None:
    planner = Planner({"n": node(4)}, [Queue("q", limit=2)])
    runs(planner, work(1, 2, queue="q", duration=200 * HOUR), ("n", (0, 1)))
    planner.wait(work(2, queue="q"))
    verdict = planner.why("w2", NOW)
    assert [cause.kind for cause in verdict.causes] == ["limit"]
    assert (verdict.held_by, verdict.would_run, verdict.earliest) == (("w1",), ("w1",), 200 * HOUR)


def test_a_reservation_keeps_its_nodes_from_others_and_takes_them_from_what_can_be_preempted() -> None:
    planner = Planner({"n": node(1)})
    planner.reserve(Reservation("r", frozenset({"n"}), queues=frozenset({"lab"}), start=NOW, end=NOW + HOUR))
    planner.wait(work(1, queue="shop", preemptible=False, duration=2 * HOUR))
    planner.wait(work(2, queue="shop", preemptible=False, duration=HOUR))
    assert starts(planner.plan(NOW - HOUR)).keys() == {"w2"}  # it ends in time
    assert planner.plan(NOW).starts == []
    assert [cause.kind for cause in planner.why("w1", NOW).causes] == ["reservation"]
    assert starts(planner.plan(NOW + HOUR)).keys() == {"w1"}
    runs(planner, work(3, queue="shop"), ("n", (0,)), since=NOW)
    planner.wait(work(4, queue="lab/x"))
    assert stops(planner.plan(NOW)) == [("w3", "w4", "reservation")]


def test_a_closed_node_takes_nothing_and_is_named() -> None:
    planner = Planner({"n": node(1)})
    planner.close("n")
    planner.wait(work(1))
    assert planner.plan(NOW).starts == []
    assert [(cause.kind, cause.nodes) for cause in planner.why("w1", NOW).causes] == [("cordon", 1)]
    planner.close("n", False)
    assert starts(planner.plan(NOW)).keys() == {"w1"}


def test_replicas_of_a_family_are_spread_over_a_label_and_never_share_a_node() -> None:
    planner = Planner({"a": node(4, zone="1"), "b": node(4, zone="1"), "c": node(4, zone="2")})
    for number in range(4):
        apart = frozenset({"a"}) if number else frozenset({"c", "b"})
        planner.wait(work(number, latency=True, spread="zone", family="f", apart=apart))
    assert {id: places[0][0] for id, places in starts(planner.plan(NOW)).items()} == {"w0": "a", "w1": "c", "w2": "b"}


def test_where_the_artifacts_are_breaks_ties_and_where_it_failed_comes_last() -> None:
    planner = Planner({"a": node(), "b": node(), "c": node()})
    planner.wait(work(1, near=frozenset({"c"})))
    planner.wait(work(2, avoid="a"))
    assert {id: places[0][0] for id, places in starts(planner.plan(NOW)).items()} == {"w1": "c", "w2": "b"}
    planner.close("b")
    planner.close("c")
    planner.leave("w1")
    assert starts(planner.plan(NOW))["w2"][0][0] == "a"


def test_the_first_that_waits_holds_its_node_and_what_ends_before_may_use_it() -> None:
    planner = Planner({"n": node(4)}, rules=Rules(order="priority"))
    runs(planner, work(1, 3, duration=NOW + HOUR), ("n", (0, 1, 2)))
    planner.wait(work(2, 4))
    planner.wait(work(3, duration=2 * HOUR))
    planner.wait(work(4, duration=HOUR))
    assert starts(planner.plan(NOW)) == {"w4": (("n", (3,)),)}
    verdict = planner.why("w2", NOW)
    assert (verdict.earliest, verdict.held_by) == (NOW + HOUR, ("w1",))
    assert planner.why("w3", NOW).causes[0].kind == "priority"


def test_whoever_may_wait_for_room_that_comes_free_fills_the_time_before_those_behind_it() -> None:
    planner = Planner({"a": node(2), "b": node(2, B)}, [Queue("lab", order="priority-preempt")])
    runs(planner, work(1, duration=4 * HOUR), ("a", (0,)), since=NOW)
    runs(planner, work(2, 2, gives_way="w9"), ("b", (0, 1)), since=NOW)
    only_a = frozenset({"a"})
    planner.wait(work(3, shape=Shape(1_000, 8, 2, models=only_a)))  # holds node a, which is half free until then
    planner.wait(work(4, duration=HOUR, queue="lab"))
    planner.wait(work(5, duration=HOUR, queue="lab", shape=Shape(1_000, 8, 1, models=only_a)))
    assert starts(planner.plan(NOW)) == {"w4": (("a", (1,)),)}


def test_work_that_no_node_could_hold_keeps_nothing_from_others() -> None:
    planner = Planner({"n": node(2)}, rules=Rules(order="fifo"))
    planner.wait(work(1, 9))
    planner.wait(work(2))
    assert starts(planner.plan(NOW)).keys() == {"w2"}
    assert "no node is large enough" in planner.why("w1", NOW).causes[0].message


def test_what_would_let_it_run_is_one_lease_that_is_enough() -> None:
    planner = Planner({"a": node(2), "b": node(2)})
    runs(planner, work(1, 2), ("a", (0, 1)))
    runs(planner, work(2), ("b", (0,)))
    runs(planner, work(3), ("b", (1,)))
    planner.wait(work(4, 2))
    assert planner.why("w4", NOW).would_run == ("w1",)


def test_what_if_answers_as_why_does_and_leaves_nothing_behind() -> None:
    planner = Planner({"n": node(1)})
    assert planner.what_if(work(1), NOW).starts_on == ("n",)
    assert planner.plan(NOW).starts == []


def test_a_new_node_wakes_what_waits_and_a_lost_one_takes_nothing() -> None:
    planner = Planner({"n": node(1)})
    planner.wait(work(1, 2))
    assert planner.plan(NOW).starts == []
    planner.set_machines({"m": node(2)})
    assert starts(planner.plan(NOW)) == {"w1": (("m", (0, 1)),)}
