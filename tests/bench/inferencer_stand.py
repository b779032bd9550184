"""A real nats-server, a signed and stored artifact, and an inferencer in its own process: what the benches
measure against.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import inferencer_model

from llmos.artifacts import open_store, put_tree
from llmos.bus import Bus
from llmos.contracts import subjects
from llmos.contracts.deployments import ReplicaAssigned, ReplicaReady
from llmos.contracts.inference import InferenceAnswered, InferenceRequested
from llmos.contracts.models import ModelVersion, Statement
from llmos.ids import new_id
from llmos.natsserver import NatsServer
from llmos.signing import SigningKey, write_trusted

NODE = "bench"
NAME = "bench"


class Stand:
    """`start` gives the seconds from the process's start to `ReplicaReady`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = NatsServer(folder / "nats")
        self.process: asyncio.subprocess.Process | None = None

    async def prepare(self, precision: str, weights: str = "beside") -> Path:
        """Export, store and sign the bench's model and assign it to the node; where it was exported."""
        artifact = self.folder / "exported"
        exporting = await asyncio.create_subprocess_exec(
            sys.executable, inferencer_model.__file__, str(artifact), precision, weights, stderr=subprocess.DEVNULL
        )
        assert await exporting.wait() == 0, "the export failed; run inferencer_model.py by itself to see why"
        await self.assign(artifact)
        return artifact

    async def assign(self, artifact: Path, task: str = "text-classification") -> None:
        """Start the bus, store and sign an artifact and assign it to the node."""
        await self.server.start()
        self.bus = await Bus.connect(self.server.url, source="bench/bench")
        store = open_store((self.folder / "artifacts").as_uri())
        address = await put_tree(store, artifact, kind="onnx")
        key = SigningKey("bench", SigningKey.new_secret())
        write_trusted(self.folder / "trusted_keys.json", {"bench": key.public})
        version = ModelVersion(
            "bench", 1, "default", task, address, "job", time.time(),
            signature=key.sign(Statement("default", "bench", 1, address)),
        )  # fmt: skip
        assigned = ReplicaAssigned(deployment=NAME, node=NODE, generation=1, version=version)
        await self.bus.publish(subjects.deploy(NODE, NAME), assigned, type="llmos.replica.assigned.v1")

    async def start(self, python: str = sys.executable, **settings: str) -> float:
        """Start the inferencer with an interpreter; seconds until its replica is ready."""
        ready = asyncio.create_task(self._ready(await self.bus.last_sequence("EVENTS")))
        await asyncio.sleep(0.3)
        env = os.environ | {
            "LLMOS_NATS_URL": self.server.url,
            "LLMOS_NODE": NODE,
            "LLMOS_DATA_DIR": str(self.folder / "data"),
            "LLMOS_ARTIFACTS": (self.folder / "artifacts").as_uri(),
            "LLMOS_TRUSTED_KEYS": str(self.folder / "trusted_keys.json"),
        }
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling at every start is not what an installation does
        started = time.perf_counter()
        self.process = await asyncio.create_subprocess_exec(
            python, "-m", "llmos_inferencer", env=env | settings, cwd=self.folder
        )
        async with asyncio.timeout(60):
            await ready
        return time.perf_counter() - started

    async def ask(self, *texts: str) -> InferenceAnswered:
        id = new_id("r")
        answer = await self.bus.ask(
            subjects.infer(NAME, id),
            InferenceRequested(self.bus.client, list(texts)),
            type="llmos.inference.requested.v1",
            id=id,
            answer=InferenceAnswered,
            timeout=20,
        )
        assert answer.problem is None, answer.problem
        return answer

    async def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            await self.process.wait()
            self.process = None

    async def close(self) -> None:
        await self.stop()
        await self.bus.close()
        await self.server.stop()

    async def _ready(self, after: int) -> None:
        async for heard in self.bus.follow("EVENTS", start=after + 1):
            if isinstance(heard.event(), ReplicaReady):
                return
