"""Splitting off validation and test rows: the same ones every time, and never so that a label is lost."""

from hypothesis import given
from hypothesis import strategies as st

from llmos_trainer.rows import Row
from llmos_trainer.splits import leaked, split_off

LABELS = st.sampled_from("abc")
ROWS = st.lists(st.tuples(st.text(min_size=1, max_size=3), LABELS), max_size=60).map(
    lambda pairs: [Row(at, text, label) for at, (text, label) in enumerate(pairs, 1)]
)
MISSING = st.sampled_from([(), ("validation",), ("test",), ("validation", "test")])
MANY = [Row(at, f"text {at}", "ab"[at % 2]) for at in range(2000)]


@given(ROWS, MISSING)
def test_every_row_falls_on_one_side_and_keeps_its_place(rows: list[Row], missing: tuple[str, ...]) -> None:
    sides = split_off(rows, missing)
    assert set(sides) == {"train", *missing}
    assert sorted(row for side in sides.values() for row in side) == sorted(rows)
    assert all(side == sorted(side) for side in sides.values())


@given(ROWS, MISSING)
def test_train_keeps_every_label_and_shares_no_text(rows: list[Row], missing: tuple[str, ...]) -> None:
    sides = split_off(rows, missing)
    assert {row.label for row in sides["train"]} == {row.label for row in rows}
    assert all(leaked(sides["train"], sides[name]) == 0 for name in missing)


@given(ROWS)
def test_no_split_stays_empty_when_a_text_can_be_spared(rows: list[Row]) -> None:
    spare = {f"{label}{at}": label for label in "abc" for at in range(3)}
    rows = [*rows, *(Row(len(rows) + at, text, label) for at, (text, label) in enumerate(spare.items(), 1))]
    assert all(split_off(rows, ("validation", "test")).values())


def test_about_a_tenth_is_split_off_for_each() -> None:
    sides = split_off(MANY, ("validation", "test"))
    assert {name: round(len(side) / len(MANY), 1) for name, side in sides.items()} == {
        "train": 0.8,
        "validation": 0.1,
        "test": 0.1,
    }


def test_a_row_stays_on_its_side_when_the_file_grows_or_is_reordered() -> None:
    before = split_off(MANY[:1000], ("validation", "test"))
    after = split_off(MANY[::-1], ("validation", "test"))
    assert all(set(before[name]) <= set(after[name]) for name in before)


def test_the_test_rows_are_the_same_whether_validation_is_given_or_not() -> None:
    assert split_off(MANY, ("test",))["test"] == split_off(MANY, ("validation", "test"))["test"]
