"""The hw-agent's shell: looks at the hardware now and then, says what changed; its heartbeat carries the load."""

import asyncio
import secrets
from pathlib import Path

import msgspec

from llmos.cancel import cancel
from llmos.contracts.nodes import HEARTBEAT_S, Inventory, NodeInventoried
from llmos.contracts.subjects import event_subject
from llmos.errors import LlmosError
from llmos.service import Context
from llmos_hw_agent.cgroup import Cgroup, Limits
from llmos_hw_agent.config import HwAgentConfig
from llmos_hw_agent.core import decide
from llmos_hw_agent.fabric import infiniband
from llmos_hw_agent.gpu import GpuLoad, GpuReader, GpuWatch, Nvml
from llmos_hw_agent.load import LoadMeter
from llmos_hw_agent.machine import disk_free, read_machine
from llmos_hw_agent.software import Software, read_software


async def serve(ctx: Context[HwAgentConfig]) -> None:
    """Announce the node and keep its inventory up to date until the service stops. Raises `Fatal` for a bad setting."""
    agent = Agent(ctx, Nvml())
    await agent.look()
    ctx.announce(load=agent.load)
    parts = [asyncio.create_task(work) for work in (agent.watch_inventory(), agent.watch_gpus(), ctx.stopping.wait())]
    try:
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for part in done:
            part.result()  # raises what stopped it
    finally:
        await cancel(*parts)


class Agent:
    """One node's hardware. `cpus` and `memory` of the settings replace what can't be seen from inside a container."""

    def __init__(self, ctx: Context[HwAgentConfig], reader: GpuReader, *, root: Path = Path("/")) -> None:
        self._ctx = ctx
        self._root = root
        self._cgroup = Cgroup(root)
        self._gpus = GpuWatch(reader, ctx.clock, lambda text: ctx.log.warning(text))
        self._gpu_loads: list[GpuLoad] = []
        self._memory = ctx.config.memory_bytes()
        self._meter = LoadMeter(self._cgroup, self._limits(), ctx.config.data_dir, ctx.clock)
        self._software: Software | None = None
        self._file = ctx.config.data_dir / "hw-agent" / "inventory.json"

    def load(self) -> dict[str, float]:
        """The load for the heartbeat; does not wait for anything."""
        return self._meter.read(self._gpu_loads)

    async def watch_gpus(self) -> None:
        """Keep the GPUs' load fresh; runs until cancelled."""
        while True:
            self._gpu_loads = await self._gpus.load()
            await asyncio.sleep(HEARTBEAT_S)

    async def watch_inventory(self) -> None:
        """Look again every `inventory_s` seconds; runs until cancelled."""
        while True:
            await asyncio.sleep(self._ctx.config.inventory_s)
            try:
                await self.look()
            except (LlmosError, OSError) as error:
                self._ctx.log.warning("the inventory could not be told", error=str(error))

    async def look(self) -> None:
        """Read the hardware and say what changed. The version is kept before it is said: it is never used twice."""
        inventory = await self.inventory()
        kept = self._kept()
        subject = event_subject(NodeInventoried(self._ctx.node, 0, inventory))
        said = await self._ctx.bus.last_of("EVENTS", subject, NodeInventoried)
        telling = decide(self._ctx.node, inventory, kept, said)
        fact = telling.fact
        if fact != kept:
            self._keep(fact)
        if not telling.say:
            return
        await self._ctx.bus.emit(fact)
        self._ctx.log.info(
            "inventory", version=fact.version, cpus=inventory.cpus, memory=inventory.memory, gpus=len(inventory.gpus)
        )

    async def inventory(self) -> Inventory:
        """The hardware and software as they are now."""
        if self._software is None:
            self._software = await read_software(lambda text: self._ctx.log.warning(text))
        gpus = await self._gpus.inventory()
        machine = read_machine(self._root)
        limits = self._limits()
        return Inventory(
            cpus=self._ctx.config.cpus or min(machine.cpus, limits.cpus or machine.cpus),
            memory=self._memory or min(machine.memory, limits.memory or machine.memory),
            disk=disk_free(self._ctx.config.data_dir),
            gpus=gpus.gpus,
            cpu_model=machine.cpu_model,
            architecture=machine.architecture,
            os=machine.os,
            driver=gpus.driver,
            cuda=gpus.cuda,
            torch=self._software.torch,
            onnxruntime=self._software.onnxruntime,
            providers=self._software.providers,
            cgroup=self._cgroup.version,
            labels=self._labels(gpus.fabric),
        )

    def _labels(self, nvlink: str) -> dict[str, str]:
        """Those that were set, and the fabric as it was found if that is not among them."""
        found = nvlink or infiniband(self._root)
        return ({"fabric": found} if found else {}) | self._ctx.config.labels

    def _limits(self) -> Limits:
        """The control group's limits, but for what the settings say about the node instead."""
        limits = self._cgroup.limits()
        return Limits(
            limits.version,
            None if self._ctx.config.cpus else limits.cpus,
            None if self._memory else limits.memory,
        )

    def _kept(self) -> NodeInventoried | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=NodeInventoried)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None  # the first start, or a disk that lost it: the history knows the version

    def _keep(self, fact: NodeInventoried) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_name(f".{secrets.token_hex(8)}.part")
        try:
            part.write_bytes(msgspec.json.encode(fact))
            part.replace(self._file)
        finally:
            part.unlink(missing_ok=True)
