"""The artifact store in a directory of one machine: `<root>/sha256/<hex>`, written beside and renamed into place."""

import fcntl
import os
import time
from collections.abc import Iterable
from pathlib import Path
from threading import Event
from typing import BinaryIO

from llmos.artifacts_content import address_of, chunks_of, hex_of, in_thread, new_file, open_file, verify, write_chunks
from llmos.errors import Fatal, NotFound, Rejected

_ABANDONED = 24 * 3600.0  # seconds after which an unfinished file must be a dead process's
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache


class DirectoryStore:
    """Keeps the contract of `ArtifactStore` in a directory; several processes may share it.

    Persisted means: the file's content was synced, then it was renamed, then the directory was synced. A put writes
    the object anew even if it is there: that repairs a damaged one.
    """

    def __init__(self, root: Path) -> None:
        """Make the directory when it is absent; raises `Fatal` when it can't be written."""
        self._objects = root / "sha256"
        try:
            created = [folder for folder in (self._objects, *self._objects.parents) if not folder.exists()]
            self._objects.mkdir(parents=True, exist_ok=True)
            for folder in created:
                _sync(folder.parent)
            with new_file(self._objects):
                pass
            self._remove_abandoned()
        except OSError as error:
            raise Fatal(
                f"the artifact directory {root} can't be used: {error.strerror}",
                remedy="Give LLMOS_ARTIFACTS a directory that this user may write.",
            ) from error

    async def put_bytes(self, data: bytes) -> str:
        """See `ArtifactStore`."""
        return await in_thread(lambda _: self._put([data]))

    async def put_file(self, path: Path) -> str:
        """See `ArtifactStore`."""

        def work(stopped: Event) -> str:
            with open_file(path) as source:
                return self._put(chunks_of(source, stopped))

        return await in_thread(work)

    async def get_bytes(self, address: str, *, limit: int = 64 << 20) -> bytes:
        """See `ArtifactStore`."""

        def work(_: Event) -> bytes:
            with self._object(address) as source:
                data = source.read(limit + 1)
            if len(data) > limit:
                raise Rejected(f"{address} has more than {limit} bytes", remedy="Get it as a file.")
            verify(address, address_of(data), str(self._path(address)))
            return data

        return await in_thread(work)

    async def get_file(self, address: str, dest: Path) -> None:
        """See `ArtifactStore`."""

        def work(stopped: Event) -> None:
            with self._object(address) as source, new_file(dest.parent) as (path, sink):
                verify(address, write_chunks(chunks_of(source, stopped), sink), str(self._path(address)))
                sink.flush()
                path.replace(dest)

        await in_thread(work)

    async def has(self, address: str) -> bool:
        """See `ArtifactStore`."""
        return await in_thread(lambda _: self._path(address).is_file())

    async def size(self, address: str) -> int:
        """See `ArtifactStore`."""

        def work(_: Event) -> int:
            try:
                return self._path(address).stat().st_size
            except FileNotFoundError:
                raise self._not_found(address) from None

        return await in_thread(work)

    async def remove(self, address: str) -> None:
        """See `ArtifactStore`."""
        await in_thread(lambda _: self._path(address).unlink(missing_ok=True))

    def _path(self, address: str) -> Path:
        return self._objects / hex_of(address)

    def _object(self, address: str) -> BinaryIO:
        try:
            return self._path(address).open("rb")
        except FileNotFoundError:
            raise self._not_found(address) from None

    def _not_found(self, address: str) -> NotFound:
        return NotFound(f"there is no artifact {address} in {self._objects}", remedy="Look at LLMOS_ARTIFACTS.")

    def _put(self, chunks: Iterable[bytes]) -> str:
        with new_file(self._objects) as (path, sink):
            address = write_chunks(chunks, sink)
            sink.flush()
            _sync_file(sink.fileno())
            path.replace(self._path(address))
            _sync(self._objects)
        return address

    def _remove_abandoned(self) -> None:
        for path in self._objects.glob(".*.part"):
            try:
                if path.stat().st_mtime < time.time() - _ABANDONED:
                    path.unlink()
            except FileNotFoundError:
                continue  # its owner finished


def _sync_file(descriptor: int) -> None:
    if _FULL_SYNC is not None:
        fcntl.fcntl(descriptor, _FULL_SYNC)
    else:
        os.fsync(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
