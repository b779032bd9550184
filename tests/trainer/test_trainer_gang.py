"""A gang's processes: they train as one would, stop as one, and leave at once when a member is gone."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio
from safetensors.torch import load_file
from torch import testing

from llmos.contracts.jobs import TrainSettings
from llmos.forking import Child, Template
from llmos_trainer.datasets import write_dataset
from llmos_trainer.orders import (
    DRAIN,
    Failed,
    Finished,
    GangOrder,
    Listening,
    Progressed,
    Report,
    Snapshotted,
    Stopped,
    TrainOrder,
    decode_report,
)
from llmos_trainer.rows import Row
from llmos_trainer.service import PRELOAD, TEMPLATE_ENV
from llmos_trainer.training import run

pytestmark = pytest.mark.asyncio(loop_scope="module")
SETTINGS = TrainSettings(epochs=2, batch_size=8, learning_rate=1e-3, max_length=32)
LONG = msgspec.structs.replace(SETTINGS, epochs=1000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def template() -> AsyncIterator[Template]:
    template = Template(PRELOAD, env=TEMPLATE_ENV)
    await template.start()
    yield template
    await template.stop()


class Member:
    """One process of a gang: what it said, and its end."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.reports: list[Report] = []
        self.listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.training = asyncio.Event()
        self.ended = asyncio.create_task(self._read())

    async def _read(self) -> Report | None:
        async for message in self.child:
            report = decode_report(message)
            self.reports.append(report)
            if isinstance(report, Listening):
                self.listening.set_result(report.port)
            if isinstance(report, Progressed) and report.phase == "training":
                self.training.set()
        await self.child.wait()
        return self.reports[-1] if self.reports else None

    @property
    def snapshots(self) -> list[Snapshotted]:
        return [report for report in self.reports if isinstance(report, Snapshotted)]


class Gangs:
    """Makes gangs of forked processes on one dataset."""

    def __init__(self, template: Template, dataset: Path, base: Path, work: Path) -> None:
        self._template = template
        self.values = {"dataset": str(dataset), "base": str(base), "task": "t", "recipe": "r"}
        self._work = work
        self._made = 0

    async def start(
        self, world: int, settings: TrainSettings = SETTINGS, *, every: float = 1e9, resume: str = "", **more: Any
    ) -> list[Member]:
        self._made += 1
        members: list[Member] = []
        for rank in range(world):
            port = await members[0].listening if members else 0
            gang = GangOrder(rank, world, "127.0.0.1", "secret", port) if world > 1 else None
            work = str(self._work / f"{self._made}.{rank}")
            order = TrainOrder(
                work=work, settings=settings, gang=gang, checkpoint_every_s=every, resume=resume,
                **(self.values | more),
            )  # fmt: skip
            members.append(await self.fork(order))
        return members

    async def fork(self, order: TrainOrder) -> Member:
        args, env = msgspec.json.encode(order), {"GLOO_SOCKET_IFNAME": "lo"}
        return Member(await self._template.fork("llmos_trainer.training:run", args, env=env))

    async def run(self, world: int, settings: TrainSettings = SETTINGS, **more: Any) -> Finished:
        return finished(await asyncio.gather(*(at.ended for at in await self.start(world, settings, **more))))


def finished(ends: Sequence[Report | None]) -> Finished:
    assert all(isinstance(end, Finished) for end in ends), ends
    first, *others = ends
    assert isinstance(first, Finished)
    assert all(other == Finished({}, first.metrics) for other in others), "all measure the same, one saves"
    return first


