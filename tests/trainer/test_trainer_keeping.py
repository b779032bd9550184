"""Checkpoints are stored before they are pointed to, and only what is whole is resumed."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from llmos.artifacts import ArtifactStore, open_store
from llmos.bus import Bus
from llmos.contracts.tasks import CheckpointPointer
from llmos.errors import Busy
from llmos_trainer.keeping import Keeper, Superseded
from llmos_trainer.orders import Snapshotted

MakeKeeper = Callable[..., Keeper]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store((tmp_path / "artifacts").as_uri())


@pytest.fixture
def kept() -> list[CheckpointPointer]:
    return []


@pytest.fixture
def superseded() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
def keeper_of(bus: Bus, store: ArtifactStore, kept: list[CheckpointPointer], superseded: asyncio.Event) -> MakeKeeper:
    async def no_cipher(_: str = "") -> None:
        return None

    async def note(pointer: CheckpointPointer) -> None:
        kept.append(pointer)

    def make(lease: int = 1, store: ArtifactStore = store) -> Keeper:
        return Keeper(
            bus.bucket("state"), store, "t", lease, job="j",
            unsealing=no_cipher, sealing=no_cipher, kept=note, superseded=superseded.set, log=structlog.get_logger(),
        )  # fmt: skip

    return make


def snapshot(tmp_path: Path, step: int) -> Snapshotted:
    folder = tmp_path / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"weights %d" % step)
    return Snapshotted(step, str(folder))


def damage(tmp_path: Path, step: int) -> None:
    [path] = [
        path for path in (tmp_path / "artifacts" / "sha256").iterdir() if path.read_bytes() == b"weights %d" % step
    ]
    path.write_bytes(b"weights ?")


async def keep(keeper: Keeper, *taken: Snapshotted) -> None:
    async with keeper:
        for at in taken:
            keeper.offer(at)
            await keeper.settled()


async def brought(keeper: Keeper, tmp_path: Path) -> bytes | None:
    folder = tmp_path / "brought"
    artifact = await keeper.bring(folder)
    return (folder / "weights.safetensors").read_bytes() if artifact else None


async def test_the_newest_checkpoint_is_brought_back(
    keeper_of: MakeKeeper, kept: list[CheckpointPointer], tmp_path: Path
) -> None:
    assert await brought(keeper_of(), tmp_path) is None
    await keep(keeper_of(), snapshot(tmp_path, 1), snapshot(tmp_path, 2))
    assert [pointer.step for pointer in kept] == [1, 2]
    assert kept[1].previous == kept[0].artifact
    assert await brought(keeper_of(), tmp_path) == b"weights 2"
    assert not (tmp_path / "checkpoint-1").exists(), "what is stored needs no second place"


async def test_a_damaged_checkpoint_gives_way_to_the_one_before(keeper_of: MakeKeeper, tmp_path: Path) -> None:
    await keep(keeper_of(), snapshot(tmp_path, 1), snapshot(tmp_path, 2))
    damage(tmp_path, 2)
    assert await brought(keeper_of(), tmp_path) == b"weights 1"


async def test_when_both_are_damaged_the_run_starts_anew(keeper_of: MakeKeeper, tmp_path: Path) -> None:
    await keep(keeper_of(), snapshot(tmp_path, 1), snapshot(tmp_path, 2))
    damage(tmp_path, 1)
    damage(tmp_path, 2)
    assert await brought(keeper_of(), tmp_path) is None


async def test_a_later_lease_goes_on_and_an_earlier_one_is_fenced_off(
    keeper_of: MakeKeeper, superseded: asyncio.Event, kept: list[CheckpointPointer], tmp_path: Path
) -> None:
    await keep(keeper_of(1), snapshot(tmp_path, 1))
    assert await brought(keeper_of(2), tmp_path) == b"weights 1"
    await keep(keeper_of(2), snapshot(tmp_path, 2))
    await keep(keeper_of(1), snapshot(tmp_path, 3))
    assert superseded.is_set()
    assert [pointer.lease for pointer in kept] == [1, 2]
    with pytest.raises(Superseded):
        await keeper_of(1).newest()


async def test_a_slow_store_gets_only_the_newest_of_what_waits(
    keeper_of: MakeKeeper, kept: list[CheckpointPointer], tmp_path: Path
) -> None:
    keeper = keeper_of()
    async with keeper:
        for step in (1, 2, 3):
            keeper.offer(snapshot(tmp_path, step))
        await keeper.settled()
    assert [pointer.step for pointer in kept] == [3]
    assert not (tmp_path / "checkpoint-1").exists()


async def test_a_store_that_is_away_costs_a_checkpoint_and_not_the_run(
    keeper_of: MakeKeeper, store: ArtifactStore, kept: list[CheckpointPointer], tmp_path: Path
) -> None:
    class Away:
        """A store whose first file is lost on the way."""

        def __init__(self) -> None:
            self.failures = 1

        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        async def put_file(self, path: Path) -> str:
            if self.failures:
                self.failures -= 1
                raise Busy("the store is away")
            return await store.put_file(path)

    await keep(keeper_of(store=Away()), snapshot(tmp_path, 1), snapshot(tmp_path, 2))
    assert [pointer.step for pointer in kept] == [2]


async def test_a_checkpoint_that_is_stored_again_keeps_the_one_before(
    keeper_of: MakeKeeper, kept: list[CheckpointPointer], tmp_path: Path
) -> None:
    await keep(keeper_of(), snapshot(tmp_path, 1), snapshot(tmp_path, 2))
    await keep(keeper_of(), snapshot(tmp_path, 2))
    assert kept[2] == kept[1]
    damage(tmp_path, 2)
    assert await brought(keeper_of(), tmp_path) == b"weights 1"


async def test_only_the_newest_two_checkpoints_take_room(keeper_of: MakeKeeper, tmp_path: Path) -> None:
    await keep(keeper_of(), *(snapshot(tmp_path, step) for step in range(5)))
    stored = [path.read_bytes() for path in (tmp_path / "artifacts" / "sha256").iterdir()]
    assert {data for data in stored if data.startswith(b"weights")} == {b"weights 3", b"weights 4"}
    assert len(stored) == 4, "each with its manifest"


async def test_a_done_task_leaves_neither_pointer_nor_checkpoint(
    keeper_of: MakeKeeper, bus: Bus, tmp_path: Path
) -> None:
    await keep(keeper_of(), snapshot(tmp_path, 0), snapshot(tmp_path, 1))
    await keeper_of().forget()
    assert await bus.bucket("state").get("checkpoint.t", CheckpointPointer) is None
    assert not [*(tmp_path / "artifacts" / "sha256").iterdir()]
    await keep(keeper_of(), snapshot(tmp_path, 2))
    assert await brought(keeper_of(), tmp_path) == b"weights 2"
