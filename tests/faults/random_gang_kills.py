"""A gang of two over three trainers, and one random misfortune at one random moment, many times: the job must end with
the same model each time.

    python tests/faults/random_gang_kills.py [ROUNDS] [SEED]

Exit status 0 if every round passed.
"""

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil

from llmos.client import Client
from llmos.contracts.nodes import Heartbeat, Inventory, NodeInventoried
from llmos.contracts.tasks import TaskCheckpointed, TaskFailed, TaskPlaced, TaskProgressed, TaskStarted, TaskSucceeded
from llmos.history import follow_job
from llmos.natsserver import NatsServer
from llmos.service import running
from llmos.telemetry import configure_logging
from llmos_scheduler.config import SchedulerConfig
from llmos_scheduler.service import serve as schedule
from material import write_base, write_rows

NODES = ("w0", "w1", "w2")


class Nodes:
    """Three trainers as processes; one that ended is started again after a second."""

    def __init__(self, env: dict[str, str], folder: Path, log: Any) -> None:
        self._env = env
        self._folder = folder
        self._log = log
        self._keepers: list[asyncio.Task[None]] = []
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    def start(self) -> None:
        self._keepers = [asyncio.create_task(self._keep(node)) for node in NODES]

    async def _keep(self, node: str) -> None:
        env = self._env | {"LLMOS_NODE": node, "LLMOS_DATA_DIR": str(self._folder / node)}
        while True:
            process = self.processes[node] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "llmos_trainer", env=env, stdout=self._log, stderr=self._log
            )
            await process.wait()
            await asyncio.sleep(1)

    async def stop(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        for process in self.processes.values():
            if process.returncode is None:
                process.terminate()
                await process.wait()

    def below(self, node: str, depth: int) -> list[psutil.Process]:
        """The processes below a node's service: 1 the template, 2 what it forked."""
        with suppress(psutil.NoSuchProcess):
            found = [psutil.Process(self.processes[node].pid)]
            for _ in range(depth):
                found = [child for parent in found for child in parent.children()]
            return found
        return []


Misfortune = Callable[[Client, Nodes, str], Awaitable[None]]


async def kill_member(_: Client, nodes: Nodes, node: str) -> None:
    for process in nodes.below(node, 2):
        process.kill()


async def stop_member(_: Client, nodes: Nodes, node: str) -> None:
    """It hangs for two seconds and goes on."""
    stopped = nodes.below(node, 2)
    for process in stopped:
        process.suspend()
    await asyncio.sleep(2)
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.resume()


async def kill_template(_: Client, nodes: Nodes, node: str) -> None:
    for process in nodes.below(node, 1):
        process.kill()


async def kill_service(_: Client, nodes: Nodes, node: str) -> None:
    nodes.processes[node].send_signal(signal.SIGKILL)


async def end_service(_: Client, nodes: Nodes, node: str) -> None:
    nodes.processes[node].terminate()


async def drain_node(client: Client, _: Nodes, node: str) -> None:
    await client.cordon(node, drain=True)
    await asyncio.sleep(3)
    await client.uncordon(node)


MISFORTUNES: tuple[Misfortune, ...] = (
    kill_member, stop_member, kill_template, kill_service, end_service, drain_node,
)  # fmt: skip


async def train(client: Client, spec: dict[str, Any], strike: Callable[[TaskPlaced], Awaitable[None]]) -> list[Any]:
    """Submit a job; the facts of its training up to its success. `strike` is called when it is placed first."""
    job = await client.submit(spec)
    facts: list[Any] = []
    striking: asyncio.Task[None] | None = None
    async with asyncio.timeout(240):
        async for _, event in follow_job(client.bus, job):
            if getattr(event, "kind", "train") != "train":
                continue
            facts.append(event)
            if isinstance(event, TaskPlaced) and striking is None:
                striking = asyncio.create_task(strike(event))  # type: ignore[arg-type]
            if isinstance(event, TaskSucceeded):
                break
    if striking is not None:
        await striking
    await client.cancel(job)
    return facts


def lost(facts: list[Any]) -> int:
    """Steps that were done twice: said under one lease, and beyond where the next one went on from."""
    reached, twice = 0, 0
    for fact in facts:
        if isinstance(fact, TaskStarted) and fact.resumed_step is not None:
            twice += max(0, reached - fact.resumed_step)
            reached = fact.resumed_step
        elif isinstance(fact, TaskProgressed | TaskCheckpointed):
            reached = max(reached, fact.step)
    return twice


async def rounds(client: Client, nodes: Nodes, spec: dict[str, Any], count: int, dice: random.Random) -> int:
    async def nothing(_: TaskPlaced) -> None: ...

    await train(client, spec, nothing)  # the first one warms everything up
    began = time.monotonic()
    facts = await train(client, spec, nothing)
    whole, wanted = time.monotonic() - began, facts[-1].outputs
    print(f"undisturbed: {whole:.1f} s, {facts[-1].metrics['steps']:.0f} steps, {wanted['model'][:20]}", flush=True)
    passed = 0
    for number in range(count):
        misfortune, moment = dice.choice(MISFORTUNES), dice.uniform(0, whole)

        async def strike(placed: TaskPlaced, misfortune: Misfortune = misfortune, moment: float = moment) -> None:
            await asyncio.sleep(moment)
            await misfortune(client, nodes, dice.choice([member.node for member in placed.members]))

        began = time.monotonic()
        try:
            facts = await train(client, spec, strike)
        except TimeoutError:
            print(f"{number:3d} {misfortune.__name__} at {moment:.1f} s: FAILED, it did not end", flush=True)
            continue
        same = facts[-1].outputs == wanted
        passed += same
        leases = len({fact.lease for fact in facts if isinstance(fact, TaskPlaced)})
        codes = ", ".join(fact.problem.code for fact in facts if isinstance(fact, TaskFailed))
        print(
            f"{number:3d} {misfortune.__name__:14} at {moment:4.1f} s: {'same' if same else 'FAILED, another model'}, "
            f"{time.monotonic() - began:5.1f} s, {leases} leases, {lost(facts)} steps twice {codes}",
            flush=True,
        )
    return passed


async def main(count: int, seed: int) -> int:
    configure_logging("error")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_base(folder / "base")
        for part, rows, number in (("train", 400, 1), ("validation", 60, 2), ("test", 60, 3)):
            write_rows(folder / f"{part}.jsonl", rows, number)
        server = await NatsServer(folder / "nats").start()
        artifacts = (folder / "artifacts").as_uri()
        env = os.environ | {
            "LLMOS_NATS_URL": server.url, "LLMOS_ARTIFACTS": artifacts, "LLMOS_FILE_ROOTS": str(folder),
            "LLMOS_CHECKPOINT_EVERY_S": "1", "LLMOS_DRAIN_S": "6", "LLMOS_LOG_LEVEL": "warning",
        }  # fmt: skip
        spec = {
            "name": "mood", "model": {"base": (folder / "base").as_uri()},
            "data": {part: (folder / f"{part}.jsonl").as_uri() for part in ("train", "validation", "test")},
            "train": {"epochs": 20, "batch_size": 8, "learning_rate": 1e-3, "max_length": 32},
            "resources": {"cpus": 1, "memory": "256MiB", "nodes": 2},
        }  # fmt: skip
        with (folder / "trainers.log").open("wb") as log:
            nodes = Nodes(env, folder, log)
            config = SchedulerConfig(nats_url=server.url, node="s", data_dir=folder / "s", artifacts=artifacts)
            try:
                async with running("scheduler", config, schedule), await Client.connect(server.url) as client:
                    nodes.start()
                    for node in NODES:
                        await client.bus.emit(NodeInventoried(node, 1, Inventory(1, 2 << 30)))
                        while await client.bus.bucket("nodes").get(f"{node}.trainer", Heartbeat) is None:
                            await asyncio.sleep(0.1)
                    passed = await rounds(client, nodes, spec, count, random.Random(seed))
            finally:
                await nodes.stop()
                await server.stop()
        print(f"{passed} of {count} rounds passed (seed {seed})")
        if passed < count:
            print((folder / "trainers.log").read_text()[-4000:])
    return 0 if passed == count else 1


if __name__ == "__main__":
    arguments = [int(text) for text in sys.argv[1:]]
    sys.exit(asyncio.run(main(*(arguments + [20, 1][len(arguments) :]))))
