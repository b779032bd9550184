"""What commands print on stdout: a table for people, JSON or YAML for programs."""

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import msgspec

Row = Sequence[object]


def print_value(value: Any, output: str) -> None:
    """Print a value as JSON or YAML."""
    if output == "yaml":
        import yaml

        print(yaml.safe_dump(msgspec.to_builtins(value), sort_keys=False, allow_unicode=True), end="")
    else:
        print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(header: Sequence[str], rows: Iterable[Row]) -> None:
    """Print columns, each as wide as its longest cell."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        print("   ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def print_fields(fields: Iterable[tuple[str, object]], indent: int = 0) -> None:
    """Print one `name: value` a line; what is empty is left out."""
    for name, value in fields:
        if value not in (None, "", [], {}):
            print(f"{' ' * indent}{name + ':':<{14 - indent}} {_cell(value)}")


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value).replace("\n", " ")


def numbers(values: dict[str, float]) -> str:
    """Metrics in one cell: `accuracy 0.93, loss 0.21`."""
    return ", ".join(f"{name} {number(value)}" for name, value in values.items())


def number(value: float) -> str:
    """Four digits, and all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def size(count: float) -> str:
    """Bytes in the largest unit that fits: `22.1 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds in at most two units: `42 s`, `3 min 5 s`, `2 h 10 min`, `5 d 3 h`."""
    total = max(0, round(seconds))
    units = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
    for (length, name), (below, below_name) in pairwise(units):
        if total >= length:
            rest = total % length // below
            return f"{total // length} {name}" + (f" {rest} {below_name}" if rest else "")
    return f"{total} s"


def age(at: float) -> str:
    """How long ago a Unix time was."""
    return duration(time.time() - at)


def moment(at: float | None) -> str:
    """A Unix time in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if at else ""
