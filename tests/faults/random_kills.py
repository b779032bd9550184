"""kill -9 of one random part at one random moment of a job, many times: each job must end once, with the same models.

    python tests/faults/random_kills.py [ROUNDS] [SEED]

Exit status 0 if every round passed.
"""

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import nats

from llmos import local
from material import write_base, write_rows
from outsider import Outsider, service_pid

PARTS = [
    "nats-server", "llmos_vault", "llmos_audit", "llmos_scheduler", "llmos_hw_agent", "llmos_inferencer",
    "llmos_exporter", "llmos_trainer", "llmos_gateway",
]  # fmt: skip


async def outcome(outsider: Outsider, job: str) -> tuple[str, ...]:
    """How the job ended (each end once) and the addresses of the trained and the exported model."""
    history = await outsider.history(job, within=180)
    ends = [fact for fact, _ in history if fact.startswith("job.") and fact != "job.admitted"]
    done = [event for fact, event in history if fact == "task.succeeded"]
    trained = [event["outputs"]["model"] for event in done if event["kind"] == "train"]
    exported = [event["version"]["artifact"] for fact, event in history if fact == "model.exported"]
    return (*ends, *trained, *exported)


async def rounds(info: local.StackInfo, material: Path, count: int, dice: random.Random) -> int:
    nc = await nats.connect(info.nats_url, max_reconnect_attempts=-1, reconnect_time_wait=0.2)
    outsider = Outsider(nc, material)
    train = outsider.spec()["train"] | {"epochs": 6, "batch_size": 8}
    spec = outsider.spec(train=train, deploy={"name": "survivor"})
    await outcome(outsider, await outsider.submit(spec))  # the first one warms everything up
    began = time.monotonic()
    wanted = await outcome(outsider, await outsider.submit(spec))
    whole = time.monotonic() - began
    print(f"undisturbed: {whole:.1f} s, {' '.join(part[:20] for part in wanted)}", flush=True)
    passed = 0
    for number in range(count):
        victim, moment = dice.choice(PARTS), dice.uniform(0, whole)
        began = time.monotonic()
        job = await outsider.submit(spec)
        await asyncio.sleep(moment)
        pid = service_pid(info, victim)
        if pid:
            os.kill(pid, signal.SIGKILL)
        try:
            got = await outcome(outsider, job)
        except TimeoutError:
            got = ("no end",)
        good = got == wanted
        passed += good
        verdict = "ok" if good else f"FAILED: {got}"
        print(
            f"{number + 1:3} {victim:<17} at {moment:5.2f} s, {time.monotonic() - began:6.1f} s in all: {verdict}",
            flush=True,
        )
    await nc.close()
    return passed


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as folder:
        material = Path(folder) / "material"
        material.mkdir()
        write_base(material / "base")
        for name, rows, salt in (("train", 640, 1), ("validation", 60, 2), ("test", 60, 3)):
            write_rows(material / f"{name}.jsonl", rows, salt)
        data = Path(folder) / "stack"
        local.up(local.UpOptions(data_dir=data, file_roots=(material,), node="n1", detach=True))
        try:
            passed = asyncio.run(rounds(local.status(data).stack, material, count, random.Random(seed)))
        finally:
            local.down(data)
    print(f"{passed} of {count}: finished exactly once, with the models of an undisturbed run")
    return 0 if passed == count else 1


if __name__ == "__main__":
    sys.exit(main())