def digest(done: Finished) -> str:
    return hashlib.sha256((Path(done.trees["model"]) / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def gangs(template: Template, tiny_model: Path, rows_of: Any, tmp_path: Path) -> Gangs:
    counts = {"train": 97, "validation": 150, "test": 24}  # the last batch of an epoch has a single row
    write_dataset(
        tmp_path / "data",
        {name: [Row(1, **row) for row in rows_of(count, seed=at)] for at, (name, count) in enumerate(counts.items())},
    )
    return Gangs(template, tmp_path / "data", tiny_model, tmp_path)


@pytest.mark.parametrize("method", ["full", "lora"])
async def test_any_number_of_members_learns_what_one_does(
    gangs: Gangs, method: Any, model_builder: Any, tmp_path: Path
) -> None:
    base = str(model_builder(tmp_path / "still", dropout=0.0))
    settings = msgspec.structs.replace(SETTINGS, method=method)
    if method == "lora":  # its own dropout can't be turned off: at a rate of nothing the same is learned all the same
        settings = msgspec.structs.replace(settings, learning_rate=1e-9)
    alone = await gangs.run(1, settings, base=base)
    for world in (2, 3):
        together = await gangs.run(world, settings, base=base)
        assert together.metrics == pytest.approx(alone.metrics, abs=1e-4)
        mine, its = (load_file(Path(done.trees["model"]) / "model.safetensors") for done in (together, alone))
        for name, tensor in its.items():
            testing.assert_close(mine[name], tensor, rtol=0, atol=1e-4)


async def test_losses_of_two_are_those_of_one_in_every_epoch(
    gangs: Gangs, model_builder: Any, tape: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(model_builder(tmp_path / "still", dropout=0.0))
    settings = msgspec.structs.replace(SETTINGS, epochs=4)

    def losses(reports: Sequence[Report]) -> list[float]:
        """After each epoch, as far as it was said (once a second)."""
        progress = [at.metrics for at in reports if isinstance(at, Progressed)]
        said = [metrics["validation_loss"] for metrics in progress if "validation_loss" in metrics]
        return list(dict.fromkeys(said))

    with monkeypatch.context() as here:
        here.setattr("llmos_trainer.reporting.EVERY_S", 0.0)
        order = TrainOrder(work=str(tmp_path / "alone"), settings=settings, **(gangs.values | {"base": base}))
        run(msgspec.json.encode(order), tape)
    alone = losses(tape.reports)
    assert len(alone) == 4
    first, *_ = members = await gangs.start(2, settings, base=base)
    finished(await asyncio.gather(*(at.ended for at in members)))
    together = losses(first.reports)
    assert together[-1] == pytest.approx(alone[-1], abs=1e-5)
    for loss in together:
        assert min(abs(loss - other) for other in alone) < 1e-5


async def test_a_gang_resumed_from_any_checkpoint_ends_with_the_same_bytes(gangs: Gangs) -> None:
    first, *others = await gangs.start(3, every=0.0)
    undisturbed = digest(finished(await asyncio.gather(first.ended, *(at.ended for at in others))))
    assert digest(await gangs.run(3)) == undisturbed
    assert not any(at.snapshots for at in others), "one checkpoints for all"
    for at in first.snapshots[:: max(1, len(first.snapshots) // 2)]:
        assert digest(await gangs.run(3, resume=at.path)) == undisturbed


async def test_a_member_that_is_told_to_stop_stops_all_at_one_step_with_a_checkpoint(gangs: Gangs) -> None:
    first, second = members = await gangs.start(2, LONG)
    await second.training.wait()
    await second.child.send(DRAIN)
    ends = await asyncio.gather(*(at.ended for at in members))
    assert isinstance(ends[0], Stopped), ends
    assert ends[0] == ends[1]
    assert first.snapshots[-1].step == ends[0].step


async def test_a_member_that_is_killed_ends_the_others_at_once_and_no_step_is_lost(gangs: Gangs) -> None:
    settings = msgspec.structs.replace(SETTINGS, epochs=10)
    undisturbed = digest(await gangs.run(3, settings))
    first, second, third = await gangs.start(3, settings)
    await third.training.wait()
    psutil.Process(third.child.pid).kill()
    since = time.monotonic()
    ends = await asyncio.gather(first.ended, second.ended)
    assert time.monotonic() - since < 10
    for end in ends:
        assert isinstance(end, Failed), end
        assert (end.retryable, end.problem.code) == (True, "gang_broken")
    saved = first.snapshots[-1]
    said = max(report.step for report in first.reports if isinstance(report, Progressed))
    assert saved.step >= said > 0
    assert digest(await gangs.run(3, settings, resume=saved.path)) == undisturbed


async def test_a_process_that_comes_a_second_time_is_turned_away(gangs: Gangs, tmp_path: Path) -> None:
    first, second = await gangs.start(2, LONG)
    await second.training.wait()
    again = TrainOrder(
        work=str(tmp_path / "again"), settings=LONG, gang=GangOrder(1, 2, "127.0.0.1", "secret", await first.listening),
        **gangs.values,
    )  # fmt: skip
    other = msgspec.structs.replace(again, gang=msgspec.structs.replace(again.gang, token="other"))
    for order, reason in ((again, "a second time"), (other, "another gang")):
        end = await (await gangs.fork(order)).ended
        assert isinstance(end, Failed)
        assert reason in end.problem.message
    assert not first.ended.done(), "and those that train are not disturbed"
    for member in (first, second):
        await member.child.kill()
        await member.ended


async def test_a_gang_that_is_never_whole_says_who_is_missing(
    gangs: Gangs, monkeypatch: pytest.MonkeyPatch, tape: Any, tmp_path: Path
) -> None:
    from llmos_trainer import gang

    monkeypatch.setattr(gang, "MEET_S", 0.2)
    order = TrainOrder(
        work=str(tmp_path / "alone"), settings=SETTINGS, gang=GangOrder(0, 3, "127.0.0.1", "x"), **gangs.values
    )
    run(msgspec.json.encode(order), tape)
    assert isinstance(tape.last, Failed)
    assert tape.last.problem.code == "gang_broken"
    assert "ranks 1, 2 of 3 did not come within 0.2 s" in tape.last.problem.message
