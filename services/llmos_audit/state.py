"""How far the log has come in the EVENTS stream; the newest entry alone tells it, so the log is its own cursor."""

from msgspec import Struct

from llmos.contracts.audit import GAP, REMADE, LogEntry


class Position(Struct, frozen=True):
    """`sequence` is the newest one that the log covers. `event` is the newest entry, if it is an event."""

    sequence: int = 0
    event: LogEntry | None = None


def apply(position: Position, entry: LogEntry) -> Position:
    """Where the log stands after one more entry."""
    return Position(entry.sequence, None if entry.subject in (GAP, REMADE) else entry)
