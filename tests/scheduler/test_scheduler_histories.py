"""Random histories: whatever workers, nodes, users and crashes do, the scheduler keeps its promises."""

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmos.contracts import jobs
from llmos.contracts.deployments import ReplicaFailed, ReplicaUnloaded
from llmos.contracts.jobs import JobCancelling
from llmos.contracts.nodes import Gpu, Inventory, NodeCordoned, NodeInventoried, NodeUncordoned
from llmos.contracts.queues import QueuesChanged, QueueSettings, ReservationEnded, ReservationMade
from llmos.contracts.tasks import (
    TaskCancelled,
    TaskCheckpointed,
    TaskFailed,
    TaskLost,
    TaskPlaced,
    TaskProgressed,
    TaskRefused,
    TaskRejected,
    TaskStarted,
    TaskSucceeded,
)
from llmos.errors import Problem
from llmos_scheduler.brain import VACATING_S, Brain
from llmos_scheduler.core import decide
from llmos_scheduler.effects import Emit
from llmos_scheduler.placement import rooms, waiting_tasks
from llmos_scheduler.records import State
from llmos_scheduler.resources import Request
from llmos_scheduler.snapshots import decode, encode
from llmos_scheduler.state import apply

GIB = 1 << 30
NODES = {"a": (2, 4, 0), "b": (4, 8, 2), "c": (16, 64, 1)}  # cpus, GiB of memory, GPUs
GPU_MEMORY = 80 * GIB
QUEUES = ("default", "lab/vision", "lab/text")
SETTINGS = (
    [],
    [QueueSettings("lab", quota=2)],
    [QueueSettings("default", "priority-preempt"), QueueSettings("lab/text", "las", limit=1)],
    [QueueSettings("default", "srsf", quota=1), QueueSettings("lab", weight=2.0, quota=1)],
    [QueueSettings("default", "fifo"), QueueSettings("lab/vision", "deadline", quota=2, limit=2)],
)
JOB_ENDS = (
    jobs.JobRejected, jobs.JobCancelled, jobs.JobFailed, jobs.JobRefused, jobs.JobSucceeded, jobs.JobDeployed,
)  # fmt: skip
TASK_ENDS = (TaskSucceeded, TaskFailed, TaskRejected, TaskRefused, TaskCancelled, TaskLost)
ACTIONS = (
    "submit", "submit", "start", "start", "start", "succeed", "succeed", "succeed", "progress", "fail", "break",
    "refuse", "give_back", "cancel", "obey", "obey", "lose", "join", "wait", "wait", "late", "duplicate", "crash",
    "ready", "ready", "replica_fails", "unload", "save", "cordon", "uncordon", "reserve", "unreserve", "set_queues",
    "refit", "break_gang",
)  # fmt: skip


def hardware(node: str, missing: int = 0) -> Inventory:
    """What a node has, but for its first GPUs."""
    cpus, memory, gpus = NODES[node]
    devices = [Gpu(f"{node}-gpu{at}", "H100", GPU_MEMORY, at) for at in range(missing, gpus)]
    return Inventory(cpus, memory * GIB, gpus=devices, labels={"zone": "x" if node == "a" else "y"})


