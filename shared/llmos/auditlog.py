"""Read, prove and verify an audit log on disk, offline: what an auditor does with a directory and the log's public key.

A running service may go on writing while its log is read.
"""

import base64
import os
from pathlib import Path

from msgspec import Struct, field

from llmos import tlog
from llmos.auditfiles import LogFiles, decode_entry, encode_entry, follow_sequence, log_directory, verifier_key_file
from llmos.contracts.audit import EntryView, LogEntry, ProofAnswered
from llmos.errors import Fatal, NotFound, Rejected
from llmos.note import Checkpoint, VerifierKey, open_checkpoint

__all__ = [
    "LogFault",
    "Report",
    "find_event",
    "inclusion_proof",
    "log_directory",
    "read_entries",
    "read_remembered",
    "remember",
    "verifier_key_file",
    "verify_log",
    "verify_proof",
]

_ALTERED = "The entry, its place or the checkpoint was altered; get the proof again, and compare the log's key."


class LogFault(Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong with a log.

    `code`: `checkpoint` (unreadable or badly signed), `entry` (altered or moved), `unreadable`, `sequence` (entries are
    missing or moved), `missing` (cut off), `tile`, `root`, `rollback` or `fork` (against the remembered checkpoint).
    `index` is the first bad entry, with its stream `sequence` and `subject` as far as they can be read.
    """

    code: str
    message: str
    index: int | None = None
    sequence: int | None = None
    subject: str = ""

    def __str__(self) -> str:
        if self.index is None:
            return self.message
        where = [f"entry {self.index}"]
        where += [f"stream sequence {self.sequence}"] if self.sequence is not None else []
        where += [self.subject] if self.subject else []
        return f"{', '.join(where)}: {self.message}"


class Report(Struct, frozen=True):
    """What verification found. `root` is base64; `checkpoint` the signed note, to remember when `ok`.

    `problems` holds the first fault of each code, in the order in which they were found.
    """

    origin: str = ""
    size: int = 0
    root: str = ""
    checkpoint: str = ""
    problems: list[LogFault] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def first_bad(self) -> LogFault | None:
        """The fault with the smallest index: the first bad entry, where one can be named."""
        return min((fault for fault in self.problems if fault.index is not None), key=_index, default=None)


def _index(fault: LogFault) -> int:
    return fault.index or 0


def read_entries(directory: Path, start: int = 0, limit: int = 100) -> list[EntryView]:
    """At most `limit` entries from `start` on, not verified. Raises `NotFound`, `Rejected`."""
    if start < 0 or limit < 0:
        raise Rejected("entries are counted from 0 on", param="start")
    files = LogFiles.at(directory)
    size = Checkpoint.parse(files.checkpoint()).size
    end = min(size, start + limit)
    return [EntryView(index, decode_entry(data)) for index, data in enumerate(files.entries(start, end, size), start)]


def find_event(directory: Path, event: str) -> int:
    """The index of an event, found by reading the log from its beginning. Raises `NotFound`, `Rejected`."""
    files = LogFiles.at(directory)
    size = Checkpoint.parse(files.checkpoint()).size
    for index, data in enumerate(files.entries(0, size, size)):
        if decode_entry(data).event == event:
            return index
    raise NotFound(f"no event {event} is in the log of {size} entries", param="event")


def inclusion_proof(directory: Path, index: int) -> ProofAnswered:
    """The proof that an entry is in the log, as the audit service gives it too. Raises `NotFound`, `Rejected`."""
    files = LogFiles.at(directory)
    note = files.checkpoint()
    size = Checkpoint.parse(note).size
    path = tlog.inclusion_proof(index, size, files.hashes(size))
    (data,) = files.entries(index, index + 1, size)
    return ProofAnswered(index, decode_entry(data), [base64.b64encode(node).decode() for node in path], note)


def verify_proof(proof: ProofAnswered, verifier_key: str) -> Checkpoint:
    """The log's checkpoint, if the proof shows that its entry is in the log. Raises `Rejected`."""
    checkpoint = open_checkpoint(proof.checkpoint, VerifierKey.parse(verifier_key))
    try:
        path = [base64.b64decode(node, validate=True) for node in proof.hashes]
    except ValueError as error:
        raise Rejected("the proof's hashes are not base64", remedy=_ALTERED) from error
    leaf = tlog.leaf_hash(encode_entry(proof.entry))
    if not tlog.verify_inclusion(proof.index, checkpoint.size, leaf, path, checkpoint.root):
        raise Rejected(f"this entry is not the log's entry {proof.index} of {checkpoint.size}", remedy=_ALTERED)
    return checkpoint


def verify_log(directory: Path, verifier_key: str, *, remembered: Checkpoint | None = None) -> Report:
    """Recompute the whole log from its entries and compare it with its tiles, its checkpoint and a remembered one.

    Reads every entry once, in O(log n) memory. Never raises for what is wrong with the log: that is in the report.
    Raises `Rejected` for a bad `verifier_key`, `NotFound` where there is no log.
    """
    files = LogFiles.at(directory)
    walk = _Walk(files, remembered)
    key = VerifierKey.parse(verifier_key)
    try:
        note = files.checkpoint()
        checkpoint = Checkpoint.parse(note)
    except NotFound:
        raise
    except Rejected as error:
        return Report(problems=[LogFault("checkpoint", str(error))])
    try:
        open_checkpoint(note, key)
    except Rejected as error:
        walk.fault("checkpoint", str(error))
    walk.entries(checkpoint)
    root = base64.b64encode(walk.root()).decode()
    return Report(checkpoint.origin, checkpoint.size, root, note, list(walk.faults.values()))


class _Walk:
    """One pass over a log, from the first entry to the last."""

    def __init__(self, files: LogFiles, remembered: Checkpoint | None) -> None:
        self.files = files
        self.remembered = remembered
        self.tree = tlog.TiledTree()
        self.faults: dict[str, LogFault] = {}
        self.sequence = 0

    def root(self) -> bytes:
        return self.tree.frontier.root()

    def fault(self, code: str, message: str, index: int | None = None, entry: LogEntry | None = None) -> None:
        sequence, subject = (entry.sequence, entry.subject) if entry else (None, "")
        self.faults.setdefault(code, LogFault(code, message, index, sequence, subject))

    def entries(self, checkpoint: Checkpoint) -> None:
        size = checkpoint.size
        self._compare_with_remembered(checkpoint)
        for index in range((size + tlog.TILE_WIDTH - 1) // tlog.TILE_WIDTH):
            width = tlog.tile_width(0, index, size)
            try:
                bundle = self.files.bundle(index, width)
            except Rejected:
                bundle = []
            hashes = self._tile(0, index, width)
            for offset, data in enumerate(bundle):
                self._entry(data, hashes[offset] if hashes else None, size)
            if len(bundle) < width:
                at = f"after stream sequence {self.sequence}" if self.sequence else "at its beginning"
                message = f"missing: the log was cut off {at}, its checkpoint says {size} entries"
                self.fault("missing", message, self.tree.size)
                return
        for tile in self.tree.partial_tiles():
            self._check_tile(tile, size)
        if self.root() != checkpoint.root:
            self.fault("root", f"the root over the {size} entries is not the checkpoint's: the log was rewritten")
        elif altered := self.faults.pop("entry", None):
            self.fault("tile", f"tile/0 has another hash of entry {altered.index}; the entries themselves are intact")

    def _entry(self, data: bytes, expected: bytes | None, size: int) -> None:
        index = self.tree.size
        leaf = tlog.leaf_hash(data)
        try:
            entry = decode_entry(data)
        except Rejected as error:
            self.fault("unreadable", str(error), index)
        else:
            if expected is not None and leaf != expected:
                self.fault("entry", "not the entry that was logged here: altered, moved or deleted", index, entry)
            try:
                self.sequence = follow_sequence(self.sequence, entry)
            except Rejected as error:
                self.fault("sequence", f"{error}: entries are missing or moved", index, entry)
                self.sequence = entry.sequence
        for tile in self.tree.append(leaf):
            self._check_tile(tile, size)
        old = self.remembered
        if old and old.size == self.tree.size and old.root != self.root():
            self.fault(
                "fork", f"the first {old.size} entries are not those that were remembered: history was rewritten"
            )

    def _check_tile(self, tile: tlog.Tile, size: int) -> None:
        level, number, hashes = tile
        stored = self._tile(level, number, len(hashes)) if level else hashes  # level 0 is compared entry by entry
        if stored and stored != hashes:
            first = next(at for at, (one, other) in enumerate(zip(stored, hashes, strict=True)) if one != other)
            start = (number * tlog.TILE_WIDTH + first) << tlog.TILE_HEIGHT * level
            end = min(size, start + (1 << tlog.TILE_HEIGHT * level))
            path = tlog.tile_path(level, number, len(hashes))
            self.fault("tile", f"{path} does not fit the entries {start} to {end - 1}")

    def _tile(self, level: int, index: int, width: int) -> list[bytes]:
        try:
            return tlog.split_tile(self.files.tile(level, index, width))
        except Rejected as error:
            self.fault("tile", str(error))
            return []

    def _compare_with_remembered(self, checkpoint: Checkpoint) -> None:
        old = self.remembered
        if old and old.origin != checkpoint.origin:
            self.fault("fork", f"the remembered checkpoint is of the log {old.origin}, this one is {checkpoint.origin}")
        elif old and old.size > checkpoint.size:
            message = f"missing: {old.size} entries were remembered, the log has {checkpoint.size}"
            self.fault("rollback", message, checkpoint.size)
        elif old and old.size == 0 and old.root != tlog.EMPTY_ROOT:
            self.fault("fork", "the remembered checkpoint is of an empty log with a wrong root")


def read_remembered(file: Path, verifier_key: str) -> Checkpoint | None:
    """The checkpoint that an auditor remembered, verified; `None` if there is no such file. Raises `Rejected`."""
    try:
        return open_checkpoint(file.read_text(), VerifierKey.parse(verifier_key))
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise Rejected(f"{file} holds no checkpoint") from error


def remember(file: Path, note: str) -> None:
    """Keep the checkpoint of a log that was verified. When it returns, the file is whole on disk. Raises `Fatal`."""
    part = file.with_name(file.name + ".tmp")
    try:
        with part.open("w") as out:
            out.write(note)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    except OSError as error:
        raise Fatal(f"the checkpoint can't be remembered in {file}: {error}") from error
