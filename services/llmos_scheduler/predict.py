"""How long a task will take, judged by earlier runs of the same job. Pure; memory is bounded.

A job is looked up under its tenant and name, then under its tenant, base model, data and method. The rows that a run
went over (steps x batch size) scale what is expected, where they are known of both; else its epochs do, on the same
data; else its time counts as it is. The answer is a quantile of the newest runs, so that one odd run says little.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmos.contracts.jobs import JobSpec
from llmos.contracts.tasks import Kind

FEWEST = 2  # runs below which nothing is said
KEEP_RUNS = 8  # of each key, the newest
KEEP_KEYS = 4_096  # the least recently learnt are forgotten
QUANTILE = 0.75  # rather late than early: backfill rests on it
EPOCHS = 3  # what a spec trains for that names neither epochs nor steps


@dataclass(frozen=True, slots=True)
class Run:
    """A run that succeeded: seconds it held its lease; rows it went over in all and epochs, 0 if unknown."""

    seconds: float
    rows: float = 0.0
    epochs: float = 0.0
    data: str = ""


@dataclass(slots=True)
class Durations:
    """The runs by key, the oldest first."""

    runs: dict[str, list[Run]] = field(default_factory=dict)

    def learn(self, spec: JobSpec, kind: Kind, seconds: float, rows: float = 0.0) -> None:
        """A task of this job succeeded after `seconds` of work; `rows` as in `expect`."""
        run = Run(seconds, _rows(spec, rows), _epochs(spec), spec.data.train)
        for key in _keys(spec, kind):
            runs = [*self.runs.pop(key, ()), run]
            self.runs[key] = runs[-KEEP_RUNS:]
        while len(self.runs) > KEEP_KEYS:
            del self.runs[next(iter(self.runs))]

    def expect(self, spec: JobSpec, kind: Kind, rows: float = 0.0) -> float | None:
        """Seconds that a task of this job is expected to take, `None` if too little is known.

        `rows` are those of its training split, once a check has counted them (0: unknown).
        """
        for key in _keys(spec, kind):
            runs = self.runs.get(key, ())
            if len(runs) >= FEWEST:
                epochs, wanted, data = _epochs(spec), _rows(spec, rows), spec.data.train
                return quantile([_scaled(run, epochs, wanted, data) for run in runs], QUANTILE)
        return None


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which this part of `values` (at least one) lies, between two of them in proportion."""
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return min(ordered[high], ordered[low] + (ordered[high] - ordered[low]) * (place - low))


def _keys(spec: JobSpec, kind: Kind) -> Iterator[str]:
    yield f"{kind}\n{spec.tenant}\n{spec.name}"
    yield f"{kind}\n{spec.tenant}\n\n{spec.model.base}\n{spec.data.train}\n{spec.train.method}"


def _epochs(spec: JobSpec) -> float:
    """Epochs that the spec asks for; 0 if it counts steps."""
    if spec.train.steps is not None:
        return 0.0
    return float(spec.train.epochs if spec.train.epochs is not None else EPOCHS)


def _rows(spec: JobSpec, rows: float) -> float:
    """Rows that training goes over in all, of a split with `rows`; 0 if unknown."""
    return _epochs(spec) * rows or float((spec.train.steps or 0) * spec.train.batch_size)


def _scaled(run: Run, epochs: float, rows: float, data: str) -> float:
    """What the run says of a job that goes so many epochs over this data, over so many rows in all."""
    if rows and run.rows:
        return run.seconds * rows / run.rows
    if epochs and run.epochs and run.data == data:
        return run.seconds * epochs / run.epochs
    return run.seconds