class History:
    """One world and the random actions on it; each draws what it needs from `pick`."""

    def __init__(self, world: Any, pick: Callable[[int], int]) -> None:
        self.world = world
        self.reservations = 0
        self.pick = pick
        self.up: set[str] = set()
        self.submitted = 0
        self.over: list[tuple[str, Any]] = []  # assignments whose workers have let go of them
        self.arrive("a")
        self.arrive("b")

    def arrive(self, node: str) -> None:
        cpus, memory, gpus = NODES[node]
        self.up.add(node)
        self.world.node(node, cpus, memory * GIB, gpus, labels={"zone": "x" if node == "a" else "y"})

    def one(self, items: Any) -> Any:
        """Any of the items; `None` of nothing."""
        items = sorted(items)
        return items[self.pick(len(items))] if items else None

    def act(self, action: str) -> None:
        getattr(self, action)()
        if self.pick(4) == 0:
            self.die_at_work()
        self.world.settle()
        self.check()

    def die_at_work(self) -> None:
        """The scheduler decides, performs a part of it, and is gone."""
        effects = decide(self.world.state, Brain(self.world.state), self.world.now)
        for effect in effects[: self.pick(len(effects) + 1)]:
            if isinstance(effect, Emit):
                self.world.say(effect.event, effect.id)
            else:
                self.world.perform(effect)
        self.world.crash()

    def submit(self) -> None:
        self.submitted += 1
        wants: dict[str, Any] = (
            {},
            {},
            {"gpus": 1},
            {"gpus": 2},
            {"gpus": 1, "gpu_milli": (250, 500, 600)[self.pick(3)], "gpu_memory": (0, 20, 50)[self.pick(3)] * GIB},
            {"gpus": 1, "nodes": 2},
            {"nodes": 2},
            {"labels": {"zone": "y"}},
        )[self.pick(8)]
        replica = (None, {"cpus": 1}, {"gpus": 1}, {"gpus": 1, "gpu_milli": 400})[self.pick(4)]
        self.world.submit(
            f"j{self.submitted}",
            name=f"m{self.pick(3)}",
            priority=10 * self.pick(5),
            cpus=(0.5, 1, 2)[self.pick(3)] if wants.get("nodes") else (0.5, 1, 2, 4)[self.pick(4)],
            memory=(1, 2, 4)[self.pick(3)] * GIB,
            attempts=1 + self.pick(3),
            deploy=(None, 1, 2)[self.pick(3)],
            replica=replica,
            spread="zone" if self.pick(2) else "",
            queue=QUEUES[self.pick(3)],
            method="none" if self.pick(8) == 0 else "full",
            preemptible=self.pick(4) > 0,
            duration=(None, None, 20.0, 900.0)[self.pick(4)],
            deadline=self.world.now + 100 if self.pick(8) == 0 else None,
            **wants,
        )

    def start(self) -> None:
        key = self.one(key for key, (node, _) in self.world.queue.items() if node in self.up)
        if key:
            self.world.start(key)

    def _taken(self) -> Any:
        key = self.one(self.world.taken)
        if key:
            self.over.append(self.world.taken[key])
        return key

    def succeed(self) -> None:
        if key := self._taken():
            self.world.succeed(key)

    def fail(self) -> None:
        if key := self._taken():
            self.world.fail(key)

    def break_(self) -> None:
        if key := self._taken():
            self.world.fail(key, retryable=False)

    def refuse(self) -> None:
        key = self._taken()
        if key:
            node, work = self.world.taken.pop(key)
            kind = {"check": TaskRejected, "export": TaskRefused}.get(work.kind)
            if kind:
                self.world.say(kind(work.task, work.job, work.tenant, work.lease, node))

    def give_back(self) -> None:
        if key := self._taken():
            self.world.obey(key)

    def obey(self) -> None:
        key = self.one(self.world.stops & set(self.world.taken))
        if key:
            self.over.append(self.world.taken[key])
            self.world.obey(key)

    def progress(self) -> None:
        for key in sorted(self.world.taken):
            self.world.progress(key)

    def cancel(self) -> None:
        job = self.one(self.world.state.alive)
        if job:
            self.world.say(JobCancelling(job, "default"), f"{job}.cancelling")

    def lose(self) -> None:
        node = self.one(self.up)
        if node:
            self.up.discard(node)
            self.world.lose(node)
            if self.pick(2):  # else it was only cut off, and works on
                for key in [key for key, (where, _) in self.world.taken.items() if where == node]:
                    self.over.append(self.world.taken.pop(key))

    def join(self) -> None:
        node = self.one(set(NODES) - self.up)
        if node:
            self.arrive(node)

    def wait(self) -> None:
        self.world.now += (1, 3, 10, 40, 130)[self.pick(5)]

    def late(self) -> None:
        """A worker that let go of its task long ago says one more thing about it."""
        if not self.over:
            return
        node, work = self.over[self.pick(len(self.over))]
        task = self.world.state.jobs[work.job].tasks[work.kind]
        if task.live and task.lease == work.lease:
            return
        head = (work.task, work.job, work.tenant, work.kind, work.lease, node)
        event = (
            TaskStarted(*head),
            TaskProgressed(*head, "train"),
            TaskSucceeded(*head, {"dataset": "sha256:late"}),
            TaskFailed(*head, Problem("late", "late")),
            TaskCancelled(*head),
            TaskLost(*head, "late"),
        )[self.pick(6)]
        before = self.world.snapshot()
        self.world.say(event)
        assert self.world.snapshot() == before

    def duplicate(self) -> None:
        """The bus brings an old fact about a job or task again."""
        event, _, _ = self.world.log[self.pick(len(self.world.log))]
        if isinstance(event, TaskStarted | TaskProgressed):
            return  # a second sign of life is one
        if isinstance(event, (*JOB_ENDS, *TASK_ENDS, TaskPlaced, jobs.JobAdmitted)):
            before = self.world.snapshot()
            self.world.say(event)
            assert self.world.snapshot() == before

    def crash(self) -> None:
        self.world.crash()

    def save(self) -> None:
        for node, work in sorted(self.world.taken.values(), key=lambda item: item[1].task):
            if work.kind == "train":
                self.world.say(TaskCheckpointed(work.task, work.job, work.tenant, work.lease, 5, f"sha256:{node}"))

    def break_gang(self) -> None:
        """A member of a gang fails because another one went away."""
        key = self.one(key for key, (_, work) in self.world.taken.items() if work.world > 1)
        if key:
            self.over.append(self.world.taken[key])
            self.world.break_gang(key)

    def cordon(self) -> None:
        node = self.one(NODES)
        self.world.say(NodeCordoned(node, bool(self.pick(2)), "me", "works"))

    def uncordon(self) -> None:
        node = self.one(name for name, node in self.world.state.nodes.items() if node.cordoned)
        if node:
            self.world.say(NodeUncordoned(node))

    def reserve(self) -> None:
        self.reservations += 1
        now, after = self.world.now, (0, 30)[self.pick(2)]
        queue = ("", "lab", "default")[self.pick(3)]
        nodes = [self.one(NODES)]
        made = ReservationMade(f"r{self.reservations}", nodes, queue, "", now + after, (None, now + 60)[self.pick(2)])
        self.world.say(made)

    def unreserve(self) -> None:
        name = self.one(self.world.state.reservations)
        if name:
            self.world.say(ReservationEnded(name))

    def set_queues(self) -> None:
        self.world.say(QueuesChanged(SETTINGS[self.pick(len(SETTINGS))]))

    def refit(self) -> None:
        """A node comes back with other hardware: a GPU went missing or came back, in another place."""
        node = self.one(self.up)
        if node:
            self.world.say(NodeInventoried(node, 2, hardware(node, missing=self.pick(2))))

    def unload(self) -> None:
        """A node takes down what it was told to."""
        for name, deployment in sorted(self.world.state.deployments.items()):
            node = self.one(node for node in deployment.leaving if node in self.up)
            if node:
                self.world.say(ReplicaUnloaded(name, "default", node, deployment.leaving[node], 1, "told to"))
                return

    def _assigned(self) -> Any:
        return self.one(
            (node, name)
            for (node, name), assigned in self.world.deployed.items()
            if assigned.desired == "present" and node in self.up
        )

    def ready(self) -> None:
        if where := self._assigned():
            self.world.ready(*where)

    def replica_fails(self) -> None:
        if where := self._assigned():
            assigned = self.world.deployed[where]
            self.world.say(
                ReplicaFailed(
                    where[1], "default", where[0], assigned.generation, Problem("no", "no"), assigned.job,
                    bool(self.pick(2)),
                )
            )  # fmt: skip

    # --- promises ---

    def check(self) -> None:
        state, now = self.world.state, self.world.now
        held: dict[str, list[tuple[Request, list[str]]]] = {name: [] for name in NODES}
        checks: Counter[str] = Counter()
        for task in state.live_tasks():  # summed up here, not by the scheduler's own ledger
            if task.kind == "check":
                checks[task.node] += 1
                continue
            assert len({member.node for member in task.members}) == task.request.nodes, "a gang is whole"
            for member in task.members:
                held[member.node].append((task.request, member.devices))
        for deployment in state.deployments.values():
            for node, devices in deployment.change.leases.items():
                assert deployment.request is not None
                held[node].append((deployment.request, devices))
            for node, left in deployment.vacating.items():
                if now < left.at + VACATING_S:
                    held[node].append((left.request, left.devices))
        for name, (cpus, memory, _) in NODES.items():
            assert sum(request.cpus for request, _ in held[name]) <= cpus, f"{name} is over-committed"
            assert sum(request.memory for request, _ in held[name]) <= memory * GIB, f"{name} is over-committed"
            assert checks[name] <= max(2, cpus // 4)
            milli: Counter[str] = Counter()
            used: Counter[str] = Counter()
            for request, devices in held[name]:
                assert len(devices) == request.gpus
                for device in devices:
                    milli[device] += request.gpu_milli
                    used[device] += request.gpu_memory
            assert all(amount <= 1000 for amount in milli.values()), "a GPU is over-committed"
            assert all(amount <= GPU_MEMORY for amount in used.values()), "a GPU's memory is over-committed"
        for job in state.jobs.values():
            live = [task for task in job.tasks.values() if task.live]
            assert len(live) <= (0 if job.ended else 1)
        assert {job.id for job in state.jobs.values() if not job.ended} == set(state.alive)
        assert {job.id for job in state.living_jobs() if any(t.live for t in job.tasks.values())} == set(state.leased)
        for job, task in waiting_tasks(state, now):
            if task.kind == "check":
                # What waits could not even have run in what is left now: nobody took its place in vain.
                assert not any(room.fits(task.kind, task.request) for room in rooms(state).values()), (job.id, task.id)
            else:
                verdict = self.world.brain.planner.why(task.id, int(now * 1000))
                assert verdict.causes or verdict.starts_on or verdict.preempts, f"{task.id} is not explained"

    def finish(self) -> None:
        """From here on everybody does what is asked: every job has to come to its one end."""
        world = self.world
        while self.up != set(NODES):
            self.join()
        for node in NODES:
            world.say(NodeInventoried(node, 3, hardware(node)))
            world.say(NodeUncordoned(node))
        for name in list(world.state.reservations):
            world.say(ReservationEnded(name))
        world.say(QueuesChanged([]))
        for turn in range(400):
            if not world.state.alive:
                break
            world.now += 5
            if turn == 200:  # what is left waits for hardware that replicas hold for good
                for job in world.state.living_jobs():
                    assert job.state == "queued"
                    world.say(JobCancelling(job.id, "default"), f"{job.id}.cancelling")
            for key in sorted(world.taken):
                world.obey(key) if key in world.stops else world.succeed(key)
            for key in sorted(world.queue):
                world.start(key)
            for (node, name), assigned in sorted(world.deployed.items()):
                if assigned.desired == "present":
                    world.ready(node, name)
                else:
                    world.say(ReplicaUnloaded(name, "default", node, assigned.generation, 1, "told to"))
            world.settle()
            self.check()
        assert not world.state.alive, [(job.id, job.state) for job in world.state.living_jobs()]
        assert not world.state.live_tasks()
        ends = Counter(event.job for event, _, id in world.log if id and isinstance(event, JOB_ENDS))
        assert ends == {f"j{number + 1}": 1 for number in range(self.submitted)}
        self.check_leases()
        world.crash()

    def check_leases(self) -> None:
        """Lease numbers only grow, and a task gets a new one only after its last one has ended."""
        newest, ended = 0, set()
        holds: dict[str, int] = {}
        for event, _, id in self.world.log:
            if isinstance(event, TaskPlaced) and id:  # without an id it is a duplicate that `duplicate` made
                assert event.lease > newest
                newest = event.lease
                assert holds.get(event.task) is None or (event.task, holds[event.task]) in ended
                holds[event.task] = event.lease
            elif isinstance(event, TASK_ENDS):
                ended.add((event.task, event.lease))


def play(world: Any, pick: Callable[[int], int], length: int) -> History:
    history = History(world, pick)
    for _ in range(length):
        action = ACTIONS[pick(len(ACTIONS))]
        history.act("break_" if action == "break" else action)
    history.finish()
    return history


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(draws=st.lists(st.integers(0, 1 << 16), min_size=60, max_size=250))
def test_any_history_keeps_the_promises(make_world: Any, draws: list[int]) -> None:
    left = iter(draws)
    play(make_world(), lambda n: next(left, 0) % n, length=len(draws) // 3)


def test_random_histories_keep_the_promises(make_world: Any) -> None:
    """Some; `python tests/sim/random_histories.py 10000` plays any number of others."""
    for seed in range(200):
        try:
            play(make_world(compare=seed % 2 == 0), random.Random(seed).randrange, length=60)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


def test_the_same_history_gives_the_same_decisions_to_the_byte_in_every_process() -> None:
    program = Path(__file__).parents[1] / "sim" / "random_histories.py"
    said = {
        subprocess.run(
            [sys.executable, str(program), "12", "0", "digest"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_a_snapshot_anywhere_in_a_history_and_its_tail_are_the_whole_fold_to_the_byte(make_world: Any) -> None:
    for seed in range(30):
        world = make_world()
        play(world, random.Random(seed).randrange, length=60)
        log = [(as_heard(event), at, id) for event, at, id in world.log]
        cut = random.Random(seed).randrange(len(log))
        tail = decode(encode(fold(State(), log[:cut])))
        assert encode(fold(tail, log[cut:])) == encode(fold(State(), log))


def as_heard(event: Any) -> Any:
    """The event as it comes off the wire."""
    return msgspec.json.decode(msgspec.json.encode(event), type=type(event))


def fold(state: State, log: list[Any]) -> State:
    for event, at, id in log:
        state = apply(state, event, at, id)
    return state
