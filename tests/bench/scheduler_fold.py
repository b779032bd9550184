"""How fast the scheduler's state is rebuilt: decoding facts as they are stored and applying them, on one core.

python tests/bench/scheduler_fold.py [events] [--progress 20]

The history is that of jobs that were trained and registered: admitted, three tasks that are placed, started and
succeed, so many signs of progress of each training (at most one a second is said), the exported model and the end. Many
run side by side. Times are of the processor; making the history is not counted.
"""

import argparse
import gc
import time
from collections.abc import Iterator
from itertools import islice

import msgspec
from msgspec import Struct

from llmos.bus import Heard
from llmos.contracts import subjects
from llmos.contracts.jobs import DataSource, JobAdmitted, JobSpec, JobSucceeded, ModelSource
from llmos.contracts.models import ModelExported, ModelVersion
from llmos.contracts.nodes import Inventory, NodeInventoried, WorkerJoined
from llmos.contracts.tasks import KINDS, TaskPlaced, TaskProgressed, TaskStarted, TaskSucceeded
from llmos_scheduler.__main__ import COLLECT_AFTER
from llmos_scheduler.records import State
from llmos_scheduler.snapshots import decode, encode
from llmos_scheduler.state import apply

AT_ONCE = 500  # jobs side by side
NODES = 50
TRACE = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def job_facts(number: int, progress: int) -> Iterator[Struct]:
    """The life of one job."""
    job, tenant, node = f"j-{number:09}", f"tenant{number % 7}", f"n{number % NODES}"
    spec = JobSpec(f"model-{number % 1000}", ModelSource("hf:org/base"), DataSource("file:///d.csv"), tenant=tenant)
    yield JobAdmitted(job, spec, float(number), TRACE)
    for at, kind in enumerate(KINDS):
        lease = 3 * number + at + 1
        head = (f"{job}-{kind}", job, tenant, kind, lease, node)
        yield TaskPlaced(*head[:4], 1, lease, node, 1.0, 1 << 30)
        yield TaskStarted(*head)
        for step in range(progress if kind == "train" else 0):
            yield TaskProgressed(*head, "train", step * 10, 1000, 0.1, step / 100, 60.0, {"loss": 1.0, "accuracy": 0.5})
        if kind == "export":
            yield ModelExported(ModelVersion(spec.name, number, tenant, spec.task, f"sha256:{number}", job, 0.0))
        yield TaskSucceeded(*head, {"model": f"sha256:{number:064}"}, {"accuracy": 0.9})
    yield JobSucceeded(job, tenant, spec.name, number)


def history(count: int, progress: int) -> Iterator[Heard]:
    """That many stored facts of jobs side by side."""
    for node in range(NODES):
        yield stored(NodeInventoried(f"n{node}", 1, Inventory(64, 256 << 30)), 2 * node + 1)
        yield stored(WorkerJoined(f"n{node}", "trainer", list(KINDS)), 2 * node + 2)
    said, number = 2 * NODES, 0
    running: list[Iterator[Struct]] = []
    while said < count:
        while len(running) < AT_ONCE:
            running.append(job_facts(number, progress))
            number += 1
        going = []
        for facts in running:
            fact = next(facts, None)
            if fact is not None:
                said += 1
                going.append(facts)
                yield stored(fact, said)
        running = going


def stored(fact: Struct, sequence: int) -> Heard:
    headers = {"ce-id": f"fact-{sequence}", "traceparent": TRACE}
    return Heard(subjects.event_subject(fact), sequence, 1e9 + sequence / 1000, headers, msgspec.json.encode(fact), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("events", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--progress", type=int, default=20)
    options = parser.parse_args()
    state, took, done = State(), 0.0, 0
    facts = history(options.events, options.progress)
    gc.set_threshold(*COLLECT_AFTER)
    while chunk := list(islice(facts, 20_000)):
        began = time.process_time()
        for heard in chunk:
            event = heard.event()
            if event is not None:
                apply(state, event, heard.time, heard.id)
        took += time.process_time() - began
        done += len(chunk)
    each = 1e6 * took / done
    print(f"{done:,} events in {took:.2f} s of one core, {each:.2f} us each; {len(state.jobs):,} jobs kept")
    began = time.process_time()
    data = encode(state)
    middle = time.process_time()
    decode(data)
    print(
        f"its snapshot: {len(data) / 1e6:.1f} MB, written in {middle - began:.2f} s, "
        f"read in {time.process_time() - middle:.2f} s"
    )


if __name__ == "__main__":
    main()
