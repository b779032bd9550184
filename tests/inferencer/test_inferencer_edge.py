"""An edge box with a nats-server of its own: what `deploy/edge` configures, with the link cut and plugged in again."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llmos.bus import Bus, edge
from llmos.contracts.deployments import ReplicaReady
from llmos.contracts.inference import InferenceMetered
from llmos.errors import Busy
from llmos.natsserver import NatsServer
from llmos.testing.cable import Cable, cable

DEPLOY = Path(__file__).parents[2] / "deploy" / "edge"
NODE = "edge-1"


class Site:
    """A hub, a leaf behind a cable, and a connection to each."""

    def __init__(self, hub: NatsServer, leaf: NatsServer, line: Cable, above: Bus, below: Bus) -> None:
        self.hub = hub
        self.leaf = leaf
        self.line = line
        self.above = above
        self.below = below


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = tmp_path / "hub.conf"
    settings.write_text((DEPLOY / "hub.conf").read_text().replace("0.0.0.0:7422", f"127.0.0.1:{port}"))
    hub = await NatsServer(tmp_path / "hub", config=settings).start()
    async with cable(f"nats://127.0.0.1:{port}") as line:
        monkeypatch.setenv("LLMOS_NODE", NODE)
        monkeypatch.setenv("LLMOS_HUB_LEAF", line.url.replace("nats:", "nats-leaf:"))
        leaf = await NatsServer(tmp_path / "leaf", config=DEPLOY / "leaf.conf").start()
        above = await Bus.connect(hub.url, source="test/hub")
        for _ in range(2):  # a second time changes nothing
            await edge.join(hub.url, leaf.url, NODE)
        below = await Bus.connect(leaf.url, source="test/edge")
        yield Site(hub, leaf, line, above, below)
        await below.close()
        await above.close()
        await leaf.stop()
        await hub.stop()


@pytest.fixture
async def box(site: Site, make_stand: Any) -> AsyncIterator[Any]:
    """The rest of the stack at the hub, for an inferencer on the box."""
    stand = make_stand(site.leaf.url, site.above)
    yield stand
    await stand.close()


async def test_a_box_goes_on_behind_a_cut_link_and_loses_nothing(site: Site, box: Any) -> None:
    async def ask(count: int) -> None:
        box.bus = site.below
        answers = await asyncio.gather(*(box.ask("good") for _ in range(count)))
        assert [answer.outputs[0].label for answer in answers] == ["up-1"] * count

    async with box.running():
        await box.ready(await box.deploy(await box.register()))  # said on the box, heard at the hub
        await ask(20)
        site.line.cut()
        await ask(20)
    metered = [event for event in box.events if isinstance(event, InferenceMetered)]
    assert not metered, "the link is cut"
    shutil.rmtree(box.folder / "artifacts")  # the store is out of reach, too
    async with box.running():  # the box was switched off and on
        while True:
            try:
                await ask(1)
                break
            except TimeoutError:
                continue
        await ask(20)
        site.line.plug()
    while sum(event.requests for event in box.events if isinstance(event, InferenceMetered)) < 61:
        await asyncio.sleep(0.05)
    assert sum(event.requests for event in box.events if isinstance(event, InferenceMetered)) == 61
    assert sum(isinstance(event, ReplicaReady) for event in box.events) == 2


async def test_an_assignment_made_behind_a_cut_link_is_followed_when_it_is_back(site: Site, box: Any) -> None:
    first, second = await box.register(1), await box.register(2)
    async with box.running():
        await box.ready(await box.deploy(first))
        site.line.cut()
        assigned = await box.deploy(second)
        box.bus = site.below
        assert (await box.ask("good")).version == 1
        site.line.plug()
        await box.ready(assigned)
        assert (await box.ask("good")).version == 2


async def test_requests_of_a_box_stay_on_it_and_those_of_the_hub_at_the_hub(site: Site) -> None:
    for bus, count in ((site.above, 2), (site.below, 3)):
        for number in range(count):
            await bus.publish(f"llmos.infer.mood.interactive.r{number}", {"number": number}, type="x")
    await asyncio.sleep(0.3)
    for bus, count in ((site.above, 2), (site.below, 3)):
        state = await bus.stream_state("INFER")
        assert state.last - state.first + 1 == count


async def test_a_box_that_left_sends_nothing_up_any_more(site: Site, box: Any) -> None:
    await edge.leave(site.hub.url, NODE)
    await edge.leave(site.hub.url, NODE)
    await site.below.emit(ReplicaReady("mood", "default", NODE, 1, "mood", 1))
    await edge.join(site.hub.url, site.leaf.url, NODE)
    await site.below.emit(ReplicaReady("mood", "default", NODE, 2, "mood", 1))
    await box.until(ReplicaReady, generation=2)


async def test_a_hub_that_is_away_is_busy(site: Site) -> None:
    with pytest.raises(Busy, match=r"127\.0\.0\.1:9"):
        await edge.join("nats://127.0.0.1:9", site.leaf.url, NODE)
