"""Audit: what can be asked of the log (`llmos.call.audit.<verb>.<id>`)."""

from msgspec import Struct, field


class LogEntry(Struct, frozen=True, omit_defaults=True):
    """One entry of the transparency log: an event exactly as the bus stored it.

    `sequence` is its place in the EVENTS stream, `headers` its envelope, `data` its body as JSON text.
    """

    sequence: int
    subject: str
    headers: dict[str, str]
    data: str


class CheckpointRequested(Struct, frozen=True, omit_defaults=True):
    """Ask for the newest signed checkpoint."""


class CheckpointAnswered(Struct, frozen=True, omit_defaults=True):
    """A C2SP signed-note checkpoint as text, and the log's public key as a C2SP verifier key."""

    checkpoint: str
    verifier_key: str


class ProofRequested(Struct, frozen=True, omit_defaults=True):
    """Ask for the proof that an entry (index, or event id) is in the log."""

    index: int | None = None
    event: str | None = None


class ProofAnswered(Struct, frozen=True, omit_defaults=True):
    """RFC 6962 inclusion proof: the entry, its index, the hashes (base64) from leaf to root, and the checkpoint."""

    index: int
    entry: LogEntry
    hashes: list[str]
    checkpoint: str


class EntriesRequested(Struct, frozen=True, omit_defaults=True):
    """Ask for entries: from `start`, at most `limit`; only those of `job` when it is given."""

    start: int = 0
    limit: int = 100
    job: str | None = None


class EntryView(Struct, frozen=True, omit_defaults=True):
    """An entry and its index."""

    index: int
    entry: LogEntry


class EntriesAnswered(Struct, frozen=True, omit_defaults=True):
    """Entries in order; `size` is the log's."""

    size: int
    entries: list[EntryView] = field(default_factory=list)
