"""Where a task's checkpoints are: trees in the artifact store, the newest two named by a pointer in the bucket `state`.

The tree is stored before the pointer is written, so the pointer names only what can be read whole.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from llmos.artifacts import ArtifactStore, Cipher, Damaged, get_manifest, get_tree, put_tree, remove_tree
from llmos.bus import Bucket, Conflict
from llmos.cancel import cancel
from llmos.contracts.tasks import CheckpointPointer
from llmos.errors import LlmosError, NotFound
from llmos_trainer.orders import Snapshotted

KIND = "checkpoint"


class Superseded(LlmosError):
    """The task was given to another lease: whatever this one still does counts for nothing."""

    code = "superseded"


class Keeper:
    """The checkpoints of one task under one lease.

    `unsealing` gives the cipher by the name in a manifest, `sealing` the one for new checkpoints, `None` for none.
    `kept` hears of every checkpoint that is stored and pointed to, `superseded` when a newer lease has one. Inside
    `async with` offers are taken.
    """

    def __init__(
        self,
        bucket: Bucket,
        store: ArtifactStore,
        task: str,
        lease: int,
        *,
        job: str,
        unsealing: Callable[[str], Awaitable[Cipher | None]],
        sealing: Callable[[], Awaitable[Cipher | None]],
        kept: Callable[[CheckpointPointer], Awaitable[None]],
        superseded: Callable[[], None],
        log: Any,
    ) -> None:
        self._bucket = bucket
        self._store = store
        self._task = task
        self._lease = lease
        self._job = job
        self._unsealing = unsealing
        self._sealing = sealing
        self._kept = kept
        self._superseded = superseded
        self._log = log
        self._key = f"checkpoint.{task}"
        self._offered: Snapshotted | None = None
        self._awake = asyncio.Event()
        self._storing: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> "Keeper":
        self._storing = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(self._storing)

    async def newest(self) -> CheckpointPointer | None:
        """The pointer, if there is one. Raises `Superseded` when a newer lease wrote it."""
        entry = await self._bucket.get(self._key, CheckpointPointer)
        if entry is None:
            return None
        if entry.value.lease > self._lease:
            raise Superseded(f"lease {entry.value.lease} of {self._task} has a checkpoint already")
        return entry.value

    async def bring(self, folder: Path) -> str:
        """Fetch the newest checkpoint that is whole into `folder`, which must not exist; its address, empty if there is
        none.

        Every byte is verified; one that is damaged or lost gives way to the one before it.
        """
        pointer = await self.newest()
        for artifact in (pointer.artifact, pointer.previous) if pointer else ():
            if not artifact:
                continue
            try:
                await self.bring_the(artifact, folder)
            except (Damaged, NotFound):
                continue
            return artifact
        return ""

    async def bring_the(self, artifact: str, folder: Path) -> None:
        """Fetch this very checkpoint. Raises `Damaged` or `NotFound`."""
        manifest = await get_manifest(self._store, artifact)
        cipher = await self._unsealing(manifest.sealed_by) if manifest.sealed_by else None
        await get_tree(self._store, artifact, folder, cipher=cipher)

    def offer(self, checkpoint: Snapshotted) -> None:
        """Have a checkpoint stored and pointed to; one that is still waiting gives way to it."""
        if self._offered is not None:
            shutil.rmtree(self._offered.path, ignore_errors=True)
        self._offered = checkpoint
        self._idle.clear()
        self._awake.set()

    async def settled(self) -> None:
        """Wait until what was offered is stored and pointed to."""
        await self._idle.wait()

    async def _run(self) -> None:
        """Store what is offered, until cancelled or superseded."""
        try:
            while True:
                await self._awake.wait()
                self._awake.clear()
                offered, self._offered = self._offered, None
                if offered is not None:
                    await self._try_to_store(offered)
                if self._offered is None:
                    self._idle.set()
        except Superseded:
            self._superseded()
        finally:
            self._idle.set()  # nobody waits for what will never come

    async def _try_to_store(self, offered: Snapshotted) -> None:
        try:
            await self._store_one(offered.step, Path(offered.path))
        except Superseded:
            raise
        except (LlmosError, OSError) as error:  # the run goes on: an older checkpoint only costs time
            self._log.warning("a checkpoint was not kept", task=self._task, step=offered.step, error=str(error))
        finally:
            await asyncio.to_thread(shutil.rmtree, offered.path, ignore_errors=True)

    async def forget(self) -> None:
        """Remove the pointer and what it points to: the task is done."""
        entry = await self._bucket.get(self._key, CheckpointPointer)
        if entry is not None and entry.value.lease <= self._lease:
            await self._bucket.delete(self._key)
            for artifact in (entry.value.artifact, entry.value.previous):
                await remove(self._store, artifact, self._log)

    async def _store_one(self, step: int, path: Path) -> None:
        """Durability: when this returns, a crash resumes from this step or a later one."""
        artifact = await put_tree(
            self._store, path, kind=KIND, meta={"task": self._task, "step": str(step)}, cipher=await self._sealing()
        )
        while True:
            entry = await self._bucket.get(self._key, CheckpointPointer)
            if entry is not None and entry.value.lease > self._lease:
                raise Superseded(f"lease {entry.value.lease} of {self._task} has taken over")
            previous = ""
            if entry is not None:  # the same step gives the same bytes: stored again, it is still the newest
                same = entry.value.artifact == artifact
                previous = entry.value.previous if same else entry.value.artifact
            pointer = CheckpointPointer(self._task, self._lease, step, artifact, previous, self._job)
            try:
                if entry is None:
                    await self._bucket.create(self._key, pointer)
                else:
                    await self._bucket.update(self._key, pointer, entry.revision)
                break
            except Conflict:
                continue  # read what was written, and decide again
        await self._kept(pointer)
        if entry is not None and entry.value.previous not in (artifact, previous):
            await remove(self._store, entry.value.previous, self._log, keep=(artifact, previous))


async def remove(store: ArtifactStore, artifact: str, log: Any, keep: tuple[str, ...] = ()) -> None:
    """Take a checkpoint that nobody points to any more out of the store; its files carry the task's name."""
    try:
        if artifact:
            await remove_tree(store, artifact, keep=[address for address in keep if address])
    except LlmosError as error:  # it only takes room
        log.warning("a checkpoint was not removed", artifact=artifact, error=str(error))
