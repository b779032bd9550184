"""A replay as one HTML page without any other file: figures, utilisation and queue over time, waiting by priority."""

from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

from llmos_scheduler.replay_summary import Step, Summary, Waiting

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 860, 200, 60, 24, 10
COLUMNS = 400  # points of a curve: each is the average over its stretch of time
UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #8a929c; --line: #2f6db3; --fill: #2f6db333; --back: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --faint: #7d8691; --line: #6aa8ee; --fill: #6aa8ee33;
  --back: #14171b } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 900px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin: 1.6rem 0 .3rem }
svg { width: 100%; height: auto } text { fill: var(--faint); font-size: 11px } .value { fill: var(--ink) }
.curve { fill: var(--fill); stroke: var(--line); stroke-width: 1.2 } .axis { stroke: var(--faint); stroke-width: .6 }
.bar { fill: var(--line) } .tail { fill: var(--fill) }
table { border-collapse: collapse } td, th { text-align: left; padding: .1rem 1.2rem .1rem 0; font-weight: normal }
td { font-variant-numeric: tabular-nums }
"""


def render(summary: Summary, course: Sequence[Step]) -> str:
    """The page."""
    durations = "unknown to the scheduler" if summary.blind else "known"
    figures = [
        ("Average JCT", _span(summary.average_jct_s)),
        ("p99 JCT", _span(summary.p99_jct_s)),
        ("Makespan", _span(summary.makespan_s)),
        ("Bounded slowdown", f"{summary.bounded_slowdown:.2f}"),
        ("Utilisation", f"{summary.utilisation:.1%}"),
        ("Fairness (Jain)", f"{summary.fairness_jain:.3f}"),
        ("Preemptions", f"{summary.preemptions}"),
        ("Rejected jobs", f"{summary.rejected}"),
    ]
    if summary.deadlines:
        figures.append(("Deadlines met", f"{summary.deadlines_met} of {summary.deadlines}"))
    rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in figures)
    queues = ""
    if len(summary.waiting_by_queue) > 1:
        queues = "<h2>Waiting by queue</h2>" + _bars("Waiting by queue", summary.waiting_by_queue)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Replay: '
        f"{escape(summary.policy)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{summary.jobs} jobs on {summary.gpus} GPUs under {escape(summary.policy)}</h1>"
        f"<p>Durations were {durations}.</p><table>{rows}</table>"
        f"<h2>GPUs in use</h2>{_curve('GPUs in use over time', course, lambda step: step.busy, summary.gpus)}"
        f"<h2>Jobs waiting</h2>{_curve('Jobs waiting over time', course, lambda step: step.waiting)}"
        f"<h2>Waiting by priority</h2>{_bars('Waiting by priority', summary.waiting_by_priority)}{queues}"
        "</body></html>\n"
    )


def averages(course: Sequence[Step], value: Callable[[Step], int], columns: int = COLUMNS) -> list[float]:
    """The time average of a step function over each of `columns` equal stretches of its time."""
    if len(course) < 2:
        return []
    start, end = course[0].time, course[-1].time
    sums = [0.0] * columns
    for step, after in pairwise(course):
        here, until = step.time - start, after.time - start
        while here < until:
            column = here * columns // (end - start)
            edge = min(until, -(-(column + 1) * (end - start) // columns))
            sums[column] += value(step) * (edge - here)
            here = edge
    return [total * columns / (end - start) for total in sums]


def _curve(title: str, course: Sequence[Step], value: Callable[[Step], int], most: int = 0) -> str:
    points = averages(course, value)
    if not points:
        return "<p>Nothing ran.</p>"
    top = max(most, max(points), 1)
    wide, high = WIDTH - LEFT, HEIGHT - BOTTOM - TOP
    path = " ".join(
        f"{LEFT + index * wide / (len(points) - 1):.1f},{TOP + high * (1 - point / top):.1f}"
        for index, point in enumerate(points)
    )
    floor = TOP + high
    length = (course[-1].time - course[0].time) / 1000
    labels = "".join(
        f'<text x="{LEFT + wide * quarter / 4:.0f}" y="{HEIGHT - 6}" text-anchor="{anchor}">'
        f"{_span(length * quarter / 4)}</text>"
        for quarter, anchor in enumerate(("start", "middle", "middle", "middle", "end"))
    ) + "".join(
        f'<text x="{LEFT - 6}" y="{TOP + high * (1 - part) + 4:.0f}" text-anchor="end">{top * part:.4g}</text>'
        for part in (0.0, 0.5, 1.0)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
        f'<polygon class="curve" points="{LEFT},{floor} {path} {WIDTH},{floor}"/>'
        f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{WIDTH}" fill="none"/>{labels}</svg>'
    )


def _bars(title: str, classes: dict[str, Waiting]) -> str:
    """A row for each class: its average as a full bar, up to its p99 a faint one."""
    most = max((max(waiting.p99_s, waiting.average_s) for waiting in classes.values()), default=0.0) or 1.0
    wide, row = WIDTH - 330, 26
    parts = []
    for index, (name, waiting) in enumerate(classes.items()):
        y = index * row + 5
        told = f"average {_span(waiting.average_s)}, p99 {_span(waiting.p99_s)}"
        parts.append(
            f'<text x="{LEFT + 40}" y="{y + 12}" text-anchor="end" class="value">{escape(name or "(none)")}</text>'
            f'<rect class="tail" x="{LEFT + 50}" y="{y}" width="{wide * waiting.p99_s / most:.1f}" height="16"/>'
            f'<rect class="bar" x="{LEFT + 50}" y="{y}" width="{wide * waiting.average_s / most:.1f}" height="16"/>'
            f'<text x="{WIDTH}" y="{y + 12}" text-anchor="end">{waiting.jobs} jobs, {told}</text>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {len(classes) * row + 8}" role="img"><title>{escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )


def _span(seconds: float) -> str:
    """A length of time, in its largest unit."""
    size, unit = next((pair for pair in UNITS if seconds >= pair[0]), UNITS[-1])
    return f"{seconds / size:.3g} {unit}"
