"""Checking a job that trains nothing: may its base be exported for the task, and what can its gate be measured on?

Every fault at once, before any weight is loaded. Without one the dataset tree and the base tree are made.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llmos.contracts.jobs import COLUMNS
from llmos.errors import Rejected
from llmos_trainer import pretrained
from llmos_trainer.exportable import examine, labels_of, stage
from llmos_trainer.faults import Faults
from llmos_trainer.orders import CheckOrder, Faulted, Finished
from llmos_trainer.parts import PartFault, clean
from llmos_trainer.records import Record, read_records
from llmos_trainer.reporting import Reporter
from llmos_trainer.splits import SPLITS, content_hash

_LOOK_EVERY = 1000  # rows
Rows = list[dict[str, Any]]


def check(order: CheckOrder, reporter: Reporter) -> None:
    """Report `Finished` with the trees `dataset` and `base`, or `Faulted`."""
    faults = Faults(order.faults)
    reporter.progress("checking the base model", fraction=0.1)
    base, labels = _base(order, faults)
    splits = _read(order, labels, faults, reporter)
    reporter.obey()
    if len(faults) or base is None:
        reporter.send(Faulted(faults.listed()))
        return
    reporter.progress("writing the dataset", fraction=0.9)
    work = Path(order.work)
    (work / "dataset").mkdir(parents=True)
    encoder = msgspec.json.Encoder()
    for name in SPLITS:
        (work / "dataset" / f"{name}.jsonl").write_bytes(encoder.encode_lines(splits[name]))
    counts = {name: len(splits[name]) for name in SPLITS}
    summary = {"labels": labels, "rows": counts}
    (work / "dataset" / "dataset.json").write_bytes(encoder.encode(summary) + b"\n")
    stage(base, work / "base", order.task)
    metrics = {f"rows_{name}": float(count) for name, count in counts.items()} | {"labels": float(len(labels))}
    reporter.send(Finished({"dataset": str(work / "dataset"), "base": str(work / "base")}, metrics))


def _base(order: CheckOrder, faults: Faults) -> tuple[Path | None, list[str]]:
    if not order.base:
        return None, []
    try:
        folder = pretrained.find_model(Path(order.base))
        for message in examine(folder, order.task, order.max_length):
            faults.add("model.base", message)
        return folder, labels_of(folder)
    except Rejected as error:
        faults.add("model.base", str(error))
        return None, []


def _read(order: CheckOrder, labels: Sequence[str], faults: Faults, reporter: Reporter) -> dict[str, Rows]:
    named = {"text": order.text, "label": order.label} | order.columns
    columns = {role: named.get(role, role) for role in COLUMNS[order.task]}
    splits: dict[str, Rows] = {}
    for name in SPLITS:
        if name in order.files:
            splits[name] = _read_file(order, name, columns, labels, faults, reporter)
    if len(faults) or not splits:
        return splits
    whole = "train" if "train" in splits else "test"
    for place, name in enumerate(("validation", "test")):
        if name not in splits:
            splits[name], splits[whole] = _tenth(splits[whole], place)
            if not splits[name] or not splits[whole]:
                faults.add(order.references[whole], f"there are too few rows to split {name} off: give data.{name}")
    return {"train": []} | splits


def _read_file(
    order: CheckOrder, name: str, columns: dict[str, str], labels: Sequence[str], faults: Faults, reporter: Reporter
) -> Rows:
    path, reference, before = _data_file(Path(order.files[name])), order.references[name], len(faults)
    rows: Rows = []
    for at, record in enumerate(read_records(path, columns)):
        if at % _LOOK_EVERY == 0:
            reporter.obey()
            reporter.progress(f"reading {name}", step=at, fraction=0.3)
        if not isinstance(record, Record):
            faults.add(reference, record.message, record.line)
            continue
        try:
            rows.append(clean(record.parts, labels, path.parent))
        except PartFault as error:
            if labels or "no label" not in str(error):  # a base that can't be read has said so itself
                faults.add(reference, str(error), record.line)
    if not rows and len(faults) == before:
        faults.add(reference, "there is no row")
    return rows


def _data_file(path: Path) -> Path:
    """The data itself: a folder holds one table, beside the files that its rows name."""
    if not path.is_dir():
        return path
    tables = [below for suffix in ("jsonl", "ndjson", "csv", "parquet") for below in sorted(path.glob(f"*.{suffix}"))]
    return tables[0] if tables else path / "rows.jsonl"


def _tenth(rows: Rows, place: int) -> tuple[Rows, Rows]:
    """A tenth of the rows, told by their content, and the rest; at least one row, if there is more than one."""
    hashes = [content_hash(base64.b64encode(msgspec.json.encode(row)).decode()) for row in rows]
    taken = {value for value in hashes if value % 10 == place}
    if not taken and len(set(hashes)) > 1:
        taken = {min(hashes)}
    split = [row for row, value in zip(rows, hashes, strict=True) if value in taken]
    return split, [row for row, value in zip(rows, hashes, strict=True) if value not in taken]
