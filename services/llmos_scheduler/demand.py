"""What a node is worth: how much of its free GPUs the typical task could use. Placement loses little of it.

After Weng et al., 'Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent'
(USENIX ATC 2023): a free GPU is a fragment for every task that could not use it, and a node's fragmentation is the mean
over the tasks of the workload. As what is free falls by the same amount wherever a task goes, to add the least
fragmentation is to lose the least usable capacity. Ours is coarse: cpus in 32 steps and GPUs in steps of 20 milli, so
that a node is a few look-ups in a table. Two things are added:

- GPUs that a node's cpus or memory would not last for, if all of it went to tasks of average proportions, are stranded.
  The paper only asks whether *one* task still fits.
- A price for scarce hardware: of tasks that fit some kinds of nodes only (GPU models, GPUs per node, cpus, memory), how
  much would come to each kind. Tasks with a choice leave it to them.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llmos_scheduler.cluster import WHOLE, Cluster, Ints, Mask, Shape

Floats: TypeAlias = npt.NDArray[np.float64]

STEP = 20  # milli
STEPS = WHOLE // STEP + 1
LEVELS = 32  # of cpus
SCALE = 16  # worth is counted in sixteenths of a milli-GPU
STRANDED = 0.5  # how much a stranded GPU counts against one that fits nothing at once
SCARCITY = 1.0  # how much hardware that restricted tasks would fill counts against GPUs that are lost


class Demand:
    """The tasks to expect, as tables over one cluster's hardware. `counts`: how many of each shape were asked for."""

    def __init__(self, cluster: Cluster, counts: Mapping[Shape, int]) -> None:
        wanted = [(shape, count) for shape, count in counts.items() if shape.gpus and count > 0]
        tasks = sum(count for _, count in wanted)
        gpus = sum(count * shape.demand for shape, count in wanted) / WHOLE
        self.known = bool(wanted) and cluster.capacity > 0
        self._width = cluster.width + 1
        cpus = np.repeat([shape.cpus for shape, _ in wanted], [count for _, count in wanted]) if wanted else np.zeros(1)
        self._levels: Ints = np.unique(np.quantile(cpus, np.linspace(0, 1, LEVELS), method="higher")).astype(np.int64)
        levels = len(self._levels) + 1
        types = max(1, len(cluster.types))
        single = np.zeros((types, levels, STEPS))
        several = np.zeros((types, levels, self._width))
        for shape, count in wanted:
            level = min(int(np.searchsorted(self._levels, shape.cpus)) + 1, levels - 1)
            for type, device in enumerate(cluster.types):
                if not shape.suits(device):
                    continue
                if shape.gpus == 1:
                    single[type, level, -(-shape.milli // STEP)] += count
                elif shape.gpus < self._width:
                    several[type, level, shape.gpus] += count
        share = SCALE / max(tasks, 1)
        usable = single.cumsum(axis=1).cumsum(axis=2) * (np.arange(STEPS) * STEP * share)
        gangs = several.cumsum(axis=1).cumsum(axis=2) * (np.arange(self._width) * WHOLE * share)
        self._usable: Ints = np.rint(usable).astype(np.int64).ravel()  # by type, level, free milli of one device
        self._gangs: Ints = np.rint(gangs).astype(np.int64).ravel()  # by type, level, whole devices free
        present = np.maximum(cluster.kind_types, 0)
        self._device_base: Ints = present * (levels * STEPS)
        first = present[:, 0] if cluster.width else np.zeros(len(present), dtype=np.int64)
        self._gang_base: Ints = first * (levels * self._width)
        self._whole_base: Ints = first * (levels * STEPS) + STEPS - 1
        self._gpus_per_cpu = WHOLE * gpus / max(1, sum(shape.cpus * count for shape, count in counts.items()))
        self._gpus_per_memory = WHOLE * gpus / max(1, sum(shape.memory * count for shape, count in counts.items()))
        self.price: Floats = self._scarcity(cluster, wanted) * SCARCITY

    @staticmethod
    def _scarcity(cluster: Cluster, wanted: list[tuple[Shape, int]]) -> Floats:
        """Of each kind, the share that tasks which do not fit every kind would take if demand equalled capacity."""
        price = np.zeros(len(cluster.kinds))
        total = sum(count * shape.demand for shape, count in wanted)
        if not total:
            return price
        cpus = np.array([machine.cpus for machine in cluster.kinds])
        memory = np.array([machine.memory for machine in cluster.kinds])
        has = np.array([len(machine.devices) for machine in cluster.kinds]) > 0
        nodes = np.bincount(cluster.kind, minlength=len(cluster.kinds))
        capacity = nodes * np.array([len(machine.devices) * WHOLE for machine in cluster.kinds])
        for shape, count in wanted:
            fits = (cpus >= shape.cpus) & (memory >= shape.memory)
            fits &= cluster.allowed(shape).sum(axis=1) >= shape.gpus
            if fits.any() and not fits[has].all():
                price[fits] += count * shape.demand / total * cluster.capacity / int(capacity[fits].sum())
        return price

    def worth(self, kind: Ints, cpus: Ints, memory: Ints, milli: Ints) -> Floats:
        """What nodes with this much free are worth, in sixteenths of a milli-GPU; a row a node."""
        level = np.searchsorted(self._levels, cpus, side="right")
        devices = self._usable.take(self._device_base[kind] + (level * STEPS)[:, None] + milli // STEP)
        whole = (milli == WHOLE).sum(axis=1)
        gangs = self._gangs.take(self._gang_base[kind] + level * self._width + whole)
        worth: Floats = devices.sum(axis=1) + gangs - self._stranded(cpus, memory, milli.sum(axis=1))
        return worth

    def worth_after(
        self, shape: Shape, kind: Ints, cpus: Ints, memory: Ints, milli: Ints, devices: Mask
    ) -> tuple[Floats, Ints]:
        """What the nodes would be worth with the shape on them, and the device that a shared GPU comes from.

        `devices` are those that could serve it; rows that it does not fit mean nothing.
        """
        cpus, memory = cpus - shape.cpus, memory - shape.memory
        level = np.searchsorted(self._levels, cpus, side="right")
        base = self._device_base[kind] + (level * STEPS)[:, None]
        usable = self._usable.take(base + milli // STEP)
        worth = usable.sum(axis=1)
        whole = (milli == WHOLE).sum(axis=1)
        chosen = np.zeros(len(cpus), dtype=np.int64)
        if shape.gpus and shape.milli < WHOLE:
            left = self._usable.take(base + np.maximum(milli - shape.milli, 0) // STEP)
            gain = np.where(devices, left - usable, -(1 << 40))
            chosen = gain.argmax(axis=1)
            here = np.arange(len(cpus))
            worth += gain[here, chosen]
            whole -= milli[here, chosen] == WHOLE
        elif shape.gpus:
            worth -= shape.gpus * self._usable.take(self._whole_base[kind] + level * STEPS)
            whole = whole - shape.gpus
        gangs = self._gangs.take(self._gang_base[kind] + level * self._width + np.maximum(whole, 0))
        return worth + gangs - self._stranded(cpus, memory, milli.sum(axis=1) - shape.demand), chosen

    def _stranded(self, cpus: Ints, memory: Ints, milli: Ints) -> Floats:
        """GPUs that the node's cpus or memory would not last for, at the average task's proportions."""
        lasts = np.minimum(cpus * self._gpus_per_cpu, memory * self._gpus_per_memory)
        stranded: Floats = np.maximum(milli - lasts, 0.0) * (STRANDED * SCALE)
        return stranded
