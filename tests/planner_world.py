"""A random history of a cluster: facts that a planner is told, its plans carried out or lost, and the rules they keep.

The rules are checked with a ledger of plain integers that knows nothing of the planner. `history(seed)` runs one.
"""

from copy import copy
from dataclasses import dataclass
from random import Random

from llmos_scheduler.cluster import Device, Machine, Shape
from llmos_scheduler.order import HOUR, LAST, ORDERS
from llmos_scheduler.planner import Planner
from llmos_scheduler.queues import Queue
from llmos_scheduler.usage import Usage, amounts
from llmos_scheduler.work import Places, Plan, Reservation, Rules, Start, Work

A, B, SLICE = Device("a", 16), Device("b", 40), Device("b 1g.10gb", 10)
KINDS = [
    Machine(8_000, 64, (A,) * 2, {"zone": "1", "fabric": "x"}),
    Machine(8_000, 64, (A,) * 2, {"zone": "2", "fabric": "x"}),
    Machine(16_000, 128, (B,) * 4, {"zone": "1", "fabric": "y"}),
    Machine(16_000, 128, (B,) * 4, {"zone": "2", "fabric": "y"}),
    Machine(4_000, 32),
    Machine(8_000, 64, (SLICE,) * 3),
]
SHAPES = [
    Shape(1_000, 8, 1),
    Shape(2_000, 16, 2),
    Shape(4_000, 32, 4),
    Shape(500, 4, 1, 300, 5),
    Shape(500, 4, 1, 500),
    Shape(1_000, 8, 1, models=frozenset({"a"})),
    Shape(1_000, 8, 1, gpu_memory=20),
    Shape(2_000, 8),
    Shape(1_000, 8, 1, labels=frozenset({("zone", "1")})),
    Shape(0, 0, 9),
]
QUEUES = [
    (),
    (Queue("lab", quota=4), Queue("shop", quota=2, limit=6)),
    (Queue("lab", weight=2, limit=5), Queue("lab/x", quota=1), Queue("shop", order="las")),
    (Queue("lab", order="priority-preempt", quota=3), Queue("shop", order="easy")),
]


@dataclass
class Held:
    """A lease."""

    work: Work
    places: Places
    by: str = ""  # the work that it was asked to give way to


