"""What a decision costs as more and more jobs wait: `python tests/bench/decide_cost.py [PENDING …]`.

A cluster of 64 nodes of 8 GPUs is full. A training ends, the scheduler decides, its own facts come back, it decides
again until there is nothing more to say. Printed are milliseconds of processor time a decision, and what a new brain
costs until it has decided.
"""

import sys
import time

from llmos.contracts.jobs import DataSource, JobAdmitted, JobSpec, ModelSource, ResourceRequest
from llmos.contracts.nodes import Gpu, Inventory, NodeInventoried, WorkerJoined
from llmos.contracts.tasks import TaskFailed, TaskPlaced, TaskStarted, TaskSucceeded
from llmos.errors import Problem
from llmos_scheduler.brain import Brain
from llmos_scheduler.core import decide
from llmos_scheduler.effects import Emit
from llmos_scheduler.records import State
from llmos_scheduler.state import apply

NODES, GPUS, ROUNDS = 64, 8, 300
GIB = 1 << 30
SHAPES = [(1, 1), (1, 2), (2, 2), (4, 4), (8, 8)]  # gpus, cpus


class Stack:
    """A state and its brain; what is decided comes back at once."""

    def __init__(self, pending: int) -> None:
        self.state, self.now = State(), 1_000_000.0
        for number in range(NODES):
            name = f"n{number:03}"
            gpus = [Gpu(f"{name}-{at}", "H100", 80 * GIB, at) for at in range(GPUS)]
            self.say(NodeInventoried(name, 1, Inventory(64, 512 * GIB, gpus=gpus)))
            self.say(WorkerJoined(name, "worker", ["check", "train", "export"]))
        for number in range(pending):
            self.submit(number)
        start = time.process_time()
        self.brain = Brain(self.state)
        self.costs: list[float] = []
        self.settle()
        self.built = time.process_time() - start

    def say(self, event: object, id: str = "") -> None:
        apply(self.state, event, self.now, id)  # type: ignore[arg-type]

    def submit(self, number: int) -> None:
        id, (gpus, cpus) = f"j{number}", SHAPES[number % len(SHAPES)]
        spec = JobSpec(
            name=f"m{number % 50}",
            model=ModelSource("hf:org/base"),
            data=DataSource("file:///d.csv"),
            priority=number % 100,
            queue=f"q{number % 4}",
            resources=ResourceRequest(cpus=cpus, memory=GIB, gpus=gpus),
        )
        self.say(JobAdmitted(id, spec, self.now), f"{id}.admitted")
        lease = self.state.leases + 1
        self.say(TaskPlaced(f"{id}-check", id, "default", "check", 1, lease, "n000"))
        self.say(TaskSucceeded(f"{id}-check", id, "default", "check", lease, "n000", {"dataset": "d", "base": "b"}))

    def settle(self) -> None:
        while True:
            start = time.process_time()
            effects = decide(self.state, self.brain, self.now)
            self.costs.append(time.process_time() - start)
            facts = [effect for effect in effects if isinstance(effect, Emit)]
            for fact in facts:
                self.say(fact.event, fact.id)
                if isinstance(fact.event, TaskPlaced):
                    placed = fact.event
                    head = (placed.task, placed.job, placed.tenant, placed.kind, placed.lease, placed.node)
                    self.say(TaskStarted(*head))
            if not facts:
                return

    def end_one(self) -> None:
        """A running task ends for good: the job leaves."""
        job = self.state.jobs[next(iter(self.state.leased))]
        task = job.current
        assert task is not None
        head = (task.id, job.id, job.tenant, task.kind, task.lease, task.node)
        self.say(TaskFailed(*head, Problem("x", "x"), retryable=False))


def main(sizes: list[int]) -> None:
    print("pending | a decision: mean ms | p50 | p99 | decisions | first decisions of a new brain, s")
    for size in sizes:
        stack = Stack(size)
        stack.costs.clear()
        for number in range(ROUNDS):
            stack.now += 0.5
            stack.end_one()
            stack.submit(10_000_000 + number)
            stack.settle()
        costs = sorted(cost * 1000 for cost in stack.costs)
        p50, p99 = costs[len(costs) // 2], costs[int(len(costs) * 0.99)]
        mean = sum(costs) / len(costs)
        print(f"{size:7} | {mean:.3f} | {p50:.3f} | {p99:.3f} | {len(costs)} | {stack.built:.2f}")


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [1_000, 10_000, 100_000])
