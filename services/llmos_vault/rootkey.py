"""The root key's file: who may read it is checked before it is, and it is made once and never overwritten."""

import os
import secrets
import stat
from pathlib import Path

from llmos.errors import Fatal, Rejected
from llmos.sealing import RootKey

LIMIT = 4096  # bytes; the file holds 45


def fault_of(status: os.stat_result, *, user: int, groups: frozenset[int]) -> str:
    """Why a file can't hold a root key for this user; empty if it can.

    It must be a file of ours (or of root: a mounted secret) that nobody else can read. Root may let one of our groups
    read its file, which is how Kubernetes hands a secret to a process that is not root.
    """
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if status.st_uid not in (user, 0):
        return f"belongs to user {status.st_uid}"
    allowed = 0o600
    if status.st_uid == 0 and user != 0 and status.st_gid in groups:
        allowed = 0o640
    if mode & ~allowed:
        return f"has mode {mode:04o}: others than its owner can read or change it"
    return ""


def read_root(path: Path) -> RootKey | None:
    """The root key, or `None` if there is no file. Raises `Fatal`, with the remedy, for one that can't be trusted."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Fatal(
            f"can't read the root key {path}: {error.strerror}", remedy="Let the vault's user own it, mode 0600."
        ) from error
    try:
        fault = fault_of(os.fstat(descriptor), user=os.geteuid(), groups=frozenset({os.getegid(), *os.getgroups()}))
        if fault:
            raise Fatal(
                f"the root key {path} {fault}",
                remedy=f"chown {os.geteuid()} {path} && chmod 600 {path} (mounted by Kubernetes: defaultMode 0400).",
            )
        text = os.read(descriptor, LIMIT)
    finally:
        os.close(descriptor)
    try:
        return RootKey.from_text(text.decode("ascii"))
    except (Rejected, UnicodeDecodeError):
        raise Fatal(
            f"{path} holds no root key",
            remedy="Restore it from its backup. (For a new stack, `openssl rand -base64 32` makes one.)",
        ) from None


def create_root(path: Path) -> RootKey:
    """Make a root key. When it returns, the key is on the disk. Raises `Fatal` if it can't be made, or is there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, RootKey.new_text().encode())
            os.fsync(descriptor)
            os.link(part, path)  # unlike a rename, this never replaces a key that somebody made meanwhile
        finally:
            os.close(descriptor)
            part.unlink()
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    except OSError as error:
        raise Fatal(
            f"can't make the root key {path}: {error.strerror}", remedy="Name a place that the vault can write to."
        ) from error
    root = read_root(path)
    assert root is not None
    return root
