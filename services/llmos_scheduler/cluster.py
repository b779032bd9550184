"""A cluster as arrays: what nodes have free, which of them a request fits, leases taken and given back.

`Cluster.fitting` is the only statement of what fits: planners ask it, and `Cluster.take` refuses what it denies.
cpus are in thousandths of a cpu; memory is in any one integer unit that the caller keeps (bytes, MiB); a whole GPU
(or MIG slice) is 1000 milli. Nodes are numbered in the order in which they were given: that order breaks ties.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llmos.errors import Rejected

Ints: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Rows: TypeAlias = "Ints | slice"  # numbers of nodes, or all of them

WHOLE = 1000  # milli-GPU of a device
ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU or MIG slice; memory 0 if it is not known."""

    model: str
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware of a node when nothing is leased."""

    cpus: int
    memory: int
    devices: tuple[Device, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a task asks for. Tasks of one shape are alike to placement.

    `gpus` devices of `milli` each: whole ones (1000), or a single shared one (1 to 999); `gpu_memory` of each.
    `models` are the GPU models that will do (none: any), `labels` what the node must carry.
    Raises `Rejected` for what no node could hold.
    """

    cpus: int = 0
    memory: int = 0
    gpus: int = 0
    milli: int = WHOLE
    gpu_memory: int = 0
    models: frozenset[str] = frozenset()
    labels: frozenset[tuple[str, str]] = frozenset()

    def __post_init__(self) -> None:
        if min(self.cpus, self.memory, self.gpus, self.gpu_memory) < 0:
            raise Rejected("amounts of hardware can't be negative")
        if self.gpus and not 1 <= self.milli <= WHOLE:
            raise Rejected(f"{self.milli} milli of a GPU lies outside 1 to {WHOLE}")
        if self.gpus > 1 and self.milli != WHOLE:
            raise Rejected(
                "several GPUs can only be asked for whole", remedy="Ask for one shared GPU, or for whole ones"
            )

    @property
    def demand(self) -> int:
        """milli-GPU in all."""
        return self.gpus * self.milli if self.gpus else 0

    def suits(self, device: Device) -> bool:
        """Whether the device is of an allowed model and large enough."""
        return (not self.models or device.model in self.models) and device.memory >= self.gpu_memory


