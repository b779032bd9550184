"""What the log says about what is heard: pure, no I/O.

Every message becomes one entry, in the order of its stream sequence. What the log can't have is said as well: a gap
in the sequences, or a stream that is not the one heard before. So an entry always follows from the one before it.
"""

from hashlib import sha256

import msgspec

from llmos.contracts.audit import ENTRY_LIMIT, GAP, REMADE, LogEntry, SequenceGap, StreamRemade
from llmos_audit.state import Position

HEADERS_LIMIT = 16_384  # bytes of headers that are kept when an entry is too large


def decide(position: Position, heard: LogEntry) -> list[LogEntry]:
    """The entries to append for a message that was heard.

    None, when it is the newest one, heard again. Only a `StreamRemade`, when it can't be of the stream that was heard
    so far: then the stream has to be heard again from its beginning.
    """
    expected = position.sequence + 1
    if heard.sequence == position.sequence and heard == position.event:
        return []
    if heard.sequence < expected:
        return [stream_remade(position, heard.sequence)]
    if heard.sequence > expected:
        return [_gap(expected, heard.sequence - 1), heard]
    return [heard]


def stream_remade(position: Position, found: int) -> LogEntry:
    """The entry that says that the stream's sequences begin again."""
    return _fact(0, REMADE, StreamRemade(position.sequence, found))


def _gap(first: int, last: int) -> LogEntry:
    return _fact(last, GAP, SequenceGap(first, last))


def _fact(sequence: int, subject: str, fact: msgspec.Struct) -> LogEntry:
    return LogEntry(sequence, subject, {"ce-type": f"{subject}.v1"}, msgspec.json.encode(fact).decode())


def entry_of(sequence: int, subject: str, headers: dict[str, str], data: bytes) -> LogEntry:
    """The entry for a message: whole, or with its body's digest and size where it does not fit or is no text."""
    try:
        entry = LogEntry(sequence, subject, headers, data.decode())
    except UnicodeDecodeError:
        entry = None
    if entry and _length(entry) <= ENTRY_LIMIT:
        return entry
    digest = f"sha256:{sha256(data).hexdigest()}"
    if len(msgspec.json.encode(headers)) > HEADERS_LIMIT:
        headers = _short(headers)
    return LogEntry(sequence, subject, headers, "", digest, len(data))


def _short(headers: dict[str, str]) -> dict[str, str]:
    """Headers that are too large: as many as fit, and the digest of all."""
    kept: dict[str, str] = {}
    room = HEADERS_LIMIT
    for name, value in headers.items():
        if (length := _length({name: value})) <= room:
            kept[name] = value
            room -= length
    kept["llmos-headers-digest"] = f"sha256:{sha256(msgspec.json.encode(headers)).hexdigest()}"
    return kept


def _length(value: object) -> int:
    return len(msgspec.json.encode(value))


def job_of(entry: LogEntry) -> str:
    """The id of the job that an event is about; empty if it is about none."""
    try:
        body = msgspec.json.decode(entry.data, type=_Body)
    except msgspec.DecodeError:
        parts = entry.subject.split(".")
        return parts[5] if entry.subject.startswith("llmos.evt.job.") and len(parts) == 6 else ""
    return body.job or (body.version.job if isinstance(body.version, _Version) else "")


class _Version(msgspec.Struct):
    job: str = ""


class _Body(msgspec.Struct):
    job: str = ""
    version: _Version | int | None = None
