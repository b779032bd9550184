"""Snapshots: a state that was kept and its tail are the fold of the whole history, and nothing less is ever trusted."""

import asyncio
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.bus import Bus
from llmos.contracts.jobs import JobAdmitted, JobCancelled
from llmos.contracts.leader import LeaderLease, SnapshotPointer
from llmos.contracts.nodes import Inventory, NodeInventoried
from llmos.service import Context, running
from llmos_scheduler import snapshots
from llmos_scheduler.config import SchedulerConfig
from llmos_scheduler.records import State
from llmos_scheduler.service import Scheduler, serve
from llmos_scheduler.snapshots import decode, encode
from llmos_scheduler.state import apply


def busy_log(world: Any) -> list[Any]:
    """A history with nodes, failures, a lost node, deployments, a rejection and a cancelled job."""
    world.node("a", gpus=2).node("b")
    for number in range(6):
        world.submit(f"j{number}", deploy=1 if number % 2 else None, gpus=number % 3, deadline=world.now + 900)
    for _ in range(12):
        world.settle()
        for turn, key in enumerate(sorted(world.queue)):
            world.start(key)
            if turn % 4 == 3:
                world.fail(key)
            else:
                world.progress(key)
                world.succeed(key)
        for (node, name), assigned in sorted(world.deployed.items()):
            if assigned.version is not None:
                world.ready(node, name)
        world.now += 1
    world.lose("b")
    return list(world.log)


def fold(state: State, log: list[Any]) -> State:
    for event, at, id in log:
        state = apply(state, event, at, id)
    return state


def test_a_snapshot_at_any_point_and_the_tail_are_the_whole_fold_to_the_byte(make_world: Any) -> None:
    log = busy_log(make_world())
    whole = fold(State(), log)
    assert whole.jobs and whole.deployments and len(log) > 60

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(0, len(log)), min_size=1, max_size=4))
    def check(points: list[int]) -> None:
        state, before = State(), 0
        for point in sorted(points):
            state = decode(encode(fold(state, log[before:point])))
            before = point
        state = fold(state, log[before:])
        assert state == whole
        assert encode(state) == encode(whole)

    check()


def test_a_state_of_another_shape_is_no_snapshot() -> None:
    kept = msgspec.msgpack.decode(encode(State()))
    for bad in ({**kept, "leases": "many"}, {**kept, "jobs": {"j": {"id": 1}}}, [1, 2]):
        with pytest.raises(msgspec.DecodeError):
            decode(msgspec.msgpack.encode(bad))


def test_the_format_names_every_record() -> None:
    shape = " ".join(snapshots._shape(State, set()))
    for name in ("records.Job", "records.Task", "JobSpec", "DeploymentChanged", "Inventory", "Problem"):
        assert f"{name}:" in shape
    assert len(snapshots.format_of_code()) == 16


# --- on a real bus ---


@pytest.fixture
def config(nats_url: str, tmp_path: Path) -> SchedulerConfig:
    return SchedulerConfig(nats_url=nats_url, node="head", data_dir=tmp_path / "head", drain_s=2.0)


@pytest.fixture(autouse=True)
def every_snapshot_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "LEAST", 1)


class Watched:
    """A scheduler that tells from where it followed the history, and what state it came to."""

    def __init__(self) -> None:
        self.scheduler: Scheduler | None = None
        self.starts: list[int] = []

    async def serve(self, ctx: Context[SchedulerConfig]) -> None:
        follow = ctx.bus.follow

        def following(stream: str, *args: Any, **named: Any) -> Any:
            if stream == "EVENTS":
                self.starts.append(named["start"])
            return follow(stream, *args, **named)

        ctx.bus.follow = following  # type: ignore[method-assign]
        self.scheduler = Scheduler(ctx)
        await self.scheduler.run()

    async def state(self, config: SchedulerConfig, bus: Bus) -> bytes:
        """Run until the whole history is known; the state as bytes."""
        newest = await bus.last_sequence("EVENTS")
        async with running("scheduler", config, self.serve):
            while self.scheduler is None or self.scheduler._leadership.fence is None:
                await asyncio.sleep(0.01)
            await self.scheduler._following.came_back(newest)
            return encode(self.scheduler._following.state)


async def say_something(bus: Bus, spec_of: Any, start: int, count: int = 20) -> None:
    await bus.emit(NodeInventoried("a", 1, Inventory(4, 16 << 30)), id="inventory")
    for number in range(start, start + count):
        await bus.emit(JobAdmitted(f"j{number}", spec_of(f"m{number}"), 1.0), id=f"{number}.admitted")
        if number % 3 == 0:
            await bus.emit(JobCancelled(f"j{number}", "default"), id=f"{number}.cancelled")


async def test_a_clean_stop_leaves_a_snapshot_and_the_next_start_reads_the_tail(
    config: SchedulerConfig, bus: Bus, spec_of: Any
) -> None:
    await say_something(bus, spec_of, 0)
    await Watched().state(config, bus)
    entry = await bus.bucket("state").get(snapshots.KEY, SnapshotPointer)
    assert entry is not None
    await say_something(bus, spec_of, 20)
    second = Watched()
    kept = await second.state(config, bus)
    assert second.starts == [entry.value.sequence + 1]
    entry = await bus.bucket("state").get(snapshots.KEY, SnapshotPointer)
    assert entry is not None
    await bus.bucket("state").delete(snapshots.KEY)
    whole = Watched()
    newest = await whole.state(config, bus)
    assert whole.starts == [1]
    # More was said when each scheduler stopped and began: compare at one point.
    assert decode(kept).jobs == decode(newest).jobs


@pytest.mark.parametrize("fault", ["gone", "damaged", "format", "stream", "ahead", "garbage"])
async def test_what_does_not_fit_means_the_whole_history(
    config: SchedulerConfig, bus: Bus, spec_of: Any, tmp_path: Path, fault: str
) -> None:
    await say_something(bus, spec_of, 0)
    await Watched().state(config, bus)
    bucket = bus.bucket("state")
    entry = await bucket.get(snapshots.KEY, SnapshotPointer)
    assert entry is not None
    good = entry.value
    folder = tmp_path / "head" / "artifacts"
    (kept,) = (path for path in folder.rglob("*") if path.is_file() and path.name == good.address.split(":")[1])
    match fault:
        case "gone":
            kept.unlink()
        case "damaged":
            kept.chmod(0o600)
            kept.write_bytes(zlib.compress(b"other bytes"))
        case "format":
            await bucket.put(snapshots.KEY, msgspec.structs.replace(good, format="of another version"))
        case "stream":
            await bucket.put(snapshots.KEY, msgspec.structs.replace(good, created="long ago"))
        case "ahead":
            await bucket.put(snapshots.KEY, msgspec.structs.replace(good, sequence=good.sequence + 1000))
        case "garbage":
            await bucket.put(snapshots.KEY, ["no", "pointer"])
    again = Watched()
    state = decode(await again.state(config, bus))
    assert again.starts == [1]
    assert len(state.jobs) == 20


async def test_a_start_from_a_snapshot_leads_on(config: SchedulerConfig, bus: Bus, spec_of: Any) -> None:
    await say_something(bus, spec_of, 0)
    for _ in range(3):
        async with running("scheduler", config, serve) as ctx:
            while await bus.bucket("lease").get("scheduler", LeaderLease) is None:
                await asyncio.sleep(0.02)
            assert not ctx.stopping.is_set()
