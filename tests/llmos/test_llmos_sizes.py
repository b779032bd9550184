"""Sizes: one way to read them in specs and settings, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import Fatal, Rejected
from llmos.sizes import LARGEST, format_bytes, parse_bytes, parse_setting


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0),
        ("1024", 1024),
        (" 512 MiB ", 512 << 20),
        ("1.5gib", 3 << 29),
        ("2Gi", 2 << 30),
        ("2G", 2 << 30),
        ("2GB", 2 * 10**9),
        ("7B", 7),
        (2**60, LARGEST),
    ],
)
def test_sizes_are_read_in_binary_and_decimal_units(text: int | str, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "much", "-1", "1XB", "1 2", "1.5.5GiB", "1e3", "٣GiB", "0x10", -1, "9" * 19])
def test_what_is_no_size_is_refused(text: int | str) -> None:
    with pytest.raises(Rejected):
        parse_bytes(text)


def test_a_setting_that_is_no_size_is_named_with_the_remedy() -> None:
    assert parse_setting("2GiB", "memory") == 2 << 30
    with pytest.raises(Fatal, match=r"LLMOS_MODEL_CACHE: 'lots' .* 512MiB"):
        parse_setting("lots", "model_cache")


@pytest.mark.parametrize(("amount", "text"), [(0, "0B"), (1023, "1023B"), (256 << 20, "256MiB"), (3 << 29, "1.5GiB")])
def test_a_size_is_shown_in_the_largest_unit_that_fits(amount: int, text: str) -> None:
    assert format_bytes(amount) == text


@given(st.integers(0, 2**50))
def test_what_is_shown_reads_back_within_the_shown_digits(amount: int) -> None:
    assert abs(parse_bytes(format_bytes(amount)) - amount) <= amount * 0.05


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_rejected(text: str) -> None:
    try:
        assert 0 <= parse_bytes(text) <= LARGEST
    except Rejected as error:
        assert error.problem.message
