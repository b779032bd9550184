"""How busy the node is: shares (0–1) of what it may use, read from a few small files at each heartbeat."""

from collections.abc import Sequence
from pathlib import Path

import psutil

from llmos.clock import Clock
from llmos_hw_agent.cgroup import Cgroup, Limits
from llmos_hw_agent.gpu import GpuLoad
from llmos_hw_agent.machine import disk_free


class LoadMeter:
    """Measures between two readings. A control group's own use counts where it is what limits the node."""

    def __init__(self, cgroup: Cgroup, limits: Limits, data_dir: Path, clock: Clock) -> None:
        self._cgroup = cgroup
        self._limits = limits
        self._data_dir = data_dir
        self._clock = clock
        self._last: tuple[float, float] | None = None
        psutil.cpu_percent(None)  # the first call only starts the count

    def read(self, gpus: Sequence[GpuLoad] = ()) -> dict[str, float]:
        """`cpu`, `memory`, `gpu<n>`, `gpu<n>_memory` as shares, `disk_free` in bytes."""
        load = {"cpu": self._cpu(), "memory": self._memory(), "disk_free": float(disk_free(self._data_dir))}
        for gpu in gpus:
            load[f"gpu{gpu.index}"] = gpu.utilisation
            load[f"gpu{gpu.index}_memory"] = gpu.memory
        return {name: round(value, 3) for name, value in load.items()}

    def _cpu(self) -> float:
        used = self._cgroup.usage().cpu if self._limits.cpus is not None else None
        if used is None or self._limits.cpus is None:
            return float(psutil.cpu_percent(None)) / 100
        now = self._clock.monotonic()
        last, self._last = self._last, (now, used)
        if last is None or now <= last[0]:
            return 0.0
        return min(1.0, (used - last[1]) / (now - last[0]) / self._limits.cpus)

    def _memory(self) -> float:
        used = self._cgroup.usage().memory if self._limits.memory is not None else None
        if used is None or self._limits.memory is None:
            memory = psutil.virtual_memory()
            return 1 - int(memory.available) / int(memory.total)
        return min(1.0, used / self._limits.memory)
