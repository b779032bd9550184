"""The order of training is a pure function of seed and step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.contracts.jobs import TrainSettings
from llmos_trainer.batches import BatchOrder, draw, epoch_batches, plan

LENGTHS = st.lists(st.integers(1, 128), min_size=1, max_size=300)


@given(LENGTHS, st.integers(1, 20), st.integers(0, 3))
def test_an_epoch_has_every_row_once_in_full_batches(lengths: list[int], size: int, epoch: int) -> None:
    batches = epoch_batches(lengths, size, 7, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert sorted(len(batch) for batch in batches)[1:] == [size] * (len(batches) - 1)
    assert batches == epoch_batches(lengths, size, 7, epoch)


def test_the_longest_batch_comes_first_of_all() -> None:
    lengths = [row % 97 for row in range(500)]
    assert max(lengths[row] for row in epoch_batches(lengths, 8, 1, 0)[0]) == 96


def test_rows_of_like_length_come_together() -> None:
    lengths = [(row * 37) % 101 + 1 for row in range(2000)]
    padded = sum(max(lengths[row] for row in batch) * len(batch) for batch in epoch_batches(lengths, 16, 1, 1))
    assert sum(lengths) / padded > 0.9


def test_epochs_and_seeds_differ_in_order_and_in_batches() -> None:
    lengths = [10 + row % 5 for row in range(64)]
    orders = [epoch_batches(lengths, 8, seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert all({frozenset(b) for b in a} != {frozenset(b) for b in c} for a in orders for c in orders if a is not c)


def test_the_order_never_changes_between_versions() -> None:
    """What a checkpoint of an older version was trained on must be what a newer one goes on with."""
    assert epoch_batches([3, 1, 4, 1, 5, 9, 2, 6], 3, seed=42, epoch=1) == [[7, 3], [5, 2, 1], [4, 0, 6]]
    assert draw(42, "dropout", 7) == 6172439917264677926


def test_a_step_finds_its_batch_whatever_was_asked_before() -> None:
    lengths, settings = [row % 13 for row in range(50)], TrainSettings(epochs=3, batch_size=8)
    laid = plan(50, settings)
    straight = BatchOrder(lengths, laid, settings)
    expected = [straight.batch(step) for step in range(laid.steps)]
    jumping = BatchOrder(lengths, laid, settings)
    assert [jumping.batch(step) for step in reversed(range(laid.steps))] == expected[::-1]


@pytest.mark.parametrize(
    ("settings", "steps", "warmup"),
    [
        (TrainSettings(batch_size=16), 21, 2),
        (TrainSettings(batch_size=16, epochs=2, warmup=0), 14, 0),
        (TrainSettings(batch_size=16, steps=5, warmup=3), 5, 3),
        (TrainSettings(batch_size=16, steps=1), 1, 1),
        (TrainSettings(batch_size=16, steps=4, warmup=100), 4, 4),
    ],
)
def test_steps_follow_from_epochs_unless_they_are_given(settings: TrainSettings, steps: int, warmup: int) -> None:
    laid = plan(100, settings)
    assert (laid.steps, laid.steps_per_epoch, laid.warmup_steps) == (steps, 7, warmup)
    rates = [laid.rate(step) for step in range(steps)]
    assert all(0 < rate <= settings.learning_rate for rate in rates)
    assert max(rates) == settings.learning_rate


def test_the_rate_rises_over_the_warmup_and_falls_to_nothing() -> None:
    laid = plan(100, TrainSettings(steps=10, warmup=4, learning_rate=1.0))
    assert [round(laid.rate(step), 3) for step in range(11)] == [
        0.25, 0.5, 0.75, 1.0, 1.0, 0.833, 0.667, 0.5, 0.333, 0.167, 0.0
    ]  # fmt: skip


def test_an_epoch_ends_after_its_last_step_and_at_the_last_of_all() -> None:
    laid = plan(32, TrainSettings(batch_size=8, steps=10))
    assert [step for step in range(11) if laid.ends_epoch(step)] == [4, 8, 10]
