"""What a bench found: throughput, quantiles, and a picture of the latencies."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 300, 50, 36, 30
COLORS = ("#2f6db3", "#d9822b", "#3a9a5f")


class Taken(NamedTuple):
    """One answered request: seconds in all, to the first token (0: none), in the queue; tokens in and out."""

    seconds: float
    first: float
    queued: float
    prompt: int
    generated: int


class Quantiles(Struct, frozen=True, omit_defaults=True):
    """Of some times, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float
    all: list[float] = []

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Quantiles":
        """By nearest rank."""
        ordered = [round(value * 1000, 3) for value in sorted(seconds)] or [0.0]
        p50, p90, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.9, 0.99))
        return cls(round(sum(ordered) / len(ordered), 3), p50, p90, p99, ordered[-1], ordered)


class Report(Struct, frozen=True, omit_defaults=True):
    """A bench. Rates are per second; `ttft` is the time to first token, `tpot` the time per token after it."""

    deployment: str
    concurrency: int
    seconds: float
    requests: int
    requests_per_second: float
    prompt_tokens_per_second: float
    generated_tokens_per_second: float
    latency: Quantiles
    queue: Quantiles
    ttft: Quantiles | None = None
    tpot: Quantiles | None = None
    failures: int = 0
    problem: str = ""

    @classmethod
    def of(
        cls, deployment: str, concurrency: int, seconds: float, taken: Sequence[Taken], failures: int, problem: str
    ) -> "Report":
        """Sum up what was taken."""
        generating = [each for each in taken if each.generated]
        each_token = [(t.seconds - t.first) / (t.generated - 1) for t in generating if t.generated > 1]
        return cls(
            deployment,
            concurrency,
            round(seconds, 3),
            len(taken),
            round(len(taken) / seconds, 2),
            round(sum(each.prompt for each in taken) / seconds, 1),
            round(sum(each.generated for each in taken) / seconds, 1),
            Quantiles.of([each.seconds for each in taken]),
            Quantiles.of([each.queued for each in taken]),
            Quantiles.of([each.first for each in generating]) if generating else None,
            Quantiles.of(each_token) if each_token else None,
            failures,
            problem,
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows, in milliseconds."""
        named = {"latency ms": self.latency, "queue ms": self.queue, "ttft ms": self.ttft, "tpot ms": self.tpot}
        return [
            (name, *(f"{value:.1f}" for value in (q.mean, q.p50, q.p90, q.p99, q.max)))
            for name, q in named.items()
            if q is not None
        ]

    def summary(self) -> str:
        """The throughput in one line."""
        generated = f", {self.generated_tokens_per_second:.0f} generated" if self.generated_tokens_per_second else ""
        rates = f"{self.requests_per_second:.1f} requests/s, {self.prompt_tokens_per_second:.0f} prompt tokens/s"
        return f"{rates}{generated}: {self.requests} requests in {self.seconds:.1f} s"

    def plain(self) -> "Report":
        """Without every single time."""
        named = {"latency": self.latency, "queue": self.queue, "ttft": self.ttft, "tpot": self.tpot}
        return replace(self, **{name: replace(q, all=[]) for name, q in named.items() if q is not None})


def draw(found: Report) -> str:
    """An SVG: for each kind of time, which share of the requests took at most so long."""
    named = [("latency", found.latency), ("time to first token", found.ttft), ("queue", found.queue)]
    series = [(name, quantiles.all) for name, quantiles in named if quantiles is not None]
    most = max(max(values) for _, values in series) or 1.0
    shapes = []
    for index, (name, values) in enumerate(series):
        color = COLORS[index]
        points = " ".join(f"{_x(value, most):.1f},{_y((at + 1) / len(values)):.1f}" for at, value in enumerate(values))
        shapes.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        shapes.append(f'<text x="{LEFT + 10}" y="{TOP + 16 * (index + 1)}" fill="{color}">{escape(name)}</text>')
    for share in (0.0, 0.5, 0.9, 0.99, 1.0):
        shapes.append(f'<text x="{LEFT - 6}" y="{_y(share) + 4:.1f}" text-anchor="end">{share:g}</text>')
        shapes.append(f'<path d="M{LEFT} {_y(share):.1f}H{WIDTH - 10}" stroke="#d5d9de"/>')
    for tick in range(6):
        value = most * tick / 5
        shapes.append(f'<text x="{_x(value, most):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{value:.4g} ms</text>')
    title = f"{found.deployment}: {found.concurrency} clients, {found.requests_per_second:g} requests/s"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11" fill="#444"><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>{"".join(shapes)}</svg>\n'
    )


def _x(value: float, most: float) -> float:
    return LEFT + (WIDTH - LEFT - 40) * value / most


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * share
