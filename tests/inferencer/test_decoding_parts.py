"""Rules of the decoder engine's parts that need no model."""

import codecs
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import Rejected
from llmos_inferencer.decoding import plan
from llmos_inferencer.decoding.cache import Cache, Plane
from llmos_inferencer.decoding.plan import Limits, Line, Prompt, Room, Want
from llmos_inferencer.decoding.prefixes import BLOCK, Prefixes
from llmos_inferencer.decoding.request import Sampling
from llmos_inferencer.decoding.sampling import choose, logprobs, uniform
from llmos_inferencer.decoding.text import Detokenizer, StopTexts

# --- who is next ---


def want(number: int, tenant: str = "a", *, rank: int = 0, priority: int = 0, rows: int = 1, tokens: int = 10) -> Want:
    return Want(f"r{number}", number, rows, tokens, tenant, rank, priority)


def served(line: Line, cost: int = 10) -> list[str]:
    order = []
    while (head := line.head()) is not None:
        line.remove(head.id)
        line.charge(head.tenant, cost)
        order.append(head.id)
    return order


def test_interactive_goes_before_batch_and_a_higher_priority_first() -> None:
    line = Line()
    for item in (want(1, rank=1), want(2), want(3, priority=5), want(4, rank=1, priority=9)):
        line.add(item)
    assert served(line) == ["r3", "r2", "r4", "r1"]


def test_a_tenant_with_many_requests_does_not_hold_another_up() -> None:
    line = Line()
    for number in range(6):
        line.add(want(number, "many"))
    line.add(want(6, "few"))
    line.add(want(7, "few"))
    assert served(line)[:4] == ["r0", "r6", "r1", "r7"]


def test_a_tenant_that_idled_has_saved_nothing_up() -> None:
    line = Line()
    line.add(want(0, "busy"))
    line.charge("busy", 1000)
    line.add(want(1, "busy"))
    line.add(want(2, "back"))
    for number in range(3, 6):
        line.add(want(number, "back"))
    assert served(line)[:4] == ["r0", "r2", "r1", "r3"]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 50), st.booleans()), max_size=30))
def test_room_never_promises_more_than_there_is(steps: list[tuple[int, int, bool]]) -> None:
    limits = Limits(4, 64, 100)
    room = Room(limits)
    held: list[tuple[Want, list[int]]] = []
    for number, (rows, tokens, leave) in enumerate(steps):
        if leave and held:
            item, taken = held.pop(0)
            for row in taken:
                room.give_back(row, item.tokens)
        item = want(number, rows=rows, tokens=tokens)
        if room.fits(item):
            held.append((item, [room.take(item)] + [room.take_kept() for _ in range(rows - 1)]))
        rows_taken = [row for _, taken in held for row in taken]
        assert len(set(rows_taken)) == len(rows_taken) <= limits.rows
        assert room.promised == sum(item.rows * item.tokens for item, _ in held) <= limits.tokens


