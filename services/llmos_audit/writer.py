"""The one writer of a log: appends entries, and signs a checkpoint over each batch.

Order of every batch: entries on disk, then tiles, then the signature, then the checkpoint by rename. So whatever was
signed is on disk, and what is on disk beyond the checkpoint is taken up again by the next start, never replaced: no
two trees of one size are ever signed.
"""

from collections.abc import Sequence

from llmos.auditfiles import LogFiles, decode_entry, encode_entry
from llmos.contracts.audit import ENTRY_LIMIT, LogEntry
from llmos.errors import Fatal, Rejected
from llmos.note import Checkpoint, SigningKey, open_checkpoint
from llmos.tlog import (
    EMPTY_ROOT,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    TiledTree,
    join_bundle,
    leaf_hash,
    split_bundle,
    split_tile,
    tile_path,
    tile_width,
)
from llmos_audit.files import DiskFiles
from llmos_audit.state import Position, apply

_ALTERED = "Find out what changed it (`llmos audit verify` names the first bad entry), and restore the log's folder."


class LogWriter:
    """A log on disk, open for appending. After an error it takes nothing more: open it again."""

    def __init__(self, files: DiskFiles, key: SigningKey) -> None:
        """Open a log that `begin` once made, and verify what it grows on. `files` must be locked.

        Entries that an interrupted batch left on disk are taken up. Raises `Fatal` if the log is not whole, or was
        signed by another key.
        """
        self._files = files
        self._key = key
        self.verifier = key.verifier
        self._broken = False
        self._tree = TiledTree()
        self._bundle = bytearray()  # the newest bundle, while it is not full
        self.note = ""
        self.position = Position()
        try:
            self._recover(LogFiles(files.read))
        except Rejected as error:
            raise Fatal(f"the log in {files.root} is not as it was written: {error}", remedy=_ALTERED) from error

    @classmethod
    def begin(cls, files: DiskFiles, key: SigningKey) -> "LogWriter":
        """Open a new log: signs the checkpoint of the empty tree, unless an interrupted `begin` has."""
        if not files.names("tile") and "checkpoint" not in files.names("."):
            files.put({"checkpoint": key.sign(Checkpoint(key.verifier.name, 0, EMPTY_ROOT).to_text()).encode()})
        return cls(files, key)

    @property
    def size(self) -> int:
        """Entries in the log."""
        return self._tree.size

    @property
    def room(self) -> int:
        """How many entries fill the newest bundle: a batch of so many writes the fewest files."""
        return TILE_WIDTH - self.size % TILE_WIDTH

    def append(self, entries: Sequence[LogEntry]) -> None:
        """Add entries to the end. When it returns, they are on disk and `checkpoint` is signed over them.

        When it raises `Fatal`, they may be there or not: a fresh `LogWriter` tells, by its `position`.
        """
        encoded = [encode_entry(entry) for entry in entries]
        if too_long := next((len(data) for data in encoded if len(data) > ENTRY_LIMIT), 0):
            raise ValueError(f"an entry of {too_long} bytes does not fit a bundle (limit {ENTRY_LIMIT})")
        if encoded:
            self._extend(encoded)

    def _extend(self, batch: Sequence[bytes]) -> None:
        if self._broken:
            raise Fatal("the log can't be written", remedy="Start the service again; it recovers the log.")
        self._broken = True
        try:
            self._commit(batch)
        except OSError as error:
            raise Fatal(
                f"can't write the log in {self._files.root}: {error.strerror or error}",
                remedy="Make room or mend the disk; the service recovers the log when it starts again.",
            ) from error
        self._broken = False
        self.position = apply(self.position, decode_entry(batch[-1]))

    def _commit(self, batch: Sequence[bytes]) -> None:
        old = self.size
        bundles: dict[str, bytes] = {}
        tiles: dict[str, bytes] = {}
        for data in batch:
            self._bundle += len(data).to_bytes(2) + data
            for tile in self._tree.append(leaf_hash(data)):
                tiles |= _file(tile)
                if tile.level == 0:
                    bundles[tile_path("entries", tile.number)] = bytes(self._bundle)
                    self._bundle.clear()
        if self._bundle:
            bundles[tile_path("entries", *divmod(self.size, TILE_WIDTH))] = bytes(self._bundle)
        for tile in self._tree.partial_tiles():
            if self.size >> TILE_HEIGHT * tile.level != old >> TILE_HEIGHT * tile.level:
                tiles |= _file(tile)
        self._files.put(bundles)
        self._files.put(tiles)
        checkpoint = Checkpoint(self.verifier.name, self.size, self._tree.frontier.root())
        note = self._key.sign(checkpoint.to_text())
        self._files.put({"checkpoint": note.encode()})
        self.note = note
        self._drop_parts(old)

    def _drop_parts(self, old: int) -> None:
        """Remove the partial tiles that a whole one has replaced since the log had `old` entries."""
        for level in range(8):
            number = old >> TILE_HEIGHT * (level + 1)
            if self.size >> TILE_HEIGHT * (level + 1) <= number:
                return
            for kind in ("entries", 0) if level == 0 else (level,):
                self._files.remove(f"{tile_path(kind, number)}.p")

    def _recover(self, log: LogFiles) -> None:
        self.note = log.checkpoint()
        checkpoint = open_checkpoint(self.note, self.verifier)
        size = checkpoint.size
        self._tree = TiledTree(size, log.tile)
        if self._tree.frontier.root() != checkpoint.root:
            raise Rejected(f"its tiles do not have the root of its checkpoint of {size} entries")
        newest: list[bytes] = []  # the entries of the newest bundle, full or not
        if size:
            number = (size - 1) // TILE_WIDTH
            width = tile_width(0, number, size)
            newest = log.bundle(number, width)
            if [leaf_hash(data) for data in newest] != split_tile(log.tile(0, number, width)):
                raise Rejected("its newest entries are not those of its newest tile")
            self.position = apply(Position(), decode_entry(newest[-1]))
        known = newest if size % TILE_WIDTH else []
        self._bundle = bytearray(join_bundle(known))
        found = self._beyond(size // TILE_WIDTH, known)
        if found:
            self._extend(found)
        else:
            self._drop_parts(max(0, size - TILE_WIDTH))

    def _beyond(self, number: int, known: list[bytes]) -> list[bytes]:
        """The entries on disk that follow the checkpoint: a batch that was interrupted before it was signed."""
        found: list[bytes] = []
        while True:
            entries = self._longest_bundle(number, known)
            if entries[: len(known)] != known:
                raise Rejected(f"unsigned entries in {tile_path('entries', number)} do not continue the signed ones")
            found += entries[len(known) :]
            if len(entries) < TILE_WIDTH:
                return found
            number, known = number + 1, []

    def _longest_bundle(self, number: int, known: list[bytes]) -> list[bytes]:
        """The longest whole bundle of this number, at least `known`; longer ones that are torn are removed."""
        parts = (int(name) for name in self._files.names(f"{tile_path('entries', number)}.p") if name.isdigit())
        for width in [TILE_WIDTH, *sorted(parts, reverse=True)]:
            if width <= len(known):
                break
            name = tile_path("entries", number, width)
            try:
                data = self._files.read(name)
            except FileNotFoundError:
                continue
            entries = split_bundle(data)
            if len(entries) == width and len(join_bundle(entries)) == len(data):
                return entries
            self._files.remove(name)
        return known


def _file(tile: Tile) -> dict[str, bytes]:
    return {tile_path(tile.level, tile.number, len(tile.hashes)): b"".join(tile.hashes)}
