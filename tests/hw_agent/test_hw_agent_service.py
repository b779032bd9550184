"""The hw-agent on a real nats-server."""

import asyncio
import importlib.util
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path

import pytest
from msgspec.structs import replace

from llmos.bus import Bus
from llmos.contracts.nodes import Heartbeat, NodeInventoried
from llmos.errors import Fatal
from llmos.service import Context, running
from llmos_hw_agent.config import HwAgentConfig
from llmos_hw_agent.service import serve
from llmos_hw_agent.software import Software, probe, read_software


@pytest.fixture
def config(nats_url: str, tmp_path: Path) -> HwAgentConfig:
    return HwAgentConfig(
        nats_url=nats_url, node="n1", data_dir=tmp_path / "data", labels={"zone": "a"}, inventory_s=0.2
    )


@asynccontextmanager
async def agent(config: HwAgentConfig, bus: Bus) -> AsyncIterator[Context[HwAgentConfig]]:
    async with running("hw-agent", config, serve) as ctx:
        while not ctx.stopping.is_set() and await bus.bucket("nodes").get("n1.hw-agent", Heartbeat) is None:
            await asyncio.sleep(0.02)
        yield ctx


async def said(bus: Bus) -> list[NodeInventoried]:
    facts: list[NodeInventoried] = []
    if await bus.last_sequence("EVENTS"):
        async for heard in bus.follow("EVENTS"):
            event = heard.event()
            assert isinstance(event, NodeInventoried)
            facts.append(event)
            if heard.pending == 0:
                break
    return facts


async def test_a_node_says_what_it_is_and_how_busy_it_is(config: HwAgentConfig, bus: Bus) -> None:
    async with agent(config, bus):
        beat = await bus.bucket("nodes").get("n1.hw-agent", Heartbeat)
    (fact,) = await said(bus)
    assert (fact.node, fact.version) == ("n1", 1)
    have = fact.inventory
    assert 0 < have.cpus <= (os.cpu_count() or 1)
    assert have.memory > 1 << 28
    assert have.disk > 0
    assert {name: value for name, value in have.labels.items() if name != "fabric"} == {"zone": "a"}
    assert have.cgroup in ("v1", "v2", "none")
    assert have.torch == (metadata.version("torch") if importlib.util.find_spec("torch") else "")
    assert ("CPUExecutionProvider" in have.providers) is (importlib.util.find_spec("onnxruntime") is not None)
    assert beat is not None
    assert {"cpu", "memory", "disk_free"} <= beat.value.load.keys()
    assert await bus.bucket("nodes").get("n1.hw-agent", Heartbeat) is None  # taken back at the end


async def test_the_agent_never_loads_torch_or_onnxruntime(config: HwAgentConfig, bus: Bus) -> None:
    code = (
        "import asyncio, sys; from llmos_hw_agent import service, software\n"
        "found = asyncio.run(software.read_software(print))\n"
        "assert not {'torch', 'onnxruntime', 'numpy', 'cpuinfo'} & sys.modules.keys()\n"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await child.wait() == 0


async def test_a_restart_says_nothing_new_and_a_change_is_the_next_version(config: HwAgentConfig, bus: Bus) -> None:
    for _ in range(2):
        async with agent(config, bus):
            await asyncio.sleep(0.5)  # looks again twice
    assert [fact.version for fact in await said(bus)] == [1]
    moved = replace(config, labels={"zone": "b"})
    async with agent(moved, bus):
        pass
    assert [(fact.version, fact.inventory.labels["zone"]) for fact in await said(bus)] == [(1, "a"), (2, "b")]


async def test_a_version_survives_the_loss_of_the_nodes_disk_or_of_the_history(config: HwAgentConfig, bus: Bus) -> None:
    async with agent(config, bus):
        pass
    async with agent(replace(config, labels={"zone": "b"}), bus):
        pass
    (config.data_dir / "hw-agent" / "inventory.json").write_bytes(b'{"node":"\xff')
    async with agent(replace(config, labels={"zone": "c"}), bus):
        pass
    assert [fact.version for fact in await said(bus)] == [1, 2, 3]
    await bus.purge("EVENTS", "llmos.evt.node.>")
    async with agent(replace(config, labels={"zone": "c"}), bus):
        pass
    last = await bus.last_of("EVENTS", "llmos.evt.node.inventoried.system.n1", NodeInventoried)
    assert last is not None
    assert last.version == 3


async def test_a_history_that_is_lost_while_the_agent_runs_is_told_again(config: HwAgentConfig, bus: Bus) -> None:
    async with agent(config, bus):
        await bus.purge("EVENTS", "llmos.evt.node.>")
        async for heard in bus.follow("EVENTS"):
            assert heard.event().version == 1  # type: ignore[union-attr]
            break


async def test_settings_replace_what_a_container_hides(config: HwAgentConfig, bus: Bus) -> None:
    async with agent(replace(config, cpus=12.0, memory="64GiB"), bus):
        pass
    (fact,) = await said(bus)
    assert (fact.inventory.cpus, fact.inventory.memory) == (12.0, 64 << 30)


async def test_a_wrong_setting_stops_the_agent_with_its_name(config: HwAgentConfig, bus: Bus) -> None:
    with pytest.raises(Fatal, match="LLMOS_MEMORY"):
        async with agent(replace(config, memory="much"), bus):
            pass


async def test_software_that_can_not_be_read_is_unknown_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    assert await read_software(warnings.append, timeout=0.001) == Software()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert await read_software(warnings.append) == Software()
    assert len(warnings) == 2


def test_software_that_is_not_installed_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert probe() == Software()


async def test_the_fabric_that_is_found_is_a_label_unless_one_was_set(
    config: HwAgentConfig, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmos_hw_agent.service.infiniband", lambda root: "ib-1")
    async with agent(config, bus):
        pass
    async with agent(replace(config, labels={"fabric": "mine"}), bus):
        pass
    assert [fact.inventory.labels for fact in await said(bus)] == [{"zone": "a", "fabric": "ib-1"}, {"fabric": "mine"}]
