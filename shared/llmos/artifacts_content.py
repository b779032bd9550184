"""Content addresses and what both backends do with bytes: hash, verify, write in one step, work in a thread."""

import asyncio
import errno
import hashlib
import re
import secrets
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import BinaryIO, TypeVar

from llmos.errors import Busy, Damaged, NotFound, Rejected

CHUNK = 1 << 20  # bytes moved at a time

_ADDRESS = re.compile(r"sha256:([0-9a-f]{64})")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_MAX_PATH = 1024
_MAX_NAME = 255

T = TypeVar("T")


class StoppedError(Exception):
    """The coroutine that waits for this thread was cancelled."""


def address_of(data: bytes) -> str:
    """The address of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def hex_of(address: str) -> str:
    """The 64 hex digits of an address. Raises `Rejected` for anything else."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise Rejected(
            f"{address[:100]!r} is no artifact address",
            remedy="An address is 'sha256:' and 64 digits of 0-9a-f.",
            param="artifact",
        )
    return match[1]


def check_path(path: str) -> str:
    """Refuse a path that could leave a tree or not be written; returns the form in which paths of a tree are compared.

    Two paths that some file system takes for one (upper and lower case, composed and decomposed letters) compare equal.
    """
    names = path.split("/")
    if (
        any(name in ("", ".", "..") or len(name.encode("utf-8", "replace")) > _MAX_NAME for name in names)
        or "\\" in path
        or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in path)
        or len(path.encode("utf-8", "replace")) > _MAX_PATH
    ):
        raise Rejected(
            f"{path[:200]!r} can't be a path in a tree",
            remedy="Use relative paths of plain names, with '/' between them.",
        )
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def check_paths(paths: Sequence[str]) -> None:
    """Refuse paths that leave the tree, come twice, or name a file as another's directory."""
    files = {check_path(path) for path in paths}
    if len(files) != len(paths):
        raise Rejected("two files of the tree have one path", remedy="Rename one; upper and lower case count as equal.")
    for key in files:
        above = key
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in files:
                raise Rejected(f"{above!r} is both a file and a directory of the tree", remedy="Rename one.")


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading; `NotFound` when it is none."""
    try:
        return path.open("rb")
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"{path} is no file", remedy="Give the path of a file that exists.") from None


def chunks_of(source: BinaryIO, stopped: Event) -> Iterator[bytes]:
    """Read a file to its end, a chunk at a time; raises `StoppedError` when told to."""
    while chunk := source.read(CHUNK):
        if stopped.is_set():
            raise StoppedError
        yield chunk


def write_chunks(chunks: Iterable[bytes], sink: BinaryIO) -> str:
    """Write all chunks; returns the address of what was written."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        sink.write(chunk)
    return f"sha256:{digest.hexdigest()}"


def verify(address: str, found: str, place: str) -> None:
    """Raise `Damaged` unless the content's address `found` is the one asked for."""
    if found != address:
        raise Damaged(
            f"the object {place} hashes to {found}",
            remedy=f"Remove it and store the content of {address} again.",
        )


@contextmanager
def fresh_directory(dest: Path) -> Iterator[Path]:
    """A new directory beside `dest` that becomes `dest` when the block ends well, and is removed when it doesn't.

    Raises `Rejected` when `dest` exists; a full disk becomes `Busy`.
    """
    if dest.is_symlink() or dest.exists():
        raise Rejected(f"{dest} exists", remedy="Give a path that does not exist yet.")
    dest.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", suffix=".part", dir=dest.parent))
    try:
        with _disk_errors(staging):
            yield staging
        staging.rename(dest)
    except BaseException:  # whatever ends the block, a cancellation too, nothing half done stays behind
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def new_file(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A fresh file in `folder`, open for writing, for the block to rename; removed if it is still there at the end.

    A full disk becomes `Busy`.
    """
    path = folder / f".{secrets.token_hex(8)}.part"
    try:
        with _disk_errors(folder), path.open("xb") as sink:
            yield path, sink
    finally:
        path.unlink(missing_ok=True)


async def in_thread(work: Callable[[Event], T], pool: Executor | None = None) -> T:
    """Run blocking work in a thread of `pool` (default: the loop's).

    When the caller is cancelled, `work` is told by the event and waited for, however often the request is repeated:
    once this has returned, no thread touches files that the caller is about to remove.
    """
    stopped = Event()
    future = asyncio.get_running_loop().run_in_executor(pool, work, stopped)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stopped.set()
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        future.exception()  # whatever it was, the cancellation is what the caller hears of
        raise


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Busy(f"no space is left for {folder}", remedy="Free some, then try again.") from error
        raise
