"""The pure decisions: converging, batching, making room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llmos.contracts.deployments import ReplicaAssigned
from llmos.contracts.models import ModelVersion
from llmos_inferencer import state
from llmos_inferencer.core import (
    Bring,
    Confirm,
    Limits,
    Queue,
    Resident,
    TakeDown,
    Waiting,
    chosen,
    converge,
    make_room,
    next_retry,
)


def version(number: int) -> ModelVersion:
    return ModelVersion("mood", number, "default", "text-classification", f"sha256:{number:064x}", "job-1", 0.0)


def assigned(generation: int, number: int | None = 1) -> ReplicaAssigned:
    if number is None:
        return ReplicaAssigned("mood", "edge-1", generation, desired="absent")
    return ReplicaAssigned("mood", "edge-1", generation, version=version(number))


def desired(want: ReplicaAssigned) -> state.Desired:
    return state.heard({}, want)


def test_a_new_deployment_is_brought_up() -> None:
    assert converge(desired(assigned(1)), {}, now=0.0) == [Bring(assigned(1))]


def test_nothing_happens_while_a_generation_is_under_way_and_after_it_is_up() -> None:
    want = assigned(1)
    actual = state.began({}, want)
    assert converge(desired(want), actual, now=0.0) == []
    assert converge(desired(want), state.came_up(actual, want), now=0.0) == []


def test_a_newer_version_is_brought_up_beside_the_older_which_stays_the_one_that_serves() -> None:
    actual = state.came_up({}, assigned(1, 1))
    newer = assigned(2, 2)
    assert converge(desired(newer), actual, now=0.0) == [Bring(newer)]
    assert state.began(actual, newer)["mood"].version == version(1)


def test_a_newer_generation_of_what_serves_is_confirmed_and_not_loaded_again() -> None:
    actual = state.came_up({}, assigned(1, 1))
    assert converge(desired(assigned(2, 1)), actual, now=0.0) == [Confirm(assigned(2, 1))]


def test_going_back_to_what_still_serves_after_a_failed_version_loads_nothing() -> None:
    newer = assigned(2, 2)
    actual = state.began(state.came_up({}, assigned(1, 1)), newer)
    actual = state.failed(actual, newer, retryable=False, now=0.0, version=version(1))
    assert converge(desired(assigned(3, 1)), actual, now=0.0) == [Confirm(assigned(3, 1))]


def test_a_canary_beside_what_serves_is_brought_up_and_another_weight_only_confirmed() -> None:
    actual = state.came_up({}, assigned(1, 1))
    beside = replace(assigned(2, 1), canary=version(2), weight=10)
    assert converge(desired(beside), actual, now=0.0) == [Bring(beside)]
    heavier = replace(beside, generation=3, weight=50)
    assert converge(desired(heavier), state.came_up(actual, beside), now=0.0) == [Confirm(heavier)]


def test_the_canary_answers_its_share_of_the_requests_and_always_the_same_ones() -> None:
    ids = [f"r-{number}" for number in range(4000)]
    for weight in (0, 1, 10, 50, 99, 100):
        by_canary = {id for id in ids if chosen(id, weight)}
        assert abs(len(by_canary) / len(ids) - weight / 100) < 0.03
        assert by_canary <= {id for id in ids if chosen(id, min(weight + 1, 100))}


def test_an_absent_deployment_is_taken_down_once_even_if_it_never_was_here() -> None:
    gone = assigned(2, None)
    assert converge(desired(gone), state.came_up({}, assigned(1)), now=0.0) == [TakeDown(gone)]
    assert converge(desired(gone), {}, now=0.0) == [TakeDown(gone)]
    assert converge(desired(gone), state.taken_down({}, gone), now=0.0) == []


def test_a_deployment_that_was_taken_down_can_come_back() -> None:
    actual = state.taken_down({}, assigned(2, None))
    assert converge(desired(assigned(3)), actual, now=0.0) == [Bring(assigned(3))]


def test_an_older_generation_heard_late_changes_nothing() -> None:
    table = desired(assigned(5))
    assert state.heard(table, assigned(4, 2)) == table


def test_who_assigns_the_same_generation_again_hears_the_answer_again() -> None:
    actual = state.asked_again(state.came_up({}, assigned(1)), assigned(1))
    assert converge(desired(assigned(1)), actual, now=0.0) == [Confirm(assigned(1))]


def test_a_generation_assigned_again_while_it_is_brought_up_is_not_brought_up_twice() -> None:
    actual = state.asked_again(state.began({}, assigned(1)), assigned(1))
    assert converge(desired(assigned(1)), actual, now=0.0) == []


def test_what_failed_is_tried_again_with_growing_waits_and_what_cannot_be_helped_never() -> None:
    want = assigned(1)
    actual, now, waits = state.began({}, want), 0.0, []
    for _ in range(9):
        actual = state.failed(actual, want, retryable=True, now=now, version=None)
        retry = next_retry(actual)
        assert retry is not None
        assert converge(desired(want), actual, now=retry - 0.01) == []
        assert converge(desired(want), actual, now=retry) == [Bring(want)]
        waits.append(retry - now)
        actual, now = state.began(actual, want), retry
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    actual = state.failed(actual, want, retryable=False, now=now, version=None)
    assert next_retry(actual) is None
    assert converge(desired(want), actual, now=1e9) == []


def test_a_new_generation_forgets_the_failures_of_the_one_before() -> None:
    actual = state.failed(state.began({}, assigned(1)), assigned(1), retryable=False, now=0.0, version=None)
    assert converge(desired(assigned(2)), actual, now=0.0) == [Bring(assigned(2))]
    assert state.began(actual, assigned(2))["mood"].failures == 0


# --- batches ---


def waiting(*lengths: int, session: int = 1, rank: int = 0, first: int = 0) -> list[Waiting]:
    return [Waiting(session, rank, first + at, length) for at, length in enumerate(lengths)]


def queue(*items: Waiting, limits: Limits | None = None) -> Queue[Waiting]:
    queue: Queue[Waiting] = Queue(limits)
    for item in items:
        queue.add(item)
    return queue


def test_nothing_waits_nothing_runs() -> None:
    assert queue().next_batch() == []


def test_one_input_runs_at_once_whatever_its_length() -> None:
    (only,) = waiting(5000)
    assert queue(only, limits=Limits(tokens=1024)).next_batch() == [only]


def test_interactive_inputs_go_before_batch_inputs_that_came_earlier() -> None:
    early, late = waiting(8, 8, rank=1), waiting(8, first=10)
    both = queue(*early, *late)
    assert [both.next_batch(), both.next_batch()] == [late, early]


def test_the_oldest_input_is_always_in_the_batch() -> None:
    oldest, *others = waiting(100, 10, 10, 10, 10)
    row = queue(*others, oldest)
    assert [row.next_batch(), row.next_batch()] == [[oldest], others]


def test_inputs_of_two_sessions_never_share_a_batch() -> None:
    mine, others = waiting(8, 8), waiting(8, 8, session=2, first=2)
    both = queue(*mine, *others)
    assert [both.next_batch(), both.next_batch()] == [mine, others]


def test_an_input_joins_when_its_padding_costs_less_than_a_run_of_its_own() -> None:
    row = queue(*waiting(40, 41, 17, 15), limits=Limits(overhead=24))
    assert [item.length for item in row.next_batch()] == [17, 40, 41]


def test_what_is_withdrawn_is_in_no_batch() -> None:
    items = waiting(8, 9, 10, 8)
    row = queue(*items)
    row.withdraw(items[:2])
    row.withdraw(items[:1])
    assert row.next_batch() == [items[3], items[2]]
    row.withdraw(items)
    assert row.next_batch() == []


lengths = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 1), st.integers(1, 3)), min_size=1, max_size=60)
limits = st.builds(Limits, rows=st.integers(1, 16), tokens=st.integers(16, 2048), overhead=st.integers(0, 64))


@given(lengths, limits)
def test_every_batch_keeps_the_limits_and_every_input_is_computed_once(
    row: list[tuple[int, int, int]], limits: Limits
) -> None:
    left = [Waiting(session, rank, at, length) for at, (length, rank, session) in enumerate(row)]
    waiting = queue(*left, limits=limits)
    computed = []
    while batch := waiting.next_batch():
        head = min(left, key=lambda item: (item.rank, item.arrived))
        longest = max(item.length for item in batch)
        assert any(item is head for item in batch)
        assert len({(item.session, item.rank) for item in batch}) == 1
        assert len(batch) <= limits.rows
        assert len(batch) == 1 or len(batch) * longest <= limits.tokens
        alone = sum(item.length + limits.overhead for item in batch)
        assert limits.overhead + len(batch) * longest <= alone
        computed += batch
        left = [item for item in left if not any(item is other for other in batch)]
    assert sorted(item.arrived for item in computed) == list(range(len(row)))


# --- memory ---

RESIDENT = [Resident("old", 40, 1.0), Resident("new", 30, 9.0), Resident("middle", 20, 5.0)]


@pytest.mark.parametrize(
    ("need", "unload"),
    [(10, []), (11, ["old"]), (50, ["old"]), (70, ["old", "middle"]), (100, ["old", "middle", "new"])],
)
def test_the_least_recently_used_sessions_make_room_and_no_more_of_them_than_needed(
    need: int, unload: list[str]
) -> None:
    assert make_room(RESIDENT, need, budget=100) == unload


def test_a_pinned_model_never_makes_room() -> None:
    pinned = [replace(each, pinned=each.track == "old") for each in RESIDENT]
    assert make_room(pinned, 30, 100) == ["middle"]
    assert make_room(pinned, 60, 100) == ["middle", "new"]
    assert make_room(pinned, 61, 100) is None


def test_what_would_not_fit_into_an_empty_process_unloads_nobody() -> None:
    assert make_room(RESIDENT, 101, budget=100) is None


def test_a_replica_that_is_lost_serves_no_version() -> None:
    actual = state.failed(state.came_up({}, assigned(1)), assigned(1), retryable=True, now=0.0, version=None)
    assert actual["mood"].version is None
    assert converge(desired(assigned(1)), actual, now=1.0) == [Bring(assigned(1))]
