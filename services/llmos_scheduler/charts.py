"""Charts as SVG, for pages without any other file: areas one on another, lines, and bars. Pure."""

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 860, 200, 60, 24, 10
UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))
COLORS = 8  # --c0 … --c7; later series repeat them

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #69717b; --rule: #d5d9de; --back: #fff;
  --c0: #2f6db3; --c1: #d9822b; --c2: #3a9a5f; --c3: #b8456b; --c4: #7a5cc0; --c5: #8a7a3c; --c6: #1f9aa5;
  --c7: #8d949c }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --faint: #98a1ab; --rule: #343a41; --back: #14171b;
  --c0: #6aa8ee; --c1: #f0a860; --c2: #6cc893; --c3: #e985a5; --c4: #ab93ea; --c5: #c4b36f; --c6: #5cc9d3;
  --c7: #a9b0b8 } }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--faint); font-size: 11px }
svg .value { fill: var(--ink) } .axis { stroke: var(--rule); stroke-width: 1; fill: none }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: 13px; color: var(--faint) }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .35rem }
"""

Series = Sequence[tuple[str, Sequence[float]]]  # name → values at equal distances


def color(index: int) -> str:
    return f"var(--c{index % COLORS})"


def areas(title: str, series: Series, seconds: float, most: float = 0.0) -> str:
    """Values stacked on one another; the axis reaches `most`, or the highest sum."""
    sums = [0.0] * len(series[0][1]) if series else []
    stacked: list[tuple[list[float], list[float]]] = []
    for _, values in series:
        below, sums = sums, [low + value for low, value in zip(sums, values, strict=True)]
        stacked.append((below, sums))
    top = _ceiling(max([most, *sums]), most)
    shapes = [
        f'<polygon points="{_points(above, top)} {_points(below, top, back=True)}" fill="{color(index)}" '
        f'fill-opacity=".75" stroke="{color(index)}" stroke-width=".5"/>'
        for index, (below, above) in enumerate(stacked)
    ]
    return _frame(title, shapes, top, seconds) + _legend([name for name, _ in series])


def lines(title: str, series: Series, seconds: float, most: float = 0.0) -> str:
    """A line for each series."""
    top = _ceiling(max([most, *(max(values, default=0.0) for _, values in series)]), most)
    shapes = [
        f'<polyline points="{_points(values, top)}" fill="none" stroke="{color(index)}" stroke-width="1.4"/>'
        for index, (_, values) in enumerate(series)
    ]
    return _frame(title, shapes, top, seconds) + _legend([name for name, _ in series])


def bars(title: str, rows: Mapping[str, Sequence[tuple[float, float, str]]], names: Sequence[str]) -> str:
    """For each row one bar a series (`names`): (its value, how far a faint bar goes on, what is written beside)."""
    most = max((max(value, reach) for row in rows.values() for value, reach, _ in row), default=0.0) or 1.0
    left, wide, thick = 150, WIDTH - 150 - 250, 14
    parts, y = [], 4
    for name, row in rows.items():
        middle = y + len(row) * (thick + 2) / 2 + 4
        parts.append(f'<text x="{left - 8}" y="{middle:.0f}" text-anchor="end" class="value">{escape(name)}</text>')
        for index, (value, reach, told) in enumerate(row):
            for length, opacity in ((reach, ".3"), (value, "1")):
                parts.append(
                    f'<rect x="{left}" y="{y}" width="{max(0.0, wide * length / most):.1f}" height="{thick}" '
                    f'fill="{color(index)}" fill-opacity="{opacity}"/>'
                )
            reached = left + wide * max(value, reach) / most
            parts.append(f'<text x="{reached + 6:.1f}" y="{y + 11}">{escape(told)}</text>')
            y += thick + 2
        y += 8
    legend = _legend(names) if len(names) > 1 else ""
    return f'<svg viewBox="0 0 {WIDTH} {y}" role="img"><title>{escape(title)}</title>{"".join(parts)}</svg>{legend}'


def span(seconds: float) -> str:
    """A length of time, in its largest unit."""
    return spans([seconds])[0]


def spans(seconds: Sequence[float]) -> list[str]:
    """Lengths of time, all in the largest unit of the longest."""
    size, unit = next((pair for pair in UNITS if max(seconds) >= pair[0]), UNITS[-1])
    return [f"{value / size:.3g} {unit}" for value in seconds]


def _ceiling(top: float, most: float) -> float:
    """The end of an axis: `most` if nothing exceeds it, else a round number that half of is one too."""
    if top == most and most:
        return most
    size = 10.0 ** floor(log10(top)) if top > 0 else 1.0
    return next(size * step for step in (1, 2, 4, 5, 6, 8, 10) if size * step >= top)


def _points(values: Sequence[float], top: float, *, back: bool = False) -> str:
    wide, high = WIDTH - LEFT - 4, HEIGHT - BOTTOM - TOP
    step = wide / max(1, len(values) - 1)
    found = [f"{LEFT + index * step:.1f},{TOP + high * (1 - value / top):.1f}" for index, value in enumerate(values)]
    return " ".join(reversed(found) if back else found)


def _frame(title: str, shapes: Sequence[str], top: float, seconds: float) -> str:
    """The axes: values at the left, time from 0 to `seconds` below."""
    high, right = HEIGHT - BOTTOM - TOP, WIDTH - 4
    marks = [
        f'<path class="axis" d="M{LEFT} {TOP + high * (1 - part):.0f}H{right}"/>'
        f'<text x="{LEFT - 6}" y="{TOP + high * (1 - part) + 4:.0f}" text-anchor="end">{top * part:.4g}</text>'
        for part in (0.0, 0.5, 1.0)
    ] + [
        f'<text x="{LEFT + (right - LEFT) * quarter / 4:.0f}" y="{HEIGHT - 6}" text-anchor="{anchor}">'
        f"{span(seconds * quarter / 4) if quarter else '0'}</text>"
        for quarter, anchor in enumerate(("start", "middle", "middle", "middle", "end"))
    ]
    drawn = "".join([*marks, *shapes])
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>{drawn}</svg>'


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    found = (
        f'<span><i style="background:{color(index)}"></i>{escape(name or "(no name)")}</span>'
        for index, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(found)}</p>'
