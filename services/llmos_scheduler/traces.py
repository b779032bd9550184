"""Reads the nodes and tasks of a trace (CSV, columns as in Alibaba's openb); every fault names file, line and column.

Nodes: `sn,cpu_milli,memory_mib,gpu,model[,gpu_memory_mib,labels]`. Tasks: `name,cpu_milli,memory_mib,num_gpu,gpu_milli
[,gpu_spec,gpu_memory_mib,labels]`; `gpu_spec` is `T4|P100` (none: any model), labels are `zone=a|disk=ssd`.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from llmos.errors import Rejected
from llmos_scheduler.cluster import WHOLE, Device, Machine, Shape

MOST_DEVICES = 64  # of a node


def read_nodes(path: Path) -> list[tuple[str, Machine]]:
    """Name and hardware of every node. Raises `Rejected`."""
    nodes: dict[str, Machine] = {}
    for row in _rows(path, ("sn", "cpu_milli", "memory_mib", "gpu", "model")):
        name = row.text("sn")
        if name in nodes:
            raise row.fault("sn", f"the node {name!r} is listed twice")
        count = row.number("gpu")
        if count > MOST_DEVICES:
            raise row.fault("gpu", f"a node has at most {MOST_DEVICES} GPUs")
        device = Device(row.text("model"), row.number("gpu_memory_mib"))
        nodes[name] = Machine(row.number("cpu_milli"), row.number("memory_mib"), (device,) * count, dict(row.labels()))
    if not nodes:
        raise Rejected(f"{path} lists no nodes")
    return list(nodes.items())


def read_tasks(path: Path) -> list[tuple[str, Shape]]:
    """Name and shape of every task. Raises `Rejected`."""
    tasks = []
    for row in _rows(path, ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")):
        gpus = row.number("num_gpu")
        milli = row.number("gpu_milli") if row.text("gpu_milli") else WHOLE
        try:
            shape = Shape(
                cpus=row.number("cpu_milli"),
                memory=row.number("memory_mib"),
                gpus=gpus,
                milli=milli if gpus else WHOLE,
                gpu_memory=row.number("gpu_memory_mib") if gpus else 0,
                models=frozenset(filter(None, row.text("gpu_spec").split("|"))) if gpus else frozenset(),
                labels=frozenset(row.labels()),
            )
        except Rejected as error:
            raise row.fault("gpu_milli", error.problem.message) from error
        tasks.append((row.text("name"), shape))
    if not tasks:
        raise Rejected(f"{path} lists no tasks")
    return tasks


class _Row:
    def __init__(self, path: Path, line: int, cells: dict[str, str]) -> None:
        self._path, self._line, self._cells = path, line, cells

    def fault(self, column: str, why: str) -> Rejected:
        return Rejected(f"{self._path}, line {self._line}, {column}: {why}", param=column)

    def text(self, column: str) -> str:
        return (self._cells.get(column) or "").strip()

    def number(self, column: str) -> int:
        """A whole number of at least 0; an empty or absent cell is 0."""
        text = self.text(column)
        if not text:
            return 0
        if not (text.isascii() and text.isdigit() and len(text) <= 15):
            raise self.fault(column, f"{text!r} is no whole number of at least 0")
        return int(text)

    def labels(self) -> list[tuple[str, str]]:
        pairs = [part.partition("=") for part in self.text("labels").split("|") if part]
        if not all(equals and key for key, equals, _ in pairs):
            raise self.fault("labels", "labels are key=value, joined by |")
        return [(key, value) for key, _, value in pairs]


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[_Row]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise Rejected(f"{path} has no column {', '.join(missing)}", remedy=f"It needs {', '.join(columns)}.")
        for cells in reader:
            yield _Row(path, reader.line_num, cells)
