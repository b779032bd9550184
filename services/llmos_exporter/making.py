"""From an assignment to a stored artifact: inputs are brought, a child exports and measures, the gate is asked."""

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from llmos.artifacts import get_manifest, get_tree, put_tree
from llmos.contracts.models import ModelVersion
from llmos.contracts.tasks import TaskAssigned
from llmos.errors import Rejected
from llmos.forking import Template
from llmos.service import Context
from llmos_exporter import process
from llmos_exporter.config import ExporterConfig
from llmos_exporter.core import judge, model_name
from llmos_exporter.orders import ExportOrder, Finished, Progressed

if TYPE_CHECKING:
    from llmos.keyring import KeyRing

OUTPUT_KIND = "onnx"

Tell = Callable[[Progressed], None]


class Made(Struct, frozen=True):
    """An artifact as it would be registered, and why it must not be (no reason: it may)."""

    version: ModelVersion
    reasons: list[str]


class Maker:
    """Makes artifacts on this node, each in a room of its own that is gone afterwards."""

    def __init__(self, ctx: Context[ExporterConfig], template: Template) -> None:
        self._ctx = ctx
        self._template = template
        self._keys: KeyRing | None = None
        self._rooms = ctx.config.data_dir.absolute() / "work" / f"exporter-{ctx.node}"
        shutil.rmtree(self._rooms, ignore_errors=True)  # of a process that was killed

    async def make(self, assigned: TaskAssigned, tell: Tell) -> Made:
        """Make, measure, judge and store. The version has no number and no signature yet, and no artifact if refused.

        Raises `Rejected` for what another attempt can't mend, `Busy` for what it can.
        """
        async with self._room(assigned) as room:
            tell(Progressed("loading"))
            await self._bring(assigned, _source(assigned), room)
            await self._bring(assigned, "dataset", room)
            order = _order(assigned, room)
            limit = self._ctx.config.export_limit_s
            done = await process.export(self._template, order, tell, memory=assigned.memory, limit_s=limit)
            version = self._version(assigned, done)
            if reasons := judge(assigned.spec.gate, done.metrics | done.parity):
                return Made(version, reasons)
            tell(Progressed("registering"))
            return Made(replace(version, artifact=await self._put(assigned, Path(order.result), done.precision)), [])

    @asynccontextmanager
    async def _room(self, assigned: TaskAssigned) -> AsyncIterator[Path]:
        """A fresh private directory, removed at the end."""
        room = self._rooms / f"{assigned.task}.{assigned.lease}"
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir(parents=True, mode=0o700)
        try:
            yield room
        finally:
            shutil.rmtree(room, ignore_errors=True)

    async def _bring(self, assigned: TaskAssigned, role: str, room: Path) -> None:
        """Stage one input as `room/<role>`."""
        address = assigned.inputs.get(role)
        if address is None:
            raise Rejected(f"the task has no input {role!r}", param=f"inputs.{role}")
        manifest = await get_manifest(self._ctx.store, address)
        if manifest.kind != role:
            raise Rejected(f"the input {role!r} is an artifact of kind {manifest.kind!r}", param=f"inputs.{role}")
        cipher = await self._ring().decrypting(manifest.sealed_by, assigned.task) if manifest.sealed_by else None
        await get_tree(self._ctx.store, address, room / role, cipher=cipher)

    async def _put(self, assigned: TaskAssigned, result: Path, precision: str) -> str:
        spec = assigned.spec
        cipher = await self._ring().encrypting(assigned.tenant, assigned.task) if spec.private else None
        meta = {"task": spec.task, "precision": precision}
        return await put_tree(self._ctx.store, result, kind=OUTPUT_KIND, meta=meta, cipher=cipher)

    def _ring(self) -> "KeyRing":
        if self._keys is None:
            from llmos.keyring import KeyRing  # here: it loads Tink, which only private jobs need

            self._keys = KeyRing(self._ctx.bus, self._ctx.principal)
        return self._keys

    def _version(self, assigned: TaskAssigned, done: Finished) -> ModelVersion:
        spec = assigned.spec
        return ModelVersion(
            model=model_name(spec),
            version=0,
            tenant=assigned.tenant,
            task=spec.task,
            artifact="",
            job=assigned.job,
            created_at=self._ctx.clock.now(),
            precision=done.precision,
            target=spec.export.target,
            candidates=done.candidates,
            labels=done.labels,
            source=done.source,
            metrics=done.metrics,
            parity=done.parity,
            size=done.size,
            source_size=done.source_size,
            base=spec.model.base,
            private=spec.private,
            trained=assigned.inputs[_source(assigned)],
        )


def _order(assigned: TaskAssigned, room: Path) -> ExportOrder:
    spec = assigned.spec
    return ExportOrder(
        task=spec.task,
        precision=spec.export.precision,
        model=str(room / _source(assigned)),
        dataset=str(room / "dataset"),
        work=str(room / "work"),
        result=str(room / "result"),
        max_length=spec.export.max_length or (0 if spec.train.method == "none" else spec.train.max_length),
        threads=max(1, min(int(assigned.cpus), os.cpu_count() or 1)),
        gate=spec.gate,
        source=assigned.inputs[_source(assigned)],
        base=assigned.inputs.get("base", ""),
        dataset_address=assigned.inputs["dataset"],
        target=spec.export.target,
    )


def _source(assigned: TaskAssigned) -> str:
    """The input that is exported: what was trained, or the base itself where nothing was."""
    return "base" if assigned.spec.train.method == "none" and "model" not in assigned.inputs else "model"
