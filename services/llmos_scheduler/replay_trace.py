"""Reads what a replay needs: the jobs of a trace, queues, and the nodes. Every fault names file, line and column.

Jobs: `job_id,submit_time,duration,num_gpu[,priority,queue,deadline]`, other columns are ignored; times are seconds, or
milliseconds (`--time-unit`). Queues: `queue[,policy,weight,quota,limit]`. Nodes: `8x8`, or a CSV with
`sn,gpu[,model,cpu_milli,memory_mib]`; then jobs may ask one node for `gpu_spec` (`A100|H100`), `cpu_milli`,
`memory_mib`.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from llmos.errors import Rejected
from llmos_scheduler.cluster import Device, Machine, Shape
from llmos_scheduler.queues import Queue
from llmos_scheduler.replay import Arrival

TimeUnit = Literal["auto", "s", "ms"]
MOST_NODES = 100_000
LONGEST_S = 100_000_000.0  # three years: a trace with longer durations is not in seconds
_LARGEST = 1e15


class _Row:
    """A line of a CSV file."""

    def __init__(self, path: Path, line: int, cells: dict[str, str]) -> None:
        self._path, self._line, self._cells = path, line, cells

    def fault(self, column: str, why: str) -> Rejected:
        return Rejected(f"{self._path}, line {self._line}, {column}: {why}", param=column)

    def text(self, column: str) -> str:
        return (self._cells.get(column) or "").strip()

    def number(self, column: str, default: float | None = None, least: float = 0.0) -> float:
        text = self.text(column)
        if not text and default is not None:
            return default
        try:
            value = float(text)
        except ValueError:
            raise self.fault(column, f"{text!r} is no number") from None
        if not least <= value <= _LARGEST:  # also false for NaN
            raise self.fault(column, f"{text} is not from {least:g} to {_LARGEST:g}")
        return value

    def whole(self, column: str, default: float | None = None, least: float = 0.0) -> int:
        value = self.number(column, default, least)
        if not float(value).is_integer():
            raise self.fault(column, f"{self.text(column)} is no whole number")
        return int(value)


def read_jobs(path: Path, unit: TimeUnit = "auto") -> list[Arrival]:
    """The jobs, in the order of the file; a line that is repeated as it is counts once. Raises `Rejected`.

    `auto`: seconds, unless a job would take more than three years: then milliseconds.
    """
    rows = list(_rows(path, ("job_id", "submit_time", "duration", "num_gpu")))
    if not rows:
        raise Rejected(f"{path} lists no jobs")
    if unit == "auto":
        unit = "ms" if max(row.number("duration") for row in rows) > LONGEST_S else "s"
    scale = 1000 if unit == "s" else 1
    found: dict[str, Arrival] = {}
    for row in rows:
        id, deadline = row.text("job_id"), row.text("deadline")
        if not id:
            raise row.fault("job_id", "is empty")
        arrival = Arrival(
            id=id,
            submitted=round(row.number("submit_time") * scale),
            duration=round(row.number("duration") * scale),
            gpus=row.whole("num_gpu", least=1),
            priority=row.whole("priority", 0, least=-1e6),
            queue=_queue(row),
            deadline=round(row.number("deadline") * scale) if deadline else None,
            shape=_shape(row),
        )
        if found.setdefault(id, arrival) != arrival:
            raise row.fault("job_id", f"{id!r} was another job before")
    return list(found.values())


def read_queues(path: Path) -> list[Queue]:
    """The queues. Raises `Rejected`; whether their quotas can be kept is for `Tree` to say."""
    found: dict[str, Queue] = {}
    for row in _rows(path, ("queue",)):
        name = _queue(row)
        if name in found:
            raise row.fault("queue", f"{name!r} is listed twice")
        found[name] = Queue(
            name=name,
            order=row.text("policy"),
            weight=row.number("weight", 1.0),
            quota=row.whole("quota") if row.text("quota") else None,
            limit=row.whole("limit") if row.text("limit") else None,
        )
    return list(found.values())


def read_cluster(text: str) -> dict[str, Machine]:
    """Every node that has GPUs: `8x8` is 8 nodes of 8 GPUs, else the path of a CSV file."""
    counts = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,2})", text)
    if counts:
        nodes, gpus = int(counts[1]), int(counts[2])
        if nodes > MOST_NODES:
            raise Rejected(f"{nodes} nodes are more than {MOST_NODES}")
        return {f"node-{number}": Machine(0, 0, (Device(""),) * gpus) for number in range(nodes)}
    found: dict[str, Machine] = {}
    for row in _rows(Path(text), ("sn", "gpu")):
        name = row.text("sn")
        if name in found:
            raise row.fault("sn", f"the node {name!r} is listed twice")
        devices = (Device(row.text("model")),) * row.whole("gpu")
        found[name] = Machine(row.whole("cpu_milli", 0), row.whole("memory_mib", 0), devices)
    nodes_with = {name: machine for name, machine in found.items() if machine.devices}
    if not nodes_with:
        raise Rejected(f"{text} lists no nodes with GPUs")
    return nodes_with


def _shape(row: _Row) -> Shape | None:
    """What the job asks of one node, if it says more than a number of GPUs."""
    models, cpus, memory = row.text("gpu_spec"), row.whole("cpu_milli", 0), row.whole("memory_mib", 0)
    if not (models or cpus or memory):
        return None
    return Shape(cpus, memory, row.whole("num_gpu", least=1), models=frozenset(filter(None, models.split("|"))))


def _queue(row: _Row) -> str:
    name = row.text("queue")
    if any(not part for part in name.split("/")) and name:
        raise row.fault("queue", f"{name!r} is no path of queue names")
    return name


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[_Row]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise Rejected(f"{path} has no column {', '.join(missing)}", remedy=f"It needs {', '.join(columns)}.")
        for cells in reader:
            yield _Row(path, reader.line_num, cells)
