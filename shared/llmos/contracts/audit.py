"""Audit: the entries of the log, and what can be asked of it (`llmos.call.audit.<verb>.<id>`)."""

from msgspec import Struct, field

from llmos.contracts.envelope import Envelope

ENTRY_LIMIT = 65_535  # bytes of one entry: its length is a uint16 in the log's files
GAP = "llmos.audit.gap"  # subject of an entry that is no event: its data is a `SequenceGap`
REMADE = "llmos.audit.remade"  # likewise: a `StreamRemade`


class LogEntry(Struct, frozen=True, omit_defaults=True):
    """One entry of the transparency log: an event exactly as the bus stored it.

    `sequence` is its place in the EVENTS stream, `headers` its envelope, `data` its body as JSON text. A body that
    does not fit into an entry (65,535 bytes), or is no text, is left out: then `data` is empty, `digest` the body's
    `sha256:<hex>` and `size` its length in bytes.
    """

    sequence: int
    subject: str
    headers: dict[str, str]
    data: str
    digest: str = ""
    size: int = 0

    @property
    def event(self) -> str:
        """The event's id; empty for an entry that is no event, or came without one."""
        return "" if self.subject in (GAP, REMADE) else Envelope.from_headers(self.headers).id


class SequenceGap(Struct, frozen=True):
    """The stream no longer had the messages `first` to `last` when the log came to them: expired, deleted or purged.

    The entry's own `sequence` is `last`, so that sequences stay contiguous.
    """

    first: int
    last: int


class StreamRemade(Struct, frozen=True):
    """The EVENTS stream is not the one that was heard until `heard`: its sequences begin again.

    `found` is the newest sequence of the new stream. The entry's own `sequence` is 0; 1 follows.
    """

    heard: int
    found: int


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
