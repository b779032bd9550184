"""What an inferencer is told, and what it finds out about the machine when it is told nothing."""

import os
from pathlib import Path

from llmos.service import ServiceConfig
from llmos.sizes import parse_setting

SHARE_OF_MEMORY = 0.75


class InferencerConfig(ServiceConfig, frozen=True, kw_only=True):
    """Set by `LLMOS_<FIELD>`. Sizes are bytes or text such as `2GiB`.

    `memory` is the budget of all loaded models together (`0`: no limit); empty: three quarters of what the cgroup
    or the machine has. `trusted_keys` is a trust file of the vault's public keys (empty: ask the vault once and
    pin its answer). `serve_threads` is how many threads compute (0: every core that this process may use),
    `serve_slots` how many requests of a class a deployment holds at a time, `max_inputs` how many texts a request
    may carry, and `model_cache` how much disk staged models may take.
    """

    memory: str = ""
    trusted_keys: str = ""
    serve_threads: int = 0
    serve_slots: int = 64
    max_inputs: int = 1024
    model_cache: str = "20GiB"

    def memory_budget(self) -> int:
        """The budget of all loaded models in bytes."""
        return parse_setting(self.memory, "memory") if self.memory else int(memory_limit() * SHARE_OF_MEMORY)

    def cores(self) -> int:
        """How many threads compute."""
        return self.serve_threads or usable_cores()

    def state_dir(self) -> Path:
        """Where this service keeps pinned keys and staged models."""
        return self.data_dir.absolute() / "inferencer"


def usable_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that affinity and the cgroup's CPU quota leave to this process, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (root / "cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: affinity is all there is to know
    return max(1, cores)


def memory_limit(root: Path = Path("/sys/fs/cgroup")) -> int:
    """The memory in bytes that the cgroup, or else the machine, allows."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int((root / "memory.max").read_text()))
    except (OSError, ValueError):
        return machine
