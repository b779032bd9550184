"""A check reads everything before it says anything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmos.contracts.jobs import Fault
from llmos_trainer.checking import run
from llmos_trainer.faults import LISTED
from llmos_trainer.orders import CheckOrder, Faulted, Finished

Rows = list[dict[str, Any]]


@pytest.fixture
def check(tape: Any, tiny_model: Path, tmp_path: Path) -> Callable[..., Finished | list[str]]:
    """Check rows by split: what it made, or the faults as text."""

    def do(
        *,
        base: Path = tiny_model,
        faults: tuple[Fault, ...] = (),
        max_length: int = 64,
        work: str = "work",
        **rows: Rows,
    ) -> Finished | list[str]:
        files = {}
        for name, content in rows.items():
            path = tmp_path / f"{name}.jsonl"
            path.write_bytes(msgspec.json.Encoder().encode_lines(content))
            files[name] = str(path)
        references = {name: f"s3://data/{name}.jsonl" for name in files}
        order = CheckOrder(
            files, references, list(faults), "text", "label", str(base), max_length, str(tmp_path / work)
        )
        run(msgspec.json.encode(order), tape)
        last = tape.last
        if isinstance(last, Faulted):
            return [str(fault) for fault in last.faults]
        assert isinstance(last, Finished), last
        return last

    return do


def test_a_dataset_tree_holds_three_splits_and_its_labels(check: Any, rows_of: Any) -> None:
    done = check(train=rows_of(100))
    folder = Path(done.trees["dataset"])
    summary = json.loads((folder / "dataset.json").read_text())
    assert summary["labels"] == ["billing", "shipping", "technical"]
    splits = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in ("train", "validation", "test")}
    assert summary["rows"] == {name: len(lines) for name, lines in splits.items()}
    assert sum(summary["rows"].values()) == 100
    assert all(set(json.loads(line)) == {"text", "label"} for lines in splits.values() for line in lines)
    assert done.metrics["rows_train"] == summary["rows"]["train"]


def test_equal_files_give_equal_trees(check: Any, rows_of: Any) -> None:
    trees = [check(train=rows_of(50), work=work).trees for work in ("one", "two")]
    for role in ("dataset", "base"):
        first, second = ({at.name: at.read_bytes() for at in Path(tree[role]).iterdir()} for tree in trees)
        assert first == second


def test_faults_of_all_files_and_of_the_model_come_at_once(check: Any, rows_of: Any) -> None:
    faults = check(
        train=[*rows_of(20), {"text": "", "label": "x"}],
        test=[{"text": "hi"}],
        faults=(Fault("data.validation", "there is no such file"),),
        max_length=100,
    )
    assert faults == [
        "data.validation: there is no such file",
        "s3://data/train.jsonl:21: 'text' is empty",
        "s3://data/test.jsonl:1: no 'label'; there is 'text'",
        "model.base: train.max_length is 100, and the model reads 64 tokens. Set it to 64 or less.",
    ]


def test_only_the_first_hundred_faults_are_listed_and_the_rest_counted(check: Any, rows_of: Any) -> None:
    faults = check(train=[{"text": 1, "label": "x"}] * 250)
    assert len(faults) == LISTED + 1
    assert faults[-1] == "data: 150 more faults are not listed"


def test_labels_that_train_does_not_know_are_faults_where_they_stand(check: Any, rows_of: Any) -> None:
    faults = check(
        train=rows_of(30),
        validation=[{"text": "a", "label": "billing"}, {"text": "b", "label": "other"}],
        test=[{"text": "c", "label": 5}],
    )
    assert faults == [
        "s3://data/validation.jsonl:2: the label 'other' does not occur in train",
        "s3://data/test.jsonl:1: the label '5' does not occur in train",
    ]


def test_a_single_label_is_a_fault(check: Any) -> None:
    faults = check(train=[{"text": f"t{at}", "label": "x"} for at in range(50)])
    assert faults == ["s3://data/train.jsonl: there is only the label 'x', and a classifier needs at least two"]


def test_an_empty_file_is_a_fault(check: Any, rows_of: Any) -> None:
    assert check(train=rows_of(30), test=[]) == ["s3://data/test.jsonl: there is no row"]


def test_too_few_rows_to_split_are_a_fault(check: Any) -> None:
    faults = check(train=[{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    assert [fault.split(": ", 1)[1] for fault in faults] == [
        "there are too few rows to split validation off: add rows, or give data.validation",
        "there are too few rows to split test off: add rows, or give data.test",
    ]


def test_test_rows_that_are_trained_on_are_counted_and_no_fault(check: Any, rows_of: Any) -> None:
    rows = rows_of(40)
    assert check(train=rows, test=[*rows[:3], {"text": "new", "label": "billing"}]).metrics["leaked_rows"] == 3


def test_a_base_without_a_model_is_a_fault_beside_the_data(check: Any, rows_of: Any, tmp_path: Path) -> None:
    [fault] = check(train=rows_of(30), base=tmp_path)
    assert fault.startswith("model.base: there is no config.json")
