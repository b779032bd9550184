"""Checking a job's data and base model in a child process: every fault at once, before any weight is loaded.

Without a fault it makes the job's dataset tree and base tree.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from llmos.errors import Rejected
from llmos_trainer import pretrained
from llmos_trainer.datasets import labels_of, write_dataset
from llmos_trainer.faults import Faults
from llmos_trainer.orders import CheckOrder, Faulted, Finished
from llmos_trainer.reporting import Channel, Reporter, reported
from llmos_trainer.rows import Columns, Row, read_rows
from llmos_trainer.splits import SPLITS, leaked, split_off

_LOOK_EVERY = 1000  # rows


def run(args: bytes, channel: Channel) -> None:
    """The child's entry: `args` is a `CheckOrder`."""
    reporter = Reporter(channel)
    with reported(reporter):
        order = msgspec.json.decode(args, type=CheckOrder)
        if order.untrained:
            from llmos_trainer import untrained

            untrained.check(order, reporter)
        else:
            check(order, reporter)


def check(order: CheckOrder, reporter: Reporter) -> None:
    """Read everything, then report `Finished` with the trees `dataset` and `base`, or `Faulted`."""
    faults = Faults(order.faults)
    splits = _read(order, faults, reporter)
    reporter.obey()
    reporter.progress("checking the base model", fraction=0.8)
    base = _examine(order, faults)
    if len(faults) or base is None:
        reporter.send(Faulted(faults.listed()))
        return
    reporter.progress("writing the dataset", fraction=0.9)
    work = Path(order.work)
    summary = write_dataset(work / "dataset", splits)
    pretrained.stage(base, work / "base")
    metrics = {f"rows_{name}": float(count) for name, count in summary.rows.items()}
    metrics |= {"labels": float(len(summary.labels)), "leaked_rows": float(leaked(splits["train"], splits["test"]))}
    reporter.send(Finished({"dataset": str(work / "dataset"), "base": str(work / "base")}, metrics))


def _read(order: CheckOrder, faults: Faults, reporter: Reporter) -> dict[str, list[Row]]:
    if order.text == order.label:
        faults.add("data.label", f"text and label can't be the same column {order.text!r}")
        return {}
    splits: dict[str, list[Row]] = {}
    for at, name in enumerate(SPLITS):
        if name in order.files:
            splits[name] = _read_file(name, order, faults, reporter, fraction=0.25 * at)
    if len(faults):
        return splits
    if missing := [name for name in SPLITS if name not in splits]:
        splits |= split_off(splits["train"], missing)
    known = labels_of(splits["train"])
    if len(known) < 2:
        only = f"only the label {known[0]!r}" if known else "no label"
        faults.add(order.references["train"], f"there is {only}, and a classifier needs at least two")
        return splits
    for name in SPLITS[1:]:
        if not splits[name]:
            faults.add(
                order.references["train"],
                f"there are too few rows to split {name} off: add rows, or give data.{name}",
            )
        elif name in order.references:
            for row in splits[name]:
                if row.label not in known:
                    faults.add(order.references[name], f"the label {row.label!r} does not occur in train", row.line)
    return splits


def _read_file(name: str, order: CheckOrder, faults: Faults, reporter: Reporter, fraction: float) -> list[Row]:
    rows: list[Row] = []
    reference = order.references[name]
    before = len(faults)
    for at, row in enumerate(read_rows(Path(order.files[name]), Columns(order.text, order.label))):
        if at % _LOOK_EVERY == 0:
            reporter.obey()
            reporter.progress(f"reading {name}", step=at, fraction=fraction)
        if isinstance(row, Row):
            rows.append(row)
        else:
            faults.add(reference, row.message, row.line)
    if not rows and len(faults) == before:
        faults.add(reference, "there is no row")
    return rows


def _examine(order: CheckOrder, faults: Faults) -> Path | None:
    if not order.base:
        return None
    try:
        folder = pretrained.find_model(Path(order.base))
        found: Iterable[str] = pretrained.examine(folder, order.max_length)
    except Rejected as error:
        faults.add("model.base", str(error))
        return None
    for message in found:
        faults.add("model.base", message)
    return folder
