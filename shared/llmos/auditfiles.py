"""The files of an audit log: a C2SP tlog-tiles directory (`checkpoint`, `tile/…`) whose entries are `LogEntry` JSON.

Shared by the service that writes the log and the auditor who reads it; nothing here writes.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import msgspec

from llmos.contracts.audit import GAP, REMADE, LogEntry, SequenceGap, StreamRemade
from llmos.errors import NotFound, Rejected
from llmos.tlog import HASH_SIZE, TILE_WIDTH, HashReader, split_bundle, tile_hashes, tile_path, tile_width

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(LogEntry)


def log_directory(data_dir: Path) -> Path:
    """Where the audit service keeps its log."""
    return data_dir / "audit"


def verifier_key_file(data_dir: Path) -> Path:
    """Where the audit service writes its public key, one line; an auditor keeps a copy elsewhere."""
    return data_dir / "audit.pub"


def encode_entry(entry: LogEntry) -> bytes:
    """The bytes of an entry that are hashed; the same entry always gives the same bytes."""
    return _encoder.encode(entry)


def decode_entry(data: bytes) -> LogEntry:
    """Read an entry's bytes. Raises `Rejected`."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected(f"an entry of the log can't be read: {error}") from error


def follow_sequence(last: int, entry: LogEntry) -> int:
    """The stream sequence to which the log has come after `entry`, from `last` before it.

    Raises `Rejected` if the entry does not follow: something was taken out, put in or moved.
    """
    first = entry.sequence
    try:
        if entry.subject == REMADE:
            if msgspec.json.decode(entry.data, type=StreamRemade).heard == last:
                return 0
            raise Rejected(f"a stream heard until {last} was not made again there")
        if entry.subject == GAP:
            first = msgspec.json.decode(entry.data, type=SequenceGap).first
    except msgspec.DecodeError as error:
        raise Rejected(f"an entry that is no event can't be read: {error}") from error
    if first != last + 1 or entry.sequence < first:
        raise Rejected(f"stream sequence {first} follows {last}")
    return entry.sequence


class LogFiles:
    """The files of one log, read by name; the function that reads one raises `FileNotFoundError`."""

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read

    @classmethod
    def at(cls, directory: Path) -> "LogFiles":
        """The log in a directory."""
        return cls(lambda name: (directory / name).read_bytes())

    def checkpoint(self) -> str:
        """The newest checkpoint: a signed note, not verified. Raises `NotFound`, `Rejected`."""
        try:
            return self._read("checkpoint").decode()
        except FileNotFoundError as error:
            raise NotFound("there is no file `checkpoint`", remedy="Name the audit log's directory.") from error
        except UnicodeDecodeError as error:
            raise Rejected("the checkpoint is damaged: it is not text") from error

    def tile(self, level: int, index: int, width: int) -> bytes:
        """`width` hashes. Raises `Rejected` if they are not there."""
        data = self._part_or_whole(level, index, width)[: width * HASH_SIZE]
        if len(data) != width * HASH_SIZE:
            raise Rejected(f"{tile_path(level, index, width)} is cut off")
        return data

    def bundle(self, index: int, width: int) -> list[bytes]:
        """At most `width` entries: fewer if the bundle is cut off. Raises `Rejected` if it is not there."""
        return split_bundle(self._part_or_whole("entries", index, width))[:width]

    def hashes(self, size: int) -> HashReader:
        """Any perfect subtree's hash of the tree of this size; keeps at most 256 tiles (2 MiB) in memory."""
        return tile_hashes(size, lru_cache(maxsize=256)(self.tile))

    def entries(self, start: int, end: int, size: int) -> Iterator[bytes]:
        """The entries from `start` to before `end` of a log of `size`. Raises `Rejected` where one is missing."""
        while start < end:
            index, offset = divmod(start, TILE_WIDTH)
            got = self.bundle(index, tile_width(0, index, size))[offset : offset + end - start]
            if not got:
                raise Rejected(f"entry {start} is missing from {tile_path('entries', index)}")
            yield from got
            start += len(got)

    def _part_or_whole(self, level: int | str, index: int, width: int) -> bytes:
        for name in dict.fromkeys((tile_path(level, index, width), tile_path(level, index))):
            try:
                return self._read(name)
            except FileNotFoundError:
                continue  # a part may be deleted once the whole tile is there
        raise Rejected(f"{tile_path(level, index, width)} is missing")
