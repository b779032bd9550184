"""The same log gives the same plans, to the byte: in another process, with other hash seeds, from a snapshot."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmos.contracts.queues import QueuesChanged, QueueSettings
from llmos.contracts.subjects import event_subject

REPLAY = """
import hashlib, sys
import msgspec
from llmos.bus import Heard
from llmos_scheduler.brain import Brain
from llmos_scheduler.core import decide
from llmos_scheduler.effects import Emit
from llmos_scheduler.records import State
from llmos_scheduler.snapshots import decode, encode
from llmos_scheduler.state import apply

log = [msgspec.json.decode(line) for line in open(sys.argv[1], "rb")]
cut = int(sys.argv[2])
state, brain, digest = State(), None, hashlib.sha256()
for number, (subject, data, at, id) in enumerate(log):
    event = Heard(subject, number + 1, at, {"ce-id": id}, data.encode(), 0).event()
    assert event is not None
    state = apply(state, event, at, id)
    if number == cut:
        state, brain = decode(encode(state)), None
    brain = brain or Brain(state)
    facts = [effect for effect in decide(state, brain, at) if isinstance(effect, Emit)]
    digest.update(msgspec.json.encode(facts))
    if number % 25 == 0:
        digest.update(msgspec.json.encode([effect for effect in decide(state, Brain(state), at + 30)]))
digest.update(encode(state))
print(digest.hexdigest())
"""


def busy_log(world: Any) -> list[Any]:
    """Queues with policies, GPUs, priorities, shares, deployments, failures, and a node that is lost."""
    settings = [QueueSettings("default", "priority-preempt"), QueueSettings("lab", quota=2), QueueSettings("lab/a")]
    world.say(QueuesChanged(settings, "test"), "queues")
    world.node("a", cpus=16, gpus=4).node("b", cpus=8, gpus=2).node("c", cpus=4)
    for number in range(24):
        world.submit(
            f"j{number}",
            deploy=1 if number % 5 == 0 else None,
            gpus=number % 3,
            priority=(number * 37) % 100,
            queue=("default", "lab/a", "lab/b")[number % 3],
            duration=100.0 * (number % 4) or None,
        )
    for turn in range(14):
        world.settle()
        for at, key in enumerate(sorted(world.queue)):
            world.start(key)
            (world.fail if at % 5 == 4 else world.succeed)(key)
        for (node, name), assigned in sorted(world.deployed.items()):
            if assigned.version is not None:
                world.ready(node, name)
        world.now += 3
        if turn == 8:
            world.lose("b")
    return list(world.log)


@pytest.fixture(scope="module")
def log(make_world: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    events = busy_log(make_world())
    lines = [
        msgspec.json.encode([event_subject(event), msgspec.json.encode(event).decode(), at, id])
        for event, at, id in events
    ]
    path.write_bytes(b"\n".join(lines))
    return path, len(lines)


def replay(path: Path, seed: int, cut: int = -1) -> str:
    done = subprocess.run(
        [sys.executable, "-c", REPLAY, str(path), str(cut)],
        env=os.environ | {"PYTHONHASHSEED": str(seed)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_log_replayed_twice_gives_byte_identical_plans(log: tuple[Path, int]) -> None:
    path, length = log
    assert length > 150
    first = replay(path, 1)
    assert [replay(path, seed) for seed in (2, 3)] == [first, first]


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_replay_that_starts_from_a_snapshot_plans_the_same(log: tuple[Path, int], part: float) -> None:
    path, length = log
    assert replay(path, 1, int(part * length)) == replay(path, 4)