class Cluster:
    """What is free now. `changes` lists the nodes that leases changed, in order: who caches keeps a position in it.

    Arrays, a row a node: `cpus`, `memory`; a column a device: `milli`, `gpu_memory` (0 where there is no device);
    `kind` is the index of the node's hardware (labels aside) in `kinds`; `types` are the different devices.
    """

    def __init__(self, machines: Iterable[Machine]) -> None:
        self.machines = list(machines)
        count = len(self.machines)
        self.width = max((len(machine.devices) for machine in self.machines), default=0)
        self.cpus: Ints = np.array([machine.cpus for machine in self.machines], dtype=np.int64)
        self.memory: Ints = np.array([machine.memory for machine in self.machines], dtype=np.int64)
        self.milli: Ints = np.zeros((count, self.width), dtype=np.int64)
        self.gpu_memory: Ints = np.zeros((count, self.width), dtype=np.int64)
        self.open: Mask = np.ones(count, dtype=np.bool_)
        self.changes: list[int] = []
        devices = {device for machine in self.machines for device in machine.devices}
        self.types = sorted(devices, key=lambda device: (device.model, device.memory))
        known: dict[tuple[int, int, tuple[Device, ...]], int] = {}
        kinds = [
            known.setdefault((machine.cpus, machine.memory, machine.devices), len(known)) for machine in self.machines
        ]
        self.kind: Ints = np.array(kinds, dtype=np.int64)
        self.kinds = [Machine(*key) for key in known]
        number = {device: index for index, device in enumerate(self.types)}
        self.kind_types: Ints = np.full((len(known), self.width), -1, dtype=np.int64)  # -1: no device
        for row, machine in enumerate(self.kinds):
            self.kind_types[row, : len(machine.devices)] = [number[device] for device in machine.devices]
        for row, machine in enumerate(self.machines):
            self.milli[row, : len(machine.devices)] = WHOLE
            self.gpu_memory[row, : len(machine.devices)] = [device.memory for device in machine.devices]
        self.capacity = int(self.milli.sum())  # milli-GPU
        self._allowed: dict[tuple[frozenset[str], int], Mask] = {}
        self._labelled: dict[frozenset[tuple[str, str]], Mask] = {}

    def __len__(self) -> int:
        return len(self.machines)

    @property
    def allocated(self) -> int:
        """milli-GPU that are leased."""
        return self.capacity - int(self.milli.sum())

    def allowed(self, shape: Shape) -> Mask:
        """Which devices of each kind the shape could use if they were free."""
        key = shape.models, shape.gpu_memory
        mask = self._allowed.get(key)
        if mask is None:
            numbers = [number for number, device in enumerate(self.types) if shape.suits(device)]
            mask = self._allowed[key] = np.isin(self.kind_types, numbers)
        return mask

    def labelled(self, labels: frozenset[tuple[str, str]]) -> Mask:
        """Which nodes carry all of these labels."""
        mask = self._labelled.get(labels)
        if mask is None:
            carries = [all(machine.labels.get(key) == value for key, value in labels) for machine in self.machines]
            mask = self._labelled[labels] = np.array(carries, dtype=np.bool_)
        return mask

    def fitting(self, shape: Shape, rows: Rows = ALL) -> tuple[Mask, Mask]:
        """Which nodes of `rows` the shape fits now, and (a column a device) which devices could serve it."""
        fit: Mask = (self.cpus[rows] >= shape.cpus) & (self.memory[rows] >= shape.memory) & self.open[rows]
        if shape.labels:
            fit &= self.labelled(shape.labels)[rows]
        devices: Mask = self.milli[rows] >= shape.milli
        if not shape.gpus:
            return fit, devices
        devices &= self.allowed(shape)[self.kind[rows]]
        if shape.gpu_memory:
            devices &= self.gpu_memory[rows] >= shape.gpu_memory
        fit &= devices.any(axis=1) if shape.gpus == 1 else devices.sum(axis=1) >= shape.gpus
        return fit, devices

    def take(self, node: int, shape: Shape, gpus: Sequence[int]) -> None:
        """Lease these devices of the node. Raises `Rejected`, and changes nothing, if the node has not as much left."""
        fit, devices = self.fitting(shape, np.array([node]))
        able = set(np.flatnonzero(devices[0]).tolist())
        if not fit[0] or not len(gpus) == len(set(gpus)) == shape.gpus or not able.issuperset(gpus):
            raise Rejected(f"node {node} has not enough left for {shape} on GPUs {list(gpus)}")
        self.move(node, shape, gpus, -1)

    def give_back(self, node: int, shape: Shape, gpus: Sequence[int]) -> None:
        """End a lease that `take` made."""
        self.move(node, shape, gpus, 1)

    def move(self, node: int, shape: Shape, gpus: Sequence[int], sign: int) -> None:
        """Count a lease that is known to fit, or was given by others: nothing is checked."""
        self.cpus[node] += sign * shape.cpus
        self.memory[node] += sign * shape.memory
        for gpu in gpus:
            self.milli[node, gpu] += sign * shape.milli
            self.gpu_memory[node, gpu] += sign * shape.gpu_memory
        self.changes.append(node)

    def put(self, node: int, room: "Room") -> None:
        """Set what the node has free."""
        self.cpus[node], self.memory[node] = room.cpus, room.memory
        self.milli[node], self.gpu_memory[node] = room.milli, room.gpu_memory
        self.changes.append(node)

    def cordon(self, node: int, closed: bool = True) -> None:
        """Let nothing new on the node, or open it again; what runs there stays."""
        self.open[node] = not closed
        self.changes.append(node)


@dataclass(slots=True)
class Room:
    """What one node has free, in plain integers: to try things out. Lists have an item a device."""

    cpus: int
    memory: int
    milli: list[int]
    gpu_memory: list[int]

    @classmethod
    def of(cls, cluster: Cluster, node: int) -> "Room":
        return cls(
            int(cluster.cpus[node]),
            int(cluster.memory[node]),
            cluster.milli[node].tolist(),
            cluster.gpu_memory[node].tolist(),
        )

    def copy(self) -> "Room":
        return Room(self.cpus, self.memory, self.milli.copy(), self.gpu_memory.copy())

    def move(self, shape: Shape, gpus: Sequence[int], sign: int) -> None:
        """A lease ends (1) or begins (-1)."""
        self.cpus += sign * shape.cpus
        self.memory += sign * shape.memory
        for gpu in gpus:
            self.milli[gpu] += sign * shape.milli
            self.gpu_memory[gpu] += sign * shape.gpu_memory

    def least(self, other: "Room") -> "Room":
        """What both have, at least nothing."""
        return Room(
            max(0, min(self.cpus, other.cpus)),
            max(0, min(self.memory, other.memory)),
            [max(0, min(pair)) for pair in zip(self.milli, other.milli, strict=True)],
            [max(0, min(pair)) for pair in zip(self.gpu_memory, other.gpu_memory, strict=True)],
        )

    def devices(self, shape: Shape, able: Sequence[bool], first: Sequence[int] = ()) -> tuple[int, ...] | None:
        """GPUs for the shape: those of `first`, then the fullest that will do; `None` if it does not fit.

        `able`: which devices are of an allowed model and size (`Cluster.allowed`).
        """
        if self.cpus < shape.cpus or self.memory < shape.memory:
            return None
        if not shape.gpus:
            return ()
        found = [
            (gpu not in first, milli, memory, gpu)
            for gpu, (milli, memory, will) in enumerate(zip(self.milli, self.gpu_memory, able, strict=True))
            if will and milli >= shape.milli and memory >= shape.gpu_memory
        ]
        return tuple(sorted(gpu for *_, gpu in sorted(found)[: shape.gpus])) if len(found) >= shape.gpus else None
