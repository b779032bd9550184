"""The artifact store: immutable bytes under the digest of their content, and trees of files under a manifest.

An address is `sha256:` and 64 hex digits. A tree is stored file by file, its manifest last: whoever can read the
manifest can read the whole tree, and a crash before that leaves nothing that has an address. The two backends
(`artifacts_directory`, `artifacts_s3`) keep the contract that `ArtifactStore` states.
"""

import os
import stat
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct, field

from llmos.artifacts_content import check_paths, fresh_directory, in_thread
from llmos.errors import Damaged, NotFound, Rejected

__all__ = [
    "ArtifactStore",
    "Cipher",
    "Damaged",
    "FileEntry",
    "Manifest",
    "decode_manifest",
    "get_manifest",
    "get_tree",
    "open_store",
    "put_tree",
    "remove_tree",
]

MANIFEST_LIMIT = 16 << 20  # bytes; about 100,000 files
_TYPE = "llmos.manifest.v1"
_MAGIC = f'{{"type":"{_TYPE}",'.encode()


class ArtifactStore(Protocol):
    """Where bytes are kept under their digest.

    Durability: when a `put_*` returns an address, the object is persisted whole: a crash of this process or of the
    machine doesn't lose it. When a `put_*` raises or is cancelled, the object is either absent or there and whole,
    never in part; putting it again is safe and gives the same address.
    Integrity: no `get_*` returns or leaves bytes that don't hash to the address.

    Errors: `NotFound` for an address without an object, `Damaged` for an object that isn't what its address says,
    `Busy` when the server can't be reached or a disk is full, `Rejected` for text that is no address.
    """

    async def put_bytes(self, data: bytes) -> str:
        """Persist `data`; returns its address."""

    async def get_bytes(self, address: str, *, limit: int = 64 << 20) -> bytes:
        """The object, verified. `Rejected` when it has more than `limit` bytes."""

    async def put_file(self, path: Path) -> str:
        """Persist the content of a file; returns its address. Memory stays bounded whatever the file's size."""

    async def get_file(self, address: str, dest: Path) -> None:
        """Write the object to `dest`, verified and in one step; a failure leaves `dest` as it was."""

    async def has(self, address: str) -> bool:
        """Whether there is an object at the address."""

    async def size(self, address: str) -> int:
        """The object's size in bytes."""

    async def remove(self, address: str) -> None:
        """Forget the object, if it is there. For what its owner alone refers to, such as a checkpoint of a run."""


class Cipher(Protocol):
    """Seals the files of a tree with one key version; `name` is `<tenant>/<key version>`.

    `context` is authenticated: a sealed file opens only under the context that it was sealed under.
    """

    @property
    def name(self) -> str: ...

    def seal(self, source: Path, dest: Path, context: bytes) -> None: ...

    def unseal(self, source: Path, dest: Path, context: bytes) -> None: ...


class FileEntry(Struct, frozen=True):
    """One file of a tree: its path (relative, `/` between names) and the size and address of its stored bytes.

    In a sealed tree the stored bytes are the ciphertext.
    """

    path: str
    size: int
    digest: str


class Manifest(Struct, frozen=True, omit_defaults=True, tag_field="type", tag=_TYPE):
    """What a tree consists of. `kind` says what it is (`dataset`, `base`, `model`, `onnx`, …), `meta` is free text.

    `sealed_by` is the cipher's name when the files are encrypted. Files are sorted by path.
    """

    kind: str
    files: list[FileEntry] = field(default_factory=list)
    meta: dict[str, str] = field(default_factory=dict)
    sealed_by: str = ""