class World:
    """The truth, and a planner that is told of it."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.now = 1000 * HOUR
        self.all = {f"n{place}": random.choice(KINDS) for place in range(random.randint(1, 7))}
        self.machines = dict(self.all)
        self.queues = random.choice(QUEUES)
        min_run = random.choice([0, HOUR])
        self.rules = Rules(
            min_run, order=random.choice(sorted(ORDERS)), placement=random.choice(["gradient", "best-fit"])
        )
        self.usage = Usage()
        self.planner = Planner(self.machines, self.queues, self.rules, usage=self.usage)
        self.waiting: dict[str, Work] = {}
        self.running: dict[str, Held] = {}
        self.closed: set[str] = set()
        self.reservations: dict[str, Reservation] = {}
        self.counts: dict[Shape, int] = {}
        self.number = 0

    # --- what happens ---

    def step(self) -> None:
        self.now += self.random.choice([0, 1000, HOUR // 2, 3 * HOUR])
        happens = [self.submit] * 6 + [self.end] * 3 + [self.stopped] * 3
        happens += [self.cancel, self.cordon, self.node, self.reserve, self.settings, self.save]
        self.random.choice(happens)()
        if self.random.random() < 0.7:
            self.plan()

    def submit(self) -> None:
        random = self.random
        for _ in range(random.randint(1, 4)):
            self.number += 1
            latency = random.random() < 0.15
            nodes = 1 if latency else random.choice([1, 1, 1, 1, 2, 3, 0])
            shape = random.choice(SHAPES)
            work = Work(
                id=f"w{self.number}",
                number=self.number,
                submitted=self.now,
                since=self.now,
                duration=random.choice([None, HOUR, 5 * HOUR]),
                priority=random.randrange(3),
                queue=random.choice(["lab", "lab/x", "shop", ""]),
                deadline=random.choice([None, self.now + 6 * HOUR]),
                shape=shape if nodes else Shape(gpus=random.randint(1, 6)),
                nodes=nodes,
                tenant=random.choice("tu"),
                preemptible=not latency and random.random() < 0.8,
                latency=latency,
                avoid=random.choice(["", *self.all]),
                near=frozenset(random.sample(sorted(self.all), 1)),
                spread="zone" if latency else "",
                family=random.choice(["f", "g"]) if latency else "",
            )
            if latency:
                work.apart = self.siblings(work)
            self.wait(work)

    def siblings(self, work: Work) -> frozenset[str]:
        return frozenset(
            node for held in self.running.values() if held.work.family == work.family for node, _ in held.places
        )

    def wait(self, work: Work) -> None:
        self.waiting[work.id] = work
        self.planner.wait(work)

    def end(self) -> None:
        if self.running:
            self.leave(self.random.choice(sorted(self.running)))

    def leave(self, id: str) -> Work:
        held = self.running.pop(id)
        self.usage.change(held.work.queue, amounts(held.work.shape, held.work.nodes), self.now, -1)
        self.planner.leave(id)
        if held.work.family:
            self.meet(held.work.family)
        return held.work

    def meet(self, family: str) -> None:
        """The siblings of a replica hear where the others are."""
        for work in [work for work in self.waiting.values() if work.family == family]:
            changed = copy(work)
            changed.apart = self.siblings(work)
            self.wait(changed)

    def stopped(self) -> None:
        """Work that was asked to stop has stopped, and waits again."""
        leaving = [id for id, held in sorted(self.running.items()) if held.by]
        if leaving:
            work = self.leave(self.random.choice(leaving))
            back = copy(work)
            back.ran, back.waited = work.run_time(self.now), 0
            back.done += min(self.now - work.since, work.duration or LAST)
            back.since, back.gives_way, back.running = self.now, "", False
            self.wait(back)

    def cancel(self) -> None:
        if self.waiting:
            id = self.random.choice(sorted(self.waiting))
            del self.waiting[id]
            self.planner.leave(id)

    def cordon(self) -> None:
        name = self.random.choice(sorted(self.all))
        (self.closed.discard if name in self.closed else self.closed.add)(name)
        self.planner.close(name, name in self.closed)

    def node(self) -> None:
        """A node is lost with all that runs there, or joins."""
        name = self.random.choice(sorted(self.all))
        if name in self.machines:
            del self.machines[name]
            for id in [id for id, held in sorted(self.running.items()) if name in dict(held.places)]:
                self.leave(id)
        else:
            self.machines = {other: self.all[other] for other in self.all if other in self.machines or other == name}
        self.planner.set_machines(self.machines)

    def reserve(self) -> None:
        if self.reservations and self.random.random() < 0.6:
            name = self.random.choice(sorted(self.reservations))
            del self.reservations[name]
            self.planner.unreserve(name)
            return
        start = self.now + self.random.choice([0, 2 * HOUR])
        nodes = frozenset(self.random.sample(sorted(self.all), 1))
        whom = self.random.choice([{"queues": frozenset({"lab"})}, {"tenants": frozenset({"t"})}])
        end = self.random.choice([None, start + 4 * HOUR])
        made = Reservation(f"r{self.number}", nodes, start=start, end=end, **whom)  # type: ignore[arg-type]
        self.reservations[made.name] = made
        self.planner.reserve(made)

    def settings(self) -> None:
        if self.random.random() < 0.5:
            self.queues = self.random.choice(QUEUES)
            self.planner.set_queues(self.queues)
        else:
            self.counts = {shape: self.random.randint(1, 50) for shape in SHAPES}
            self.planner.learn(self.counts)

    def save(self) -> None:
        if self.running:
            id = self.random.choice(sorted(self.running))
            self.running[id].work.saved = self.now
            self.planner.saved(id, self.now)

    # --- plans ---

    def plan(self) -> None:
        limit = self.random.choice([1, 3, 256])
        made = self.planner.plan(self.now, limit=limit)
        self.check(made)
        assert told(made) == told(self.scratch().plan(self.now, limit=limit)), "incremental is not as from scratch"
        if self.random.random() < 0.3:
            self.explain(made, limit)
        if self.random.random() < 0.8:
            self.carry_out(made)

    def carry_out(self, made: Plan) -> None:
        for stop in made.stops:
            held = self.running[stop.work.id]
            victim = copy(stop.work)
            victim.gives_way = held.by = stop.by.id
            held.work = victim
            self.planner.run(victim, held.places)
            asks = copy(self.waiting[stop.by.id])
            asks.room |= {node for node, _ in held.places}
            self.wait(asks)
        for start in made.starts:
            if self.random.random() < 0.9:
                self.start(start)

    def start(self, start: Start) -> None:
        work = copy(self.waiting.pop(start.work.id)) if self.random.random() < 0.5 else self.waiting.pop(start.work.id)
        work.waited, work.since, work.room = self.now - work.since, self.now, frozenset()
        self.running[work.id] = Held(work, start.places)
        self.usage.change(work.queue, amounts(work.shape, work.nodes), self.now)
        self.planner.run(work, start.places)
        if work.family:
            self.meet(work.family)

    def scratch(self) -> Planner:
        """A planner that was told the same in another order."""
        made = Planner(self.machines, self.queues, self.rules, usage=self.usage)
        facts = [*self.waiting, *self.running, *self.closed, *self.reservations]
        self.random.shuffle(facts)
        for fact in facts:
            if fact in self.waiting:
                made.wait(copy(self.waiting[fact]))
            elif fact in self.running:
                made.run(copy(self.running[fact].work), self.running[fact].places)
            elif fact in self.reservations:
                made.reserve(self.reservations[fact])
            else:
                made.close(fact)
        made.learn(self.counts)
        return made

    # --- rules ---

    def check(self, made: Plan) -> None:
        ledger = Ledger(self)
        for held in self.running.values():
            ledger.take(held.work, held.places)
        for stop in made.stops:
            self.check_stop(stop.work, stop.by, stop.reason)
        for start in made.starts:
            self.check_start(start)
            ledger.take(start.work, start.places)
        assert ledger.keeps(), "over-committed"
        self.check_limits(made)
        self.check_order(made)

    def check_start(self, start: Start) -> None:
        work, places = start.work, start.places
        assert self.waiting[work.id] is work
        nodes = [node for node, _ in places]
        assert len(set(nodes)) == len(nodes)
        assert not self.closed.intersection(nodes)
        assert not work.apart.intersection(nodes)
        assert self.may_use(work, nodes)
        if work.nodes:
            assert len(nodes) == work.nodes and all(len(gpus) == work.shape.gpus for _, gpus in places)
        else:
            assert sum(len(gpus) for _, gpus in places) == work.shape.gpus

    def may_use(self, work: Work, nodes: list[str]) -> bool:
        for one in self.reservations.values():
            over = one.end is not None and one.end <= self.now
            admitted = work.tenant in one.tenants or any(above in one.queues for above in path(work.queue))
            if over or admitted or not one.nodes.intersection(nodes):
                continue
            left = work.remaining(self.now)
            ends = left is not None and self.now + left <= one.start
            if one.start <= self.now or not (work.preemptible or ends):
                return False
        return True

    def kept(self, work: Work, node: str) -> bool:
        """Whether the node is reserved for others, now or later: what ends before may fill the time until then."""
        return any(
            node in one.nodes
            and work.tenant not in one.tenants
            and one.queues.isdisjoint(path(work.queue))
            and (one.end is None or one.end > self.now)
            for one in self.reservations.values()
        )

    def check_stop(self, victim: Work, by: Work, reason: str) -> None:
        assert victim.preemptible and not victim.latency and not victim.gives_way and victim.running
        assert by.id in self.waiting
        if reason in ("rank", "priority"):
            assert victim.queue == by.queue
            assert reason == "rank" or victim.priority < by.priority
        if reason == "latency":
            assert by.latency
        if reason not in ("latency", "reservation"):
            assert self.now - victim.since >= self.rules.min_run

    def check_limits(self, made: Plan) -> None:
        limits = {queue.name: queue.limit for queue in self.queues if queue.limit is not None}
        for name, limit in limits.items():
            mine = [start.work for start in made.starts if name in path(start.work.queue) and start.work.gpu_milli]
            held = [held.work for held in self.running.values() if name in path(held.work.queue)]
            stopped = [stop.work for stop in made.stops if name in path(stop.work.queue)]
            if mine:
                used = sum(work.gpu_milli for work in [*mine, *held]) - sum(work.gpu_milli for work in stopped)
                assert used <= limit * 1000

    def check_order(self, made: Plan) -> None:
        """Nobody starts where a better-ranked one of its queue could, that asks for no more in any respect."""
        started = {start.work.id for start in made.starts}
        makes_room = {stop.by.id for stop in made.stops}
        orders = {queue.name: queue.order for queue in self.queues}
        for start in made.starts:
            ours = start.work
            order = ORDERS[orders.get(ours.queue) or self.rules.order]()
            if ours.nodes != 1 or ours.room or order.narrows:
                continue
            node = start.places[0][0]
            for other in self.waiting.values():
                if other.queue != ours.queue or other.id in started | makes_room or other.nodes != 1:
                    continue
                if order.rank(other, self.now) < order.rank(ours, self.now) and no_more(other, ours, self.now):
                    usable = node not in other.apart and not other.family and not self.kept(other, node)
                    assert not (usable and suits(other.shape, self.machines[node])), f"{other.id} before {ours.id}"

    def could_ever_run(self, work: Work) -> bool:
        limits = [queue.limit for queue in self.queues if queue.limit is not None and queue.name in path(work.queue)]
        if any(work.gpu_milli > limit * 1000 for limit in limits) and work.gpu_milli:
            return False
        if not work.nodes:
            return sum(len(machine.devices) for machine in self.machines.values()) >= work.shape.gpus
        held = [
            name for name, machine in self.machines.items() if holds(work.shape, machine) and name not in work.apart
        ]
        return len(held) >= work.nodes

    def explain(self, made: Plan, limit: int) -> None:
        for id in self.random.sample(sorted(self.waiting), min(4, len(self.waiting))):
            verdict = self.planner.why(id, self.now)
            assert verdict.starts_on or verdict.preempts or verdict.causes
            assert all(cause.message for cause in verdict.causes)
            known = self.waiting.keys() | self.running.keys()
            assert known >= {*verdict.held_by, *verdict.preempts, *verdict.would_run}
            assert verdict.earliest is None or verdict.earliest >= self.now
            if any(start.work.id == id for start in made.starts):
                assert verdict.starts_on
        assert told(self.planner.plan(self.now, limit=limit)) == told(made), "to ask why changed the plan"


class Ledger:
    """What is leased, in plain integers."""

    def __init__(self, world: World) -> None:
        self.machines = world.machines
        self.cpus = {name: machine.cpus for name, machine in world.machines.items()}
        self.memory = {name: machine.memory for name, machine in world.machines.items()}
        self.milli = {name: [1000] * len(machine.devices) for name, machine in world.machines.items()}
        self.sizes = {name: [device.memory for device in machine.devices] for name, machine in world.machines.items()}

    def take(self, work: Work, places: Places) -> None:
        for name, gpus in places:
            shape = work.shape if work.nodes else Shape(gpus=len(gpus))
            self.cpus[name] -= shape.cpus
            self.memory[name] -= shape.memory
            assert shape.labels <= set(self.machines[name].labels.items())
            assert len(set(gpus)) == len(gpus)
            for gpu in gpus:
                self.milli[name][gpu] -= shape.milli
                self.sizes[name][gpu] -= shape.gpu_memory
                assert shape.suits(self.machines[name].devices[gpu])

    def keeps(self) -> bool:
        numbers = [*self.cpus.values(), *self.memory.values()]
        return min([0, *numbers, *(m for ms in (*self.milli.values(), *self.sizes.values()) for m in ms)]) == 0


def path(queue: str) -> list[str]:
    parts = queue.split("/") if queue else []
    return ["/".join(parts[:count]) for count in range(len(parts) + 1)]


def suits(shape: Shape, machine: Machine) -> bool:
    enough = sum(map(shape.suits, machine.devices)) >= shape.gpus
    return enough and shape.labels <= set(machine.labels.items())


def holds(shape: Shape, machine: Machine) -> bool:
    return suits(shape, machine) and shape.cpus <= machine.cpus and shape.memory <= machine.memory


def no_more(one: Work, other: Work, now: int) -> bool:
    """Whether `one` could be wherever `other` is, and as long."""
    mine, its = one.shape, other.shape
    if other.duration is not None and (one.remaining(now) or LAST) > (other.remaining(now) or 0):
        return False
    sizes = [
        (shape.cpus, shape.memory, shape.gpus, shape.milli * min(1, shape.gpus), shape.gpu_memory)
        for shape in (mine, its)
    ]
    wider = not mine.models or (bool(its.models) and its.models <= mine.models)
    return all(a <= b for a, b in zip(*sizes, strict=True)) and (wider or not mine.gpus)


def told(made: Plan) -> tuple[object, ...]:
    starts = [(start.work.id, start.places) for start in made.starts]
    return starts, [(stop.work.id, stop.by.id, stop.reason) for stop in made.stops], made.more


def drain(world: World) -> None:
    """Nothing more is submitted, and what runs ends: everything that some node could hold has its turn."""
    for name in sorted(world.closed):
        world.planner.close(name, False)
    for name in sorted(world.reservations):
        world.planner.unreserve(name)
    world.closed, world.reservations, world.machines = set(), {}, dict(world.all)
    world.planner.set_machines(world.machines)
    for _ in range(1000):
        world.now += 2 * HOUR
        made = world.planner.plan(world.now)
        world.check(made)
        if not world.running and not made.starts:
            break
        for stop in made.stops:
            world.waiting[stop.by.id].room |= {node for node, _ in world.running[stop.work.id].places}
            world.wait(world.waiting[stop.by.id])
            world.running[stop.work.id].by = stop.by.id
        for start in made.starts:
            world.start(start)
        leaving = [id for id, held in sorted(world.running.items()) if held.by]
        for _ in leaving:
            world.stopped()
        if world.running:
            world.leave(min(world.running, key=lambda id: (world.running[id].work.since, id)))
    for work in world.waiting.values():
        assert not world.could_ever_run(work), f"{work.id} never started"


def history(seed: int, steps: int = 60) -> None:
    """One history, and its end."""
    world = World(seed)
    for _ in range(steps):
        world.step()
    drain(world)
