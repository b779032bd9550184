"""Dataset trees: every split as JSONL of `{"text", "label"}`, and `dataset.json` with the labels and row counts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from llmos_trainer.rows import Row
from llmos_trainer.splits import SPLITS


class Summary(Struct, frozen=True):
    """`dataset.json`: the labels, sorted (a label's place is its number), and how many rows each split has."""

    labels: list[str]
    rows: dict[str, int]


class LabelledText(Struct, frozen=True):
    """One line of a split."""

    text: str
    label: str


class Dataset(NamedTuple):
    """A dataset in memory: splits as (text, label) rows."""

    labels: list[str]
    splits: dict[str, list[tuple[str, str]]]


def write_dataset(folder: Path, splits: Mapping[str, Sequence[Row]]) -> Summary:
    """Write a dataset tree to the new folder; equal rows give equal bytes."""
    folder.mkdir(parents=True)
    encoder = msgspec.json.Encoder()
    for name in SPLITS:
        rows = (LabelledText(row.text, row.label) for row in splits[name])
        (folder / f"{name}.jsonl").write_bytes(encoder.encode_lines(rows))
    summary = Summary(labels_of(splits["train"]), {name: len(splits[name]) for name in SPLITS})
    (folder / "dataset.json").write_bytes(encoder.encode(summary) + b"\n")
    return summary


def load_dataset(folder: Path) -> Dataset:
    """Read a dataset tree whose digests were verified."""
    summary = msgspec.json.decode((folder / "dataset.json").read_bytes(), type=Summary)
    lines = msgspec.json.Decoder(LabelledText)
    splits = {
        name: [(row.text, row.label) for row in lines.decode_lines((folder / f"{name}.jsonl").read_bytes())]
        for name in SPLITS
    }
    return Dataset(summary.labels, splits)


def labels_of(rows: Iterable[Row]) -> list[str]:
    """The labels that occur, sorted."""
    return sorted({row.label for row in rows})