def open_store(url: str, *, env: Mapping[str, str] = os.environ) -> ArtifactStore:
    """Open the store that `url` names and check that it works.

    `file:///abs/dir` is a directory (made when absent). `s3://bucket/prefix` is a bucket (made when absent) on the
    server `LLMOS_S3_URL`, with `LLMOS_S3_ACCESS_KEY`, `LLMOS_S3_SECRET_KEY` and, if it isn't `us-east-1`,
    `LLMOS_S3_REGION`. Blocks for a few requests: open it when a process starts. Raises `Rejected` or `Fatal` with the
    remedy when the store can't be used, `Busy` when its server doesn't answer.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        from llmos.artifacts_directory import DirectoryStore

        return DirectoryStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from llmos.artifacts_s3 import S3Store, connect

        return S3Store(connect(env), parts.netloc, prefix=parts.path.strip("/"))
    raise Rejected(
        f"{url!r} is no artifact store",
        remedy="Use file:///absolute/directory or s3://bucket/prefix (LLMOS_ARTIFACTS).",
        param="artifacts",
    )


async def put_tree(
    store: ArtifactStore,
    root: Path,
    *,
    kind: str,
    meta: Mapping[str, str] | None = None,
    cipher: Cipher | None = None,
) -> str:
    """Store every file below `root`, then the manifest; returns the manifest's address.

    When it returns, the whole tree is persisted. When it doesn't, nobody knows an address of the tree, and putting it
    again is safe. The same files, kind and meta give the same address, unless a cipher seals them: then each file is
    sealed into a temporary file (`TMPDIR`) under its path as context. Empty directories aren't kept.
    Raises `Rejected` for a symbolic link, a special file, or a path that `get_tree` would refuse.
    """
    entries: list[FileEntry] = []
    for path in await in_thread(lambda _: _walk(root)):
        source = root / path
        if cipher is None:
            digest = await store.put_file(source)
        else:
            digest = await _put_sealed(store, source, path, cipher)
        entries.append(FileEntry(path, await store.size(digest), digest))
    manifest = Manifest(kind, entries, dict(meta or {}), cipher.name if cipher else "")
    return await store.put_bytes(_encode(manifest))


async def get_manifest(store: ArtifactStore, address: str) -> Manifest:
    """The manifest at `address`, verified. `Rejected` when the object there is no manifest."""
    if await store.size(address) <= MANIFEST_LIMIT:
        manifest = decode_manifest(await store.get_bytes(address, limit=MANIFEST_LIMIT))
        if manifest is not None:
            return manifest
    raise Rejected(f"{address} is no tree but a single file", remedy="Give the address of a manifest.")


def decode_manifest(data: bytes) -> Manifest | None:
    """Read a manifest; `None` for bytes that are something else. Raises `Rejected` for a manifest with a fault."""
    if not data.startswith(_MAGIC):
        return None
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Rejected(f"the manifest has a fault: {error}", remedy="Store the tree again.") from error
    check_paths([entry.path for entry in manifest.files])
    if any(entry.size < 0 for entry in manifest.files):
        raise Rejected("the manifest has a negative size", remedy="Store the tree again.")
    return manifest


async def get_tree(store: ArtifactStore, address: str, dest: Path, *, cipher: Cipher | None = None) -> Manifest:
    """Bring a tree to `dest`, which must not exist; returns its manifest.

    Everything is staged and verified in a fresh directory beside `dest`, which then gets its name: `dest` is there
    whole or not at all. Every file is a regular file with one link. `Rejected` when `dest` exists, when a path would
    lead out of it or comes twice, or when `cipher` isn't the one that sealed the tree; `Damaged` for a file that is
    missing or whose size or digest isn't the manifest's.
    """
    manifest = await get_manifest(store, address)
    sealed_by = cipher.name if cipher else ""
    if sealed_by != manifest.sealed_by:
        raise Rejected(
            f"{address} is sealed by {manifest.sealed_by or 'nobody'}, and the cipher given is {sealed_by or 'none'}",
            remedy="Ask the key ring for the key that the manifest names in sealed_by.",
        )
    with fresh_directory(dest) as staging:
        for entry in manifest.files:
            target = staging / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            await _get_entry(store, entry, target, cipher)
            _check_regular(target)
    return manifest


async def remove_tree(store: ArtifactStore, address: str, *, keep: Collection[str] = ()) -> None:
    """Remove a tree, its manifest first, but for the files that a tree in `keep` holds, too.

    The caller knows that nobody else has a tree with these files. A tree that is gone, in part or whole, is no error.
    """
    try:
        doomed = {entry.digest for entry in (await get_manifest(store, address)).files}
    except (NotFound, Damaged):
        return
    for other in keep:
        try:
            doomed -= {entry.digest for entry in (await get_manifest(store, other)).files}
        except (NotFound, Damaged):
            continue
    await store.remove(address)
    for digest in sorted(doomed):
        await store.remove(digest)


def _encode(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest, order="deterministic")


async def _put_sealed(store: ArtifactStore, source: Path, path: str, cipher: Cipher) -> str:
    with tempfile.TemporaryDirectory(prefix="llmos-seal-") as folder:
        sealed = Path(folder) / "sealed"
        await in_thread(lambda _: cipher.seal(source, sealed, path.encode()))
        return await store.put_file(sealed)


async def _get_entry(store: ArtifactStore, entry: FileEntry, target: Path, cipher: Cipher | None) -> None:
    try:
        size = await store.size(entry.digest)
    except NotFound as error:
        raise Damaged(f"{entry.path} ({entry.digest}) is not in the store", remedy="Store the tree again.") from error
    if size != entry.size:
        raise Damaged(f"{entry.path} has {size} bytes instead of {entry.size}", remedy="Store the tree again.")
    if cipher is None:
        await store.get_file(entry.digest, target)
        return
    with tempfile.TemporaryDirectory(prefix=".llmos-sealed-", dir=target.parent) as folder:
        sealed = Path(folder) / "sealed"
        await store.get_file(entry.digest, sealed)
        await in_thread(lambda _: cipher.unseal(sealed, target, entry.path.encode()))


def _walk(root: Path) -> list[str]:
    """Paths of the regular files below `root`, sorted."""
    if not root.is_dir():
        raise NotFound(f"{root} is no directory", remedy="Give the directory that holds the tree.")
    paths = []
    for folder, folders, files in os.walk(root, onerror=_raise):
        for name in [*folders, *files]:
            at = Path(folder, name)
            mode = at.lstat().st_mode
            if stat.S_ISREG(mode):
                paths.append(at.relative_to(root).as_posix())
            elif not stat.S_ISDIR(mode):
                raise Rejected(f"{at} is no regular file", remedy="Copy what it points to into the tree.")
    paths.sort()
    check_paths(paths)
    return paths


def _raise(error: OSError) -> None:
    raise error


def _check_regular(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise Damaged(f"{path} is no regular file with one link", remedy="Bring the tree to another file system.")
