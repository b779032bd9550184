"""The order side of the brain: rules of `plan` that hold for any jobs, queues and orders, and the sources' examples."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.errors import Rejected
from llmos_scheduler.cluster import Device, Machine, Shape
from llmos_scheduler.order import (
    DAY,
    HOUR,
    ORDERS,
    LeastAttained,
    Priority,
    next_change,
    standing,
)
from llmos_scheduler.planner import Planner
from llmos_scheduler.queues import Queue, check_queues
from llmos_scheduler.shares import Shares
from llmos_scheduler.usage import Usage
from llmos_scheduler.work import Rules, Work

GPUS = 16
NOW = 100 * HOUR
BY_RANK_ALONE = [name for name, make in ORDERS.items() if make().preempts == "rank" and not make().turn]


def job(number: int, gpus: int, **of: object) -> Work:
    times = {"submitted": number, "since": number}
    return Work(id=f"j{number}", number=number, shape=Shape(gpus=gpus), **{**times, **of})  # type: ignore[arg-type]


@dataclass
class Outcome:
    """What a plan comes to: who is stopped, and who starts, at once or when those have stopped."""

    stops: list[Work]
    starts: list[Work]


def plan(jobs: Sequence[Work], queues: Sequence[Queue], rules: Rules = Rules(), now: int = NOW) -> Outcome:
    """On one node; what is stopped stops at once, until nothing changes. Then all is as before."""
    planner = Planner({"node": Machine(0, 0, (Device(""),) * GPUS)}, queues, rules)
    before = [copy(found) for found in jobs]
    free = iter(range(GPUS))
    for found in jobs:
        if found.running:
            planner.run(found, (("node", tuple(islice(free, found.shape.gpus))),))
        else:
            planner.wait(found)
    stopped: dict[str, Work] = {}
    started: dict[str, Work] = {}
    for _ in range(4 * len(jobs) + 4):  # with no minimum run, who started at this instant may be stopped at it again
        made = planner.plan(now)
        for stop in made.stops:
            if started.pop(stop.work.id, None) is None:
                stopped[stop.work.id] = stop.work
            stop.work.ran, stop.work.waited, stop.work.since = stop.work.run_time(now), 0, now
            stop.by.room = frozenset({"node"})
            planner.wait(stop.work)
            planner.wait(stop.by)
        for start in made.starts:
            started[start.work.id] = start.work
            start.work.waited, start.work.since, start.work.room = now - start.work.since, now, frozenset()
            planner.run(start.work, start.places)
        if not made.stops:
            break
    else:
        raise AssertionError("the plans do not come to rest")
    for found, was in zip(jobs, before, strict=True):
        for name in ("running", "since", "room", "ran", "waited"):
            setattr(found, name, getattr(was, name))
    back = stopped.keys() & started.keys()
    keep = lambda works: [work for id, work in works.items() if id not in back]  # noqa: E731
    return Outcome(keep(stopped), keep(started))


def plan_one(jobs: Sequence[Work], order: str, rules: Rules = Rules(), now: int = NOW) -> Outcome:
    return plan(jobs, [], replace(rules, order=order), now)


def names(jobs: Sequence[Work]) -> list[str]:
    return sorted(found.id for found in jobs)


@st.composite
def clusters(draw: st.DrawFn, queues: Sequence[str] = ("",)) -> list[Work]:
    """Jobs of which some run (never more than there are GPUs), with many equal times, sizes and priorities."""
    free, jobs = GPUS, []
    for number in range(draw(st.integers(0, 14))):
        gpus = draw(st.sampled_from([1, 1, 2, 3, 4, 8, 16]))
        running = gpus <= free and draw(st.booleans())
        free -= gpus if running else 0
        times = st.sampled_from([0, HOUR, 50 * HOUR, 99 * HOUR, NOW])
        submitted = draw(times)
        since = max(submitted, draw(times))
        jobs.append(
            Work(
                id=f"j{number}",
                number=number,
                shape=Shape(gpus=gpus),
                submitted=submitted,
                since=since,
                running=running,
                duration=draw(st.sampled_from([None, HOUR, 10 * HOUR, 200 * HOUR])),
                priority=draw(st.integers(0, 3)),
                queue=draw(st.sampled_from(queues)),
                deadline=draw(st.sampled_from([None, 101 * HOUR, 400 * HOUR])),
                ran=draw(st.sampled_from([0, HOUR // 60, 5 * HOUR])),
                saved=draw(st.sampled_from([-1, 0, NOW - 1000])),
            )
        )
    return jobs


def after(jobs: Sequence[Work], made: Outcome) -> list[Work]:
    """What runs once the plan is carried out."""
    return [found for found in jobs if (found.running and found not in made.stops) or found in made.starts]


def held(jobs: Sequence[Work]) -> int:
    return sum(found.shape.gpus for found in jobs)


MANY = settings(max_examples=200, deadline=None)
TWO = [Queue("a", quota=8), Queue("b", quota=4), Queue("c")]


@MANY
@given(clusters(), st.sampled_from(sorted(ORDERS)), st.sampled_from([0, HOUR]))
def test_no_plan_gives_out_more_gpus_than_there_are_and_none_stops_what_starts(
    jobs: list[Work], order: str, min_run: int
) -> None:
    made = plan_one(jobs, order, Rules(min_run))
    assert held(after(jobs, made)) <= GPUS
    assert all(found.running for found in made.stops)
    assert not any(found.running for found in made.starts)
    assert len({found.id for found in made.stops + made.starts}) == len(made.stops + made.starts)


@MANY
@given(clusters(), st.sampled_from(BY_RANK_ALONE))
def test_no_job_waits_that_would_fit_without_those_that_rank_worse(jobs: list[Work], order: str) -> None:
    made, rank = plan_one(jobs, order), ORDERS[order]().rank
    runs = after(jobs, made)
    for waits in (found for found in jobs if found not in runs):
        better = [found for found in runs if rank(found, NOW) < rank(waits, NOW)]
        assert held(better) + waits.shape.gpus > GPUS


@MANY
@given(clusters(), st.sampled_from([name for name in sorted(ORDERS) if name not in BY_RANK_ALONE]))
def test_nobody_that_could_start_is_passed_by_one_that_ranks_worse(jobs: list[Work], order: str) -> None:
    made, rank = plan_one(jobs, order), ORDERS[order]().rank
    runs = after(jobs, made)
    waiting = [found for found in jobs if found not in runs]  # whoever was stopped may be the first that waits
    if not waiting:
        return
    first = min(waiting, key=lambda found: rank(found, NOW))
    worse = [found for found in made.starts if rank(found, NOW) > rank(first, NOW)]
    assert first.shape.gpus > GPUS - held(runs) + held(worse)


@MANY
@given(clusters(), st.sampled_from(sorted(ORDERS)))
def test_what_has_not_run_for_the_minimum_time_is_not_stopped(jobs: list[Work], order: str) -> None:
    made = plan_one(jobs, order, Rules(min_run=10 * HOUR))
    assert all(NOW - found.since >= 10 * HOUR for found in made.stops)


@MANY
@given(clusters())
def test_orders_that_never_preempt_stop_nothing(jobs: list[Work]) -> None:
    for order in ("fifo", "easy", "priority", "saf"):
        assert plan_one(jobs, order).stops == []


@MANY
@given(clusters())
def test_only_a_higher_priority_that_also_ranks_better_preempts_by_priority(jobs: list[Work]) -> None:
    order = Priority(preempts="priority")
    made = plan_one(jobs, "priority-preempt")
    for stopped in made.stops:
        assert any(
            found.priority > stopped.priority and order.rank(found, NOW) < order.rank(stopped, NOW)
            for found in made.starts
        )


@MANY
@given(clusters(queues=("a", "b", "c")), st.sampled_from(sorted(ORDERS)))
def test_no_queue_waits_within_its_quota_while_others_borrow(jobs: list[Work], order: str) -> None:
    made = plan(jobs, TWO, Rules(order=order))
    runs = after(jobs, made)
    assert held(runs) <= GPUS
    rank = ORDERS[order]().rank
    for name, quota in (("a", 8), ("b", 4)):
        waiting = [found for found in jobs if found.queue == name and found not in runs]
        if waiting:
            first = min(waiting, key=lambda found: rank(found, NOW))
            assert held([found for found in runs if found.queue == name]) + first.shape.gpus > quota


@MANY
@given(clusters(queues=("a", "b", "c")))
def test_reclaim_stops_only_queues_above_their_quota(jobs: list[Work]) -> None:
    made = plan(jobs, TWO, Rules(order="fifo"))
    for stopped in made.stops:
        quota = {"a": 8, "b": 4, "c": 0}[stopped.queue]
        assert held([found for found in jobs if found.running and found.queue == stopped.queue]) > quota
        assert any(found.queue != stopped.queue for found in made.starts)


@MANY
@given(clusters(queues=("a", "a/x", "b")), st.sampled_from(sorted(ORDERS)))
def test_a_limit_holds_for_a_queue_and_all_below_it(jobs: list[Work], order: str) -> None:
    queues = [Queue("a", limit=6), Queue("a/x", limit=4), Queue("b")]
    jobs = [found for found in jobs if not found.running]
    runs = after(jobs, plan(jobs, queues, Rules(order=order)))
    assert held([found for found in runs if found.queue.startswith("a")]) <= 6
    assert held([found for found in runs if found.queue == "a/x"]) <= 4


@MANY
@given(clusters(queues=("a/x", "a/y", "b", "c")), st.sampled_from(sorted(ORDERS)), st.randoms())
def test_a_plan_does_not_depend_on_the_order_in_which_jobs_are_listed(
    jobs: list[Work], order: str, random: object
) -> None:
    def make(listed: list[Work]) -> tuple[list[str], list[str]]:
        made = plan(listed, [*TWO, Queue("a/x"), Queue("a/y")], Rules(order=order))
        return [found.id for found in made.stops], [found.id for found in made.starts]

    mixed = list(jobs)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert make(mixed) == make(jobs)


@MANY
@given(clusters(), st.sampled_from(sorted(ORDERS)), st.lists(st.integers(0, 100 * HOUR), max_size=5))
def test_a_rank_that_is_kept_is_the_one_found_anew(jobs: list[Work], order: str, later: list[int]) -> None:
    made = ORDERS[order]()
    for found in jobs:
        for now in sorted(NOW + more for more in later):
            assert standing(made, found, now) == made.rank(found, now)
            change = next_change(made, found, now)
            assert change > now
            if not found.running and change > now + 1:
                assert made.rank(found, change - 1) == made.rank(found, now)


@MANY
@given(clusters())
def test_whoever_is_stopped_was_needed(jobs: list[Work]) -> None:
    waiting = [found for found in jobs if not found.running]
    jobs = [found for found in jobs if found not in waiting[1:]]
    made = plan_one(jobs, "priority-preempt")
    runs = after(jobs, made)
    assert all(held(runs) + stopped.shape.gpus > GPUS for stopped in made.stops)


def test_the_victim_loses_least_work_and_among_equals_is_the_newest() -> None:
    old = job(1, 4, running=True, since=10, saved=NOW - 5)
    new = job(2, 4, running=True, since=20, saved=NOW - 5)
    dear = job(3, 4, running=True, since=30, saved=NOW - 6)
    asks = job(4, 8, priority=100, submitted=NOW)
    assert plan_one([old, new, dear, asks], "priority-preempt").stops == [new]
    asks = job(4, 12, priority=100, submitted=NOW)
    assert names(plan_one([dear, old, new, asks], "priority-preempt").stops) == ["j1", "j2"]


def test_backfill_starts_only_what_cannot_delay_the_first_that_waits() -> None:
    runs = job(0, 12, running=True, since=NOW, duration=10 * HOUR)
    head = job(1, 14, duration=HOUR)
    long_but_narrow = job(2, 2, duration=100 * HOUR)  # 16 - 14: what the head leaves over
    too_long = job(3, 2, duration=11 * HOUR)
    short = job(4, 2, duration=10 * HOUR)
    made = plan_one([runs, head, too_long, long_but_narrow, short], "easy")
    assert names(made.starts) == ["j3", "j4"]  # the smaller area of the two long ones takes the two spare GPUs
    assert names(plan_one([runs, head, too_long, short], "fifo").starts) == []


def test_the_first_that_waits_is_passed_only_for_a_while_if_no_end_is_known() -> None:
    runs, head, small = job(0, 12, running=True), job(1, 8, since=NOW - HOUR), job(2, 1)
    assert names(plan_one([runs, head, small], "easy", Rules(hold=2 * HOUR)).starts) == ["j2"]
    assert names(plan_one([runs, head, small], "easy", Rules(hold=HOUR)).starts) == []


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 500), st.integers(0, 500))
def test_priority_is_passed_by_age_only_after_the_bound(high: int, low: int, late: int, early: int) -> None:
    order = Priority()
    first = job(1, 1, priority=max(high, low), submitted=max(late, early) * HOUR)
    second = job(2, 1, priority=min(high, low), submitted=min(late, early) * HOUR)
    passed = order.rank(second, NOW) < order.rank(first, NOW)
    assert passed == ((first.submitted - second.submitted) > (first.priority - second.priority) * HOUR)


def test_a_turn_that_is_over_goes_to_the_back_of_the_line() -> None:
    first, second = job(1, GPUS, running=True, since=0), job(2, GPUS, since=HOUR // 2)
    assert plan_one([first, second], "round-robin", now=HOUR - 1).stops == []
    made = plan_one([first, second], "round-robin", now=HOUR)
    assert (names(made.stops), names(made.starts)) == (["j1"], ["j2"])


def test_least_attained_service_goes_down_a_level_and_is_promoted_after_a_long_wait() -> None:
    order = LeastAttained(first=HOUR * 1000, factor=4, patience=10)
    fresh = job(1, 2)
    served = job(2, 2, ran=3 * HOUR, since=NOW - 29 * HOUR)
    assert order.rank(fresh, NOW)[0] == 0
    assert order.rank(served, NOW)[0] == 2  # 6 GPU-hours: beyond 1 and 4
    assert order.changes(served, NOW) == NOW + HOUR
    assert order.rank(served, NOW + HOUR)[0] == 0
    runs = job(3, 2, running=True, since=NOW)
    assert order.changes(runs, NOW) == NOW + HOUR // 2


def test_unknown_durations_come_last_in_smallest_area_first() -> None:
    order = ORDERS["saf"]()
    known, unknown = job(1, 8, duration=HOUR, since=NOW), job(0, 1, since=NOW)
    assert order.rank(known, NOW) < order.rank(unknown, NOW)
    assert order.rank(known, NOW + DAY) > order.rank(unknown, NOW + DAY), "but not for ever"


def test_a_deadline_that_cannot_be_met_does_not_push_others() -> None:
    order = ORDERS["deadline"]()
    lost = job(1, 1, duration=10 * HOUR, deadline=NOW + HOUR, submitted=NOW)
    kept = job(2, 1, duration=HOUR, deadline=NOW + 3 * HOUR, submitted=NOW)
    assert order.rank(kept, NOW) < order.rank(lost, NOW)
    assert order.changes(kept, NOW) == NOW + 2 * HOUR + 1


# --- queues ---


def test_dominant_shares_come_out_as_in_the_paper() -> None:
    """Ghodsi et al. 2011, section 4.1: 9 cpus and 18 GB; A asks <1, 4>, B <3, 1>: 3 tasks of A, 2 of B."""
    shares, wants = Shares([], (0, 9, 18)), {"A": (0, 1, 4), "B": (0, 3, 1)}
    tasks = {"A": 0, "B": 0}
    shares.begin({})
    while True:
        for name in wants:
            shares.offer(name, 0)
        name = shares.pick() or ""
        if any(
            held + more > total for held, more, total in zip(shares.used[""], wants[name], shares.totals, strict=True)
        ):
            break
        shares.charge(name, wants[name])
        tasks[name] += 1
    assert tasks == {"A": 3, "B": 2}


def test_weights_share_among_siblings_and_a_subtree_counts_as_one() -> None:
    queues = [Queue("lab", weight=3), Queue("lab/x"), Queue("lab/y"), Queue("shop")]
    jobs = [job(n, 1, queue=("lab/x", "lab/y", "shop")[n % 3]) for n in range(60)]
    started = plan(jobs, queues, Rules(order="fifo")).starts
    counts = {name: sum(found.queue == name for found in started) for name in ("lab/x", "lab/y", "shop")}
    assert counts == {"lab/x": 6, "lab/y": 6, "shop": 4}


def test_what_a_queue_used_lately_counts_against_it_and_is_forgotten() -> None:
    usage, shares = Usage(half_life=DAY), Shares([], (16_000, 0, 0))
    usage.change("a", (8_000, 0, 0), 0)
    usage.change("a", (8_000, 0, 0), 10 * DAY, -1)
    assert usage.averages(10 * DAY)["a"][0] == pytest.approx(8_000, rel=0.01)
    shares.charge("b", (7_000, 0, 0))
    for day, first in ((10, "b"), (11, "a")):
        shares.begin(usage.averages(day * DAY))
        shares.offer("a", 1)
        shares.offer("b", 1)
        assert shares.pick() == first


@pytest.mark.parametrize(
    ("queues", "word"),
    [
        ([Queue("a", quota=10), Queue("b", quota=7)], "17 GPUs of 16"),
        ([Queue("a", quota=4), Queue("a/x", quota=5)], "5 GPUs of 4"),
        ([Queue("a", quota=4, limit=3)], "limit"),
        ([Queue("a", weight=0)], "weight"),
    ],
)
def test_quotas_that_cannot_be_kept_are_refused(queues: list[Queue], word: str) -> None:
    with pytest.raises(Rejected, match=word):
        check_queues(queues, GPUS)
