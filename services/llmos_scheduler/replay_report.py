"""Replays as one HTML page without any other file: figures side by side, GPUs and queues over time, waiting by
priority, fairness among queues and tenants."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from llmos_scheduler.charts import STYLE, areas, bars, lines, span, spans
from llmos_scheduler.replay_summary import Served, Step, Summary, Tally

COLUMNS = 200  # points of a curve: each is the average over its stretch of time
MOST_ROWS = 12  # queues or tenants of a chart, those with the most GPU hours

PAGE = """
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 900px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin: 1.8rem 0 .3rem } p { margin: .3rem 0 }
.wide { overflow-x: auto } table { border-collapse: collapse }
td, th { text-align: right; padding: .15rem 1rem; font-weight: normal; border-bottom: 1px solid var(--rule) }
th:first-child { text-align: left; padding-left: 0; color: var(--faint) } td { font-variant-numeric: tabular-nums }
thead th { color: var(--ink); font-weight: 600 } .best { font-weight: 600 }
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One replay, or what really happened: its name, its figures, and its course."""

    name: str
    summary: Summary
    tally: Tally


@dataclass(frozen=True, slots=True)
class _Figure:
    """A row of the table; `better` is -1 if less is better, 1 if more is, 0 if neither."""

    name: str
    value: Callable[[Summary], float]
    told: Callable[[Sequence[float]], Sequence[str]]
    better: int = 0
    plain: float = 0.0  # a value that says nothing

    def row(self, summaries: Iterable[Summary]) -> Sequence[str]:
        """The figure of each; empty if it says nothing of any of them."""
        values = [self.value(summary) for summary in summaries]
        return self.told(values) if any(value != self.plain for value in values) else []


def _in(form: str) -> Callable[[Sequence[float]], Sequence[str]]:
    return lambda values: [format(value, form) for value in values]


FIGURES = (
    _Figure("Average JCT", lambda summary: summary.average_jct_s, spans, -1),
    _Figure("p99 JCT", lambda summary: summary.p99_jct_s, spans, -1),
    _Figure("Makespan", lambda summary: summary.makespan_s, spans, -1),
    _Figure("Bounded slowdown", lambda summary: summary.bounded_slowdown, _in(".2f"), -1),
    _Figure("Utilisation", lambda summary: summary.utilisation, _in(".1%"), 1),
    _Figure("Fairness of jobs (Jain)", lambda summary: summary.fairness_jain, _in(".3f"), 1),
    _Figure("Fairness of queues", lambda summary: summary.fairness_by_queue, _in(".3f"), 1, 1.0),
    _Figure("Fairness of tenants", lambda summary: summary.fairness_by_tenant, _in(".3f"), 1, 1.0),
    _Figure("Preemptions", lambda summary: summary.preemptions, _in(".0f")),
    _Figure("Deadlines met", lambda summary: summary.deadlines_met, _in(".0f"), 1),
    _Figure("Jobs that ended", lambda summary: summary.jobs, _in(".0f")),
    _Figure("Jobs that can never run", lambda summary: summary.rejected, _in(".0f"), -1),
)


def render(runs: Sequence[Run], unit: str = "GPUs", note: str = "") -> str:
    """The page. `runs` is at least one, all of one trace."""
    first = runs[0]
    names = ", ".join(run.name for run in runs)
    parts = [
        f"<h1>{first.summary.jobs} jobs on {first.summary.gpus} {unit}: {escape(names)}</h1>",
        f"<p>{escape(note)}</p>" if note else "",
        f'<div class="wide">{_table(runs)}</div>',
        f"<h2>{unit} in use</h2>",
        _curves(f"{unit} in use over time", runs, lambda step: step.busy, max(run.summary.gpus for run in runs)),
        "<h2>Jobs waiting</h2>",
        _curves("Jobs waiting over time", runs, lambda step: step.waiting),
        "<h2>Waiting by priority</h2><p>Average, and faintly up to the 99th percentile.</p>",
        _waiting(runs),
        *_fairness("queue", runs, lambda summary: summary.by_queue),
        *_fairness("tenant", runs, lambda summary: summary.by_tenant),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>Replay: {escape(names)}</title>'
        f"<style>{STYLE}{PAGE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def averages(
    course: Sequence[Step], value: Callable[[Step], float], columns: int = COLUMNS, ends: tuple[int, int] | None = None
) -> list[float]:
    """The time average of a step function over each of `columns` equal stretches of its time, or of that between
    `ends`."""
    if len(course) < 2:
        return [0.0] * columns if ends else []
    start, end = ends or (course[0].time, course[-1].time)
    length = max(1, end - start)
    sums = [0.0] * columns
    for step, after in pairwise(course):
        here, until = step.time - start, min(after.time, end) - start
        while here < until:
            column = here * columns // length
            edge = min(until, -(-(column + 1) * length // columns))
            sums[column] += value(step) * (edge - here)
            here = edge
    return [total * columns / length for total in sums]


def _table(runs: Sequence[Run]) -> str:
    head = "".join(f"<th>{escape(run.name)}</th>" for run in runs)
    rows = []
    for figure in FIGURES:
        values = [figure.value(run.summary) for run in runs]
        best = max(value * figure.better for value in values)
        marked = figure.better and len(set(values)) > 1
        cells = [
            f"<td{' class=best' if marked and value * figure.better == best else ''}>{told}</td>"
            for value, told in zip(values, figure.row(run.summary for run in runs), strict=False)
        ]
        if cells:
            rows.append(f"<tr><th>{figure.name}</th>{''.join(cells)}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _curves(title: str, runs: Sequence[Run], value: Callable[[Step], float], most: float = 0.0) -> str:
    """One run: its queues stacked. Several: a line for each, in one time."""
    courses = [run.tally.course() for run in runs]
    times = [step.time for course in courses for step in course]
    if not times:
        return "<p>Nothing ran.</p>"
    ends = (min(times), max(times))
    seconds = (ends[1] - ends[0]) / 1000
    if len(runs) > 1:
        series = [(run.name, averages(course, value, ends=ends)) for run, course in zip(runs, courses, strict=True)]
        return lines(title, series, seconds, most)
    tally = runs[0].tally
    return areas(
        title, [(name, averages(tally.course(name), value, ends=ends)) for name in tally.queues], seconds, most
    )


def _waiting(runs: Sequence[Run]) -> str:
    classes = sorted({name for run in runs for name in run.summary.waiting_by_priority}, key=int)
    rows = {}
    for name in classes:
        row = []
        for run in runs:
            waiting = run.summary.waiting_by_priority.get(name)
            if waiting is None:
                row.append((0.0, 0.0, "no jobs"))
                continue
            told = f"{span(waiting.average_s)}, p99 {span(waiting.p99_s)}, {waiting.jobs} jobs"
            row.append((waiting.average_s, waiting.p99_s, told))
        rows[f"priority {name}"] = row
    return bars("Waiting by priority", rows, [run.name for run in runs])


def _fairness(noun: str, runs: Sequence[Run], served: Callable[[Summary], dict[str, Served]]) -> list[str]:
    """How much each queue (or tenant) was slowed down, and what it got; nothing if there is only one."""
    hours: dict[str, float] = {}
    for run in runs:
        for name, got in served(run.summary).items():
            hours[name] = max(hours.get(name, 0.0), got.gpu_hours)
    if len(hours) < 2:
        return []
    shown = sorted(sorted(hours, key=lambda name: -hours[name])[:MOST_ROWS])
    rows = {}
    for name in shown:
        found = [served(run.summary).get(name) for run in runs]
        rows[name or "(no name)"] = [
            (got.average_slowdown, got.average_slowdown, f"{got.average_slowdown:.3g}x, {got.gpu_hours:.3g} GPU h")
            if got
            else (0.0, 0.0, "no jobs")
            for got in found
        ]
    more = f" The {MOST_ROWS} of {len(hours)} with the most GPU hours." if len(hours) > MOST_ROWS else ""
    return [
        f"<h2>Slowdown by {noun}</h2><p>Time in the system over time alone, bounded; and GPU hours held.{more}</p>",
        bars(f"Slowdown by {noun}", rows, [run.name for run in runs]),
    ]
