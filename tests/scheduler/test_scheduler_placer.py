"""Placement on a cluster: nothing is over-committed, ties go to the first, what is remembered changes no answer."""

from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.errors import Rejected
from llmos_scheduler.cluster import Cluster, Device, Machine, Shape
from llmos_scheduler.placer import Placement, Placer
from llmos_scheduler.ranking import RANKINGS, ranking

A, B = Device("a", 16), Device("b", 40)
MACHINES = [
    Machine(8_000, 64, (A,) * 2, {"zone": "1"}),
    Machine(16_000, 64, (B,) * 4),
    Machine(4_000, 32),
    Machine(8_000, 64, (A, B)),
    Machine(16_000, 128, (B,) * 4, {"zone": "1"}),
]
shapes = st.builds(
    lambda cpus, memory, gpus, gpu_memory, models, labels: Shape(
        cpus, memory, gpus[0], gpus[1], gpu_memory, models, labels
    ),
    st.sampled_from([0, 500, 2_000, 9_000]),
    st.sampled_from([0, 8, 60]),
    st.sampled_from([(0, 1000), (1, 1000), (2, 1000), (4, 1000), (1, 100), (1, 460), (1, 999)]),
    st.sampled_from([0, 0, 5, 20]),
    st.sampled_from([frozenset(), frozenset({"a"}), frozenset({"b"}), frozenset({"a", "b"})]),
    st.sampled_from([frozenset(), frozenset({("zone", "1")})]),
)


class Ledger:
    """Counts what is leased on its own, in plain integers, knowing nothing of `Cluster`."""

    def __init__(self) -> None:
        self.leases: list[tuple[Shape, Placement]] = []

    def fits(self, node: int, shape: Shape, gpus: tuple[int, ...]) -> bool:
        machine, here = MACHINES[node], [(s, p) for s, p in self.leases if p.node == node]
        if sum(s.cpus for s, _ in here) + shape.cpus > machine.cpus:
            return False
        if sum(s.memory for s, _ in here) + shape.memory > machine.memory:
            return False
        if not shape.labels <= set(machine.labels.items()) or len(set(gpus)) != shape.gpus:
            return False
        for gpu in gpus:
            device, there = machine.devices[gpu], [s for s, p in here if gpu in p.gpus]
            if sum(s.milli for s in there) + shape.milli > 1000:
                return False
            if sum(s.gpu_memory for s in there) + shape.gpu_memory > device.memory:
                return False
            if shape.models and device.model not in shape.models:
                return False
        return True

    def room(self, shape: Shape) -> bool:
        one = replace(shape, gpus=min(shape.gpus, 1))
        for node, machine in enumerate(MACHINES):
            able = sum(self.fits(node, one, (gpu,)) for gpu in range(len(machine.devices)))
            if (able >= shape.gpus) if shape.gpus else self.fits(node, shape, ()):
                return True
        return False


@pytest.mark.parametrize("policy", RANKINGS)
@settings(max_examples=60, deadline=None)
@given(wishes=st.lists(st.tuples(shapes, st.booleans()), max_size=50), seed=st.integers(0, 99))
def test_nothing_is_over_committed_and_what_fits_is_placed(
    policy: str, wishes: list[tuple[Shape, bool]], seed: int
) -> None:
    placer, ledger, random = Placer(Cluster(MACHINES), policy), Ledger(), Random(seed)
    for shape, end_one in wishes:
        placer.expect({shape: 1})
        placement = placer.place(shape)
        if placement is None:
            assert not ledger.room(shape)
        else:
            assert ledger.fits(placement.node, shape, placement.gpus)
            ledger.leases.append((shape, placement))
        if end_one and ledger.leases:
            placer.give_back(*ledger.leases.pop(random.randrange(len(ledger.leases))))
    while ledger.leases:
        placer.give_back(*ledger.leases.pop())
    assert placer.cluster.allocated == 0