@pytest.mark.parametrize(
    ("prompt", "tokens", "n", "said"),
    [
        (60, 10, 1, "64"),
        (64, 1, 1, "fewer than 64"),
        (10, 10, 5, "4 slots"),
        (30, 30, 2, "100 tokens"),
        (0, 5, 1, "empty"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers(prompt: int, tokens: int, n: int, said: str) -> None:
    with pytest.raises(Rejected, match=said):
        plan.refuse_unless_fits(prompt, tokens, n, Limits(4, 64, 100))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.integers(32, 200))
def test_every_prompt_is_computed_whole_in_chunks_of_several_tokens(lengths: list[int], tokens: int) -> None:
    prompts = [Prompt(row, row, 0, length, 0) for row, length in enumerate(lengths)]
    for step in range(1000):
        chunk = plan.next_chunk([prompt for prompt in prompts if prompt.done < prompt.length], tokens, step)
        if chunk is None:
            break
        prompt, end = chunk
        assert end - prompt.done > 1 or prompt.length == 1
        assert end - prompt.done <= tokens + 1
        prompt.done, prompt.chunks = end, prompt.chunks + 1
    assert all(prompt.done == prompt.length for prompt in prompts)


def test_a_hole_is_filled_from_the_end_once_it_stayed() -> None:
    since: dict[int, int] = {}
    assert plan.moves([0, 3, 2], [0, 2, 3], since, 1) == []
    assert plan.moves([0, 3, 2], [0, 2, 3], since, 1 + plan.PATIENCE) == [(3, 1)]
    assert plan.moves([0, 1, 2], [0, 1, 2], since, 9) == [] and not since


# --- sampling ---

LOGITS = np.array([0.0, 3.0, 1.0, 2.0, -1.0], np.float32)


def draws(sampling: Sampling, logits: np.ndarray = LOGITS, count: int = 300) -> set[int]:
    return {choose(logits, sampling, uniform(1, 0, position)) for position in range(count)}


def test_each_cut_leaves_the_likeliest() -> None:
    assert draws(Sampling()) == {1}
    assert draws(Sampling(temperature=1.0)) == {0, 1, 2, 3, 4}
    assert draws(Sampling(temperature=1.0, top_k=2)) == {1, 3}
    assert draws(Sampling(temperature=1.0, top_p=0.6)) == {1}
    assert draws(Sampling(temperature=1.0, top_p=0.8)) == {1, 3}
    assert draws(Sampling(temperature=1.0, min_p=0.1)) == {1, 2, 3}


def test_a_large_vocabulary_is_cut_as_a_small_one() -> None:
    logits = np.random.default_rng(0).normal(size=32_000).astype(np.float32)
    weights = np.exp(logits.astype(np.float64))
    order = np.argsort(-weights, kind="stable")
    enough = int(np.searchsorted(np.cumsum(weights[order]), 0.3 * weights.sum())) + 1
    assert draws(Sampling(temperature=1.0, top_p=0.3), logits, 50) <= set(order[:enough].tolist())
    assert choose(logits, Sampling(temperature=1.0, top_p=0.3), 0.0) == order[0]


def test_frequencies_are_the_probabilities() -> None:
    count = 20_000
    sampling = Sampling(temperature=2.0)
    found = np.bincount([choose(LOGITS, sampling, uniform(9, 0, at)) for at in range(count)], minlength=5) / count
    weights = np.exp(LOGITS / 2.0)
    assert np.abs(found - weights / weights.sum()).max() < 0.02


def test_a_repeated_token_is_made_less_likely() -> None:
    seen = np.array([1], np.intp)
    assert choose(LOGITS, Sampling(repetition_penalty=2.0), 0.0, seen=seen) == 3
    assert LOGITS[1] == 3.0


def test_what_is_not_allowed_never_comes() -> None:
    allowed = np.array([True, False, True, False, True])
    assert choose(LOGITS, Sampling(), 0.0, allowed=allowed) == 2


def test_logprobs_are_of_the_model_itself() -> None:
    chosen = logprobs(LOGITS, 3, 2)
    expected = LOGITS - np.log(np.exp(LOGITS).sum())
    assert chosen.logprob == pytest.approx(expected[3], abs=1e-5)
    assert [id for id, _ in chosen.top] == [1, 3]


def test_draws_differ_by_seed_output_and_position() -> None:
    numbers = {uniform(seed, output, place) for seed in range(9) for output in range(9) for place in range(9)}
    assert len(numbers) == 729 and all(0 <= number < 1 for number in numbers)


# --- text ---


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
def test_pieces_are_a_beginning_of_the_text_and_never_half_a_character(data: bytes) -> None:
    pieces = Detokenizer(Bytes())
    told = "".join(pieces.feed(byte) for byte in data)
    whole = data.decode(errors="replace")
    assert whole.startswith(told)
    assert len(whole) - len(told) <= 3
    if codecs.decode(data, errors="ignore") == whole:
        assert told == whole


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_no_part_of_a_stop_text_is_told(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=8))})
    pieces = [text[left:right] for left, right in pairwise(cuts)]
    watch, told, stopped = StopTexts(stops), "", False
    for piece in pieces:
        part, stopped = watch.feed(piece)
        told += part
        if stopped:
            break
    else:
        told += watch.flush()
    # A stop text is met as soon as it is there: the one that ends first.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert told == text and not stopped
    else:
        assert stopped
        assert all(stop not in told for stop in stops)
        assert any(text.startswith(told + stop) for stop in stops)


# --- prefixes and cache ---


def test_a_known_beginning_is_found_and_two_tokens_are_left_to_compute() -> None:
    prefixes = Prefixes(1000)
    known = list(range(100))
    prefixes.keep(known, "saved", 10)
    assert prefixes.find([*known[:80], 999, 999, 999]) == (80, "saved")
    assert prefixes.find(known) == (98, "saved")
    assert prefixes.find([*known, 1, 2, 3]) == (100, "saved")
    assert prefixes.find(known[: BLOCK - 1]) == (0, None)
    assert prefixes.find([5, *known]) == (0, None)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 90), st.integers(1, 60)), max_size=40))
def test_what_was_used_last_stays_and_the_budget_holds(kept: list[tuple[int, int, int]]) -> None:
    prefixes = Prefixes(100)
    for first, length, size in kept:
        prefixes.keep([first] * length, (first, length), size)
        assert prefixes.size <= 100
        found, saved = prefixes.find([first] * (length + 2))
        if length >= BLOCK:
            assert found >= min(length, BLOCK) and saved[0] == first
    prefixes.keep([9], None, 100)
    assert prefixes.size == 100 and not prefixes._blocks


def test_rows_are_copied_saved_and_dropped() -> None:
    cache = Cache([Plane("k", "p", 2, 16, "float32"), Plane("v", "q", 2, 16, "float32")], 3, 100)
    assert cache.pitch % 64 == 0
    for number, array in enumerate(cache.arrays):
        array[0] = number + 1
    cache.touch(0, 50)
    cache.copy(0, 2, 30)
    assert cache.arrays[1][2, :, :30].min() == 2 and not cache.arrays[1][2, :, 30:].any()
    cache.load(1, cache.save(2, 20), 10)
    assert cache.arrays[0][1, :, :10].min() == 1 and not cache.arrays[0][1, :, 10:].any()
    assert cache.resident == (50 + 30 + 10) * cache.token_bytes
    cache.drop(0)
    assert not cache.arrays[0][0].any() and cache.arrays[0][2, 0, 0, 0] == 1
    assert cache.resident == 40 * cache.token_bytes
