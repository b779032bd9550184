"""Artifacts on this node's disk: brought from the store once, verified before every load, the oldest removed for room.

`<folder>/<digest>/` holds the files of one artifact and `<folder>/<digest>.json` its manifest as stored, so that a node
that has lost its store can still prove what it loads. A sealed artifact is never kept: its plain files are there only
while a session opens.
"""

import asyncio
import hashlib
import os
import shutil
import stat
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event
from typing import Any

from llmos.artifacts import MANIFEST_LIMIT, ArtifactStore, Cipher, Damaged, Manifest, decode_manifest, get_tree
from llmos.artifacts_content import address_of, chunks_of, hex_of, in_thread
from llmos.errors import Rejected

KIND = "onnx"


class Staging:
    """The staged artifacts of one process. `budget` in bytes is what they may take when `prune` is called."""

    def __init__(self, store: ArtifactStore, folder: Path, *, budget: int, log: Any) -> None:
        self._store = store
        self._folder = folder
        self._budget = budget
        self._log = log
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in (*folder.glob(".*.part"), *folder.glob("sealed-*")):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)

    @asynccontextmanager
    async def staged(self, address: str, unsealing: Callable[[str], Awaitable[Cipher]]) -> AsyncIterator[Path]:
        """The directory of an artifact, complete and verified, for as long as the block runs.

        `unsealing` gives the cipher for a manifest's `sealed_by`. A damaged copy is brought anew, once. Raises
        `Rejected` (`Damaged`, `NotFound`) for what can't be trusted or isn't there, `Busy` when the store does
        not answer.
        """
        async with self._locks[address]:
            manifest = await self._manifest(address)
            if manifest.sealed_by:
                cipher = await unsealing(manifest.sealed_by)
                with tempfile.TemporaryDirectory(prefix="sealed-", dir=self._folder) as folder:
                    root = Path(folder) / "files"
                    await get_tree(self._store, address, root, cipher=cipher)
                    yield root
                return
            root = self._folder / hex_of(address)
            await self._bring(address, manifest, root)
            yield root

    async def prune(self, keep: Iterable[str]) -> None:
        """Remove what was used longest ago until the budget holds; never the addresses in `keep`."""
        kept = {hex_of(address) for address in keep}
        await in_thread(lambda _: self._prune(kept))

    async def _bring(self, address: str, manifest: Manifest, root: Path) -> None:
        if root.exists():
            try:
                await in_thread(lambda stopped: check(root, manifest, stopped))
            except Damaged as error:
                self._log.warning("a staged artifact was damaged", artifact=address, error=str(error))
                await in_thread(lambda _: shutil.rmtree(root))
        if not root.exists():
            await get_tree(self._store, address, root)
        os.utime(root)  # `prune` removes what was used longest ago

    async def _manifest(self, address: str) -> Manifest:
        path = self._folder / f"{hex_of(address)}.json"
        data = path.read_bytes() if path.exists() else b""
        if address_of(data) != address:
            data = await self._store.get_bytes(address, limit=MANIFEST_LIMIT)
            path.write_bytes(data)
        manifest = decode_manifest(data)
        if manifest is None or manifest.kind != KIND:
            what = f"an artifact of kind {manifest.kind!r}" if manifest else "a single file"
            raise Rejected(f"{address} is {what}", remedy=f"Deploy an artifact of kind {KIND!r}.")
        return manifest

    def _prune(self, kept: set[str]) -> None:
        roots = [path for path in self._folder.iterdir() if path.is_dir() and len(path.name) == 64]
        sizes = {root: sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) for root in roots}
        used = sum(sizes.values())
        for root in sorted(roots, key=lambda path: path.stat().st_mtime):
            if used <= self._budget:
                break
            if root.name not in kept:
                shutil.rmtree(root)
                root.with_suffix(".json").unlink(missing_ok=True)
                used -= sizes[root]


def check(root: Path, manifest: Manifest, stopped: Event) -> None:
    """Raise `Damaged` unless `root` holds exactly the manifest's files: regular, one link each, size and digest
    right.
    """
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}
    named = {entry.path for entry in manifest.files}
    if found != named:
        raise Damaged(f"{root} has {sorted(found ^ named)} too many or too few", remedy="Remove the directory.")
    for entry in manifest.files:
        path = root / entry.path
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise Damaged(f"{path} is no regular file with one link", remedy="Remove the directory.")
        with path.open("rb") as source:
            digest = hashlib.sha256()
            for chunk in chunks_of(source, stopped):
                digest.update(chunk)
        if status.st_size != entry.size or f"sha256:{digest.hexdigest()}" != entry.digest:
            raise Damaged(f"{path} is not what its manifest says", remedy="Remove the directory.")
