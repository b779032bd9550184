"""Reading specs: values, lines, and every way in which a file can be wrong."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.contracts.jobs import Fault
from llmos.errors import Rejected
from llmos_cli.specfile import override, read_spec


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("012", 12),
        ("0x10", 16),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("2026-01-01", "2026-01-01"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("2GiB", "2GiB"),
        ("1:30", "1:30"),
        (".inf", ".inf"),
        ("'5'", "5"),
        ("[1, a]", [1, "a"]),
    ],
)
def test_a_yaml_value_is_what_json_can_carry_and_a_reader_expects(text: str, value: Any) -> None:
    read = read_spec(f"x: {text}\n", "job.yaml").spec["x"]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: 1\na: 2\n", "job.yaml:2:1", "'a' is given twice"),
        ("a:\n  b: 1\n  b: 2\n", "job.yaml:3:3", "'b' is given twice"),
        ("a: [1\n", "job.yaml:2:1", "expected ',' or ']'"),
        ("a: 1\n---\nb: 1\n", "job.yaml:2:1", "another document"),
        ("a: &x 1\nb: *x\n", "job.yaml:2:4", "aliases"),
        ("a: &x [*x]\n", "job.yaml:1:8", "aliases"),
        ("a: !!python/object:os.system x\n", "job.yaml:1:4", "tag"),
        ("? [a]\n: b\n", "job.yaml:1:3", "plain text"),
        ("\ta: 1\n", "job.yaml:1:1", "cannot start any token"),
        ("- a\n", "job.yaml", "a mapping of fields, not a list"),
        ("", "job.yaml", "not empty"),
        ("just text", "job.yaml", "not text"),
        ("a: \x00\n", "job.yaml", "unacceptable character"),
    ],
)
def test_a_wrong_yaml_file_is_refused_with_its_line_and_column(text: str, where: str, what: str) -> None:
    with pytest.raises(Rejected) as raised:
        read_spec(text, "job.yaml")
    assert raised.value.problem.message.startswith(f"{where}: ")
    assert what in raised.value.problem.message
    assert raised.value.problem.remedy


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{\n "a": 1,\n}', "job.json:3:1: "),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("[]", "a mapping of fields, not a list"),
        ("a: 1", "job.json:1:1: "),
    ],
)
def test_a_wrong_json_file_is_refused_with_its_line(text: str, what: str) -> None:
    with pytest.raises(Rejected, match=r"job\.json") as raised:
        read_spec(text, "job.json", as_json=True)
    assert what in raised.value.problem.message


def test_a_fault_is_shown_at_the_line_of_its_field_or_of_the_nearest_one_above() -> None:
    read = read_spec("name: x\ntrain:\n  epochs: 0\n", "job.yaml")
    faults = [Fault("train.epochs", "must be at least 1"), Fault("train.steps", "no"), Fault("model", "is missing")]
    assert read.locate(faults) == [
        "job.yaml:1: model: is missing",
        "job.yaml:2: train.steps: no",
        "job.yaml:3: train.epochs: must be at least 1",
    ]


def test_json_with_tabs_keeps_its_values_and_has_lines_where_yaml_can_read_it() -> None:
    assert read_spec('{\n\t"a": 1}', "job.json", as_json=True).spec == {"a": 1}
    assert read_spec('{\n "a": {"b": 1}}', "job.json", as_json=True).lines == {"a": 2, "a.b": 2}


_SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(_VALUES)
def test_whatever_json_holds_is_read_as_json_has_it(value: Any) -> None:
    assert read_spec(json.dumps({"x": value}), "job.json", as_json=True).spec == {"x": value}


def test_settings_override_fields_and_make_what_is_missing() -> None:
    spec = {"train": {"epochs": 3}, "gate": None}
    changed = override(spec, ["train.epochs=1", "gate.accuracy.min=0.9", "name=a=b", "export={precision: int8}"])
    assert changed == {
        "train": {"epochs": 1}, "gate": {"accuracy": {"min": 0.9}}, "name": "a=b", "export": {"precision": "int8"},
    }  # fmt: skip
    assert spec == {"train": {"epochs": 3}, "gate": None}


@pytest.mark.parametrize("setting", ["train.epochs", "=1", "a..b=1", "name.x=1", "a=[1"])
def test_a_setting_that_can_not_be_applied_is_named(setting: str) -> None:
    with pytest.raises(Rejected, match="--set"):
        override({"name": "x"}, [setting])