@pytest.mark.parametrize("policy", RANKINGS)
def test_what_is_remembered_changes_no_answer(policy: str) -> None:
    random = Random(4)
    wanted = [Shape(random.choice([500, 1500]), 4, 1, random.choice([100, 300, 1000])) for _ in range(6)]
    placer = Placer(Cluster(MACHINES * 6), policy)
    leases: list[tuple[Shape, Placement]] = []
    history: list[Shape] = []
    for step in range(300):
        shape = random.choice(wanted)
        history.append(shape)
        placer.expect({shape: 1})
        fresh = ranking(policy, placer.cluster)  # knows only what is free now, and the same demand
        lesson = max((count for count in (16, 32, 64, 128, 256) if count <= len(history)), default=0)
        fresh.learn(Counter(history[:lesson]))
        costs = fresh.costs(shape)
        expected = int(costs.argmin())
        placement = placer.place(shape)
        if placement is None:
            assert costs.min() == np.iinfo(np.int32).max
        else:
            assert placement.node == expected
            leases.append((shape, placement))
        if step % 3 == 0 and leases:
            placer.give_back(*leases.pop(random.randrange(len(leases))))


def test_ties_go_to_the_first_node() -> None:
    for policy in RANKINGS:
        placer = Placer(Cluster([Machine(8_000, 64, (A,) * 2)] * 3), policy)
        placed = [placer.place(Shape(1_000, 1, 1)) for _ in range(6)]
        assert [p.node for p in placed if p] == [0, 0, 1, 1, 2, 2]


def test_a_shape_that_failed_is_placed_once_a_node_that_it_fits_is_freed() -> None:
    placer = Placer(Cluster([Machine(4_000, 64, (A,)), Machine(4_000, 64, (B,))]))
    only_a, only_b = (Shape(4_000, 1, 1, models=frozenset({model})) for model in "ab")
    on_a, on_b = placer.place(only_a), placer.place(only_b)
    waits = Shape(2_000, 1, 1, 500, models=frozenset({"b"}))
    assert on_a and on_b and placer.place(waits) is None
    placer.give_back(only_a, on_a)
    assert placer.place(waits) is None
    placer.give_back(only_b, on_b)
    assert placer.place(waits) == Placement(1, (0,))


def test_a_cordoned_node_takes_nothing_until_it_is_opened() -> None:
    placer = Placer(Cluster([Machine(4_000, 64)]))
    placer.cluster.cordon(0)
    assert placer.place(Shape(1)) is None
    placer.cluster.cordon(0, closed=False)
    placer.freed(0)
    assert placer.place(Shape(1)) == Placement(0, ())


def test_tasks_with_a_choice_leave_scarce_hardware_to_those_without() -> None:
    nodes = [Machine(32_000, 256, (A,) * 4)] * 4 + [Machine(32_000, 256, (B,) * 4)] * 4
    only_a, any_model = Shape(1_000, 8, 1, models=frozenset({"a"})), Shape(1_000, 8, 1)
    placer = Placer(Cluster(nodes))
    placer.expect({only_a: 16, any_model: 16})
    first = [placer.place(any_model) for _ in range(16)]
    assert {p.node for p in first if p} == {4, 5, 6, 7}
    assert all(placer.place(only_a) for _ in range(16))


def test_tasks_without_gpus_leave_the_cpus_that_gpus_need() -> None:
    """First fit would give the first node's cpus away and strand its GPUs."""
    placer = Placer(Cluster([Machine(16_000, 256, (A,) * 8), Machine(64_000, 256, (A,) * 2)]))
    placer.expect({Shape(2_000, 8, 1): 30, Shape(8_000, 8): 2})
    placed = placer.place(Shape(8_000, 8))
    assert placed is not None and placed.node == 1


@pytest.mark.parametrize(("gpus", "milli", "cpus"), [(2, 500, 0), (1, 0, 0), (1, 1001, 0), (0, 1000, -1)])
def test_impossible_requests_are_refused(gpus: int, milli: int, cpus: int) -> None:
    with pytest.raises(Rejected):
        Shape(cpus, 0, gpus, milli)


def test_a_lease_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    cluster = Cluster(MACHINES)
    cluster.take(0, Shape(1_000, 8, 1, 600), [1])
    for shape, gpus in [
        (Shape(0, 0, 1, 500), [1]),
        (Shape(0, 0, 1), [0, 1]),
        (Shape(0, 0, 1, 100), [0, 0]),
        (Shape(7_500), []),
        (Shape(0, 0, 1, 100), [-1]),
    ]:
        with pytest.raises(Rejected):
            cluster.take(0, shape, gpus)
    assert cluster.allocated == 600 and len(cluster.changes) == 1
