"""Files that survive a crash: each is written whole under another name, synced, renamed, and its folder synced.

The steps are separate methods, so that a test can let each of them fail, before or after it took effect.
"""

import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from llmos.errors import Fatal

PART = ".part"  # the suffix of a file that is being written


class DiskFiles:
    """The files under one folder, by name (`tile/0/000`)."""

    def __init__(self, root: Path, *, mode: int = 0o644) -> None:
        self.root = root
        self._mode = mode
        self._lock: int | None = None

    def lock(self) -> None:
        """Be the only writer until `close` or the end of the process. Raises `Fatal` if another process is."""
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise Fatal(
                f"another process writes the log in {self.root}",
                remedy="Stop it, or give this one a LLMOS_DATA_DIR of its own.",
            ) from error
        self._lock = descriptor

    def close(self) -> None:
        """Let another writer in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self, name: str) -> bytes:
        """The content of a file. Raises `FileNotFoundError`."""
        return (self.root / name).read_bytes()

    def names(self, folder: str) -> list[str]:
        """The names in a folder; none if it is not there."""
        try:
            return [path.name for path in (self.root / folder).iterdir()]
        except FileNotFoundError:
            return []

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write files in this order. When it returns, all of them are on disk, whole.

        When it raises (or the machine stops), each is there whole, or not at all, or as it was before.
        """
        changed: dict[Path, None] = {}
        for name, data in files.items():
            path = self.root / name
            for folder in [path.parent, *path.parent.parents]:
                if folder == self.root or folder.exists():
                    break
                changed[folder.parent] = None
            self._make_folder(path.parent)
            part = path.with_name(path.name + PART)
            self._write(part, data)
            self._rename(part, path)
            changed[path.parent] = None
        for folder in changed:
            self._sync(folder)

    def rename(self, name: str, to: str) -> None:
        """Give a file another name. When it returns, the new name is on disk."""
        self._rename(self.root / name, self.root / to)
        self._sync(self.root)

    def remove(self, name: str) -> None:
        """Remove a file or a folder; nothing rests on when this reaches the disk."""
        self._remove(self.root / name)

    # --- the steps ---

    def _make_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, self._mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _rename(self, part: Path, path: Path) -> None:
        part.rename(path)

    def _sync(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _remove(self, path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
