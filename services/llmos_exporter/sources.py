"""What every task's model looks like to the export: rows to answer, the trained model's answers, and graphs for them.

A row is what its task makes of a line of the dataset; an answer is an array of float32 for a row, without padding. What
a row means stays within the task's module; `artifact.py` only asks both sides for answers and compares them.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from llmos.errors import Rejected
from llmos_exporter.orders import ExportOrder

Numbers = NDArray[np.float32]
Files = dict[str, Path]  # the graphs of an artifact, by their part: `model`, or `encoder` and `decoder`
Row = Any
BATCH_TOKENS = 8192
BATCH_ROWS = 64


class Quality(Protocol):
    """Metrics over all rows that were added."""

    def add(self, rows: Sequence[Row], answers: Sequence[Numbers]) -> None: ...

    def numbers(self) -> dict[str, float]: ...


class Source(Protocol):
    """A model that is to be exported. Whatever it is given wrong, it raises `Rejected`."""

    labels: list[str]
    decoder: bool  # whether int4 weights make sense

    def rows(self, split: str) -> list[Row]:
        """The rows of one split of the dataset, ready to be answered."""

    def batches(self, rows: Sequence[Row]) -> Iterator[list[int]]:
        """Numbers of rows that go through the model together."""

    def probes(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Real rows in company of many shapes, none like the sample that a graph is traced with."""

    def trained(self, rows: Sequence[Row]) -> list[Numbers]:
        """The answers of the model itself."""

    def routes(self) -> Mapping[str, Callable[[Path], Files]]:
        """Ways to a float32 graph, tried in order; each fills a new folder."""

    def exported(self, files: Files, threads: int) -> Callable[[Sequence[Row]], list[Numbers]]:
        """The answers of graphs."""

    def quality(self, exported: Callable[[Sequence[Row]], list[Numbers]] | None = None) -> Quality:
        """An empty sum of the task's metrics: of `exported`, or of the model itself."""

    def agreement(self, wanted: Numbers, got: Numbers) -> float:
        """How far two answers say the same, 0 to 1."""

    def beyond(self, exported: Callable[[Sequence[Row]], list[Numbers]], rows: Sequence[Row]) -> dict[str, float]:
        """Further parity that the task knows of, by name."""

    def answer(self, exported: Callable[[Sequence[Row]], list[Numbers]], row: Row) -> None:
        """Answer one row as serving would, from its text or bytes on: what latency is measured by."""

    def contract(self, precision: str) -> dict[str, Any]:
        """The fields of the `ServingContract` that the task fills."""

    def save(self, folder: Path) -> None:
        """Write what lies beside the graphs: the tokenizer."""


class Task(NamedTuple):
    """A row of the table of tasks."""

    open: Callable[[ExportOrder], Source]


def load_model(folder: Path, auto: Any, *, may_miss: Callable[[str], bool] = lambda _: False, **how: Any) -> Any:
    """A model as it lies in an artifact, in float32. Raises `Rejected` for one that can't be loaded as `auto`."""
    from safetensors import SafetensorError

    try:
        model, loaded = auto.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **how,
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise Rejected(
            f"the model can't be loaded: {first_line(error)}", remedy="Train it again, or give another base."
        ) from error
    if missing := sorted(key for key in loaded["missing_keys"] if not may_miss(key)):  # they would be drawn at random
        raise Rejected(
            f"the model lacks {len(missing)} weights, {missing[0]} first",
            remedy="Train it again, or give a base that was trained for this task.",
        )
    return model.eval()


def labels_of(config: Any) -> list[str]:
    """The names of a classifier's labels, in order."""
    names: dict[int, str] = config.id2label
    return [names[number] for number in range(len(names))]


def read_lines(folder: Path, split: str, make: Callable[[dict[str, Any], str], Row | None]) -> list[Row]:
    """The rows of one split of a dataset artifact; `make` gets a line and its place. Raises `Rejected` if none is."""
    path = folder / f"{split}.jsonl"
    try:
        with path.open(encoding="utf-8") as file:
            made = [make(json.loads(line), f"{path.name}:{at}") for at, line in enumerate(file, 1)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Rejected(
            f"{path.name} can't be read: {first_line(error)}", remedy="Prepare the dataset again."
        ) from error
    if not (rows := [row for row in made if row is not None]):
        raise Rejected(f"{path.name} has no row to measure the artifact on", remedy=f"Give more data, or data.{split}.")
    return rows


def by_size(sizes: Sequence[int], *, most: int = BATCH_ROWS, room: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Row numbers in batches of at most `room` padded places and `most` rows, longest first."""
    order = sorted(range(len(sizes)), key=lambda row: -sizes[row])
    while order:
        size = min(max(1, room // max(1, sizes[order[0]])), most)
        yield order[:size]
        order = order[size:]


def in_company(some: Sequence[Row], *, fixed: Iterable[Sequence[Row]] = ()) -> list[list[Row]]:
    """Rows sorted by size as companies: the first, middle and last alone, and all in threes and eights, long beside
    short.
    """
    mixed = [row for pair in zip(some, reversed(some), strict=True) for row in pair][: len(some)]
    companies: list[Sequence[Row]] = [[some[0]], [some[len(some) // 2]], [some[-1]], *fixed]
    companies += [mixed[at : at + 3] for at in range(0, len(mixed), 3)]
    companies += [mixed[at : at + 8] for at in range(0, len(mixed), 8)]
    return [list(company) for company in companies]


def evenly(rows: Sequence[Row], size: Callable[[Row], int], count: int = 24) -> list[Row]:
    """At most `count` rows, evenly over their sizes, smallest first."""
    order = sorted(range(len(rows)), key=lambda at: (size(rows[at]), at))
    return [rows[at] for at in order[:: max(1, len(order) // count)][:count]]


def session(graph: Path, threads: int) -> Any:
    """A session like the one that will serve a graph."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails raises, too
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
