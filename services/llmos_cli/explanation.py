"""How an answer of `llmos explain` and `llmos plan` is shown to a person."""

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llmos_cli.printing import duration, moment

if TYPE_CHECKING:
    from llmos.contracts.jobs import Explanation


SHOWN = 8  # names of a list


def print_explanation(answer: "Explanation", indent: int = 0) -> None:
    """Everything but the summary: what it waits for, who holds that, when it starts, what would help."""
    width = max((len(obstacle.kind) for obstacle in answer.waits_for), default=0)
    waits = []
    for obstacle in answer.waits_for:
        held = f"; held by {names(obstacle.held_by)}" if obstacle.held_by else ""
        waits.append(f"{obstacle.kind:<{width}}  {obstacle.message}{held}")
    start = answer.earliest_start
    _lines("starts on", answer.starts_on, indent)
    _lines("preempts", answer.preempts, indent)
    _lines("waits for", waits, indent)
    _lines("why", answer.reasons, indent)
    _lines("ahead of it", [names(answer.ahead)] if answer.ahead else [], indent)
    if start is not None and answer.waits_for:
        print(f"{' ' * indent}earliest start: in about {duration(start - time.time())}, {moment(start)}")
    elif answer.held_by:
        print(f"{' ' * indent}earliest start: not known yet")
    _lines("would let it run now", answer.would_run, indent)
    _lines("what helps", answer.remedies, indent)


def names(found: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def _lines(title: str, lines: Iterable[str], indent: int) -> None:
    lines = list(lines)
    if lines:
        print(f"{' ' * indent}{title}:", *(f"{' ' * indent}  {line.replace(chr(10), ' ')}" for line in lines), sep="\n")
