"""The machine below the control groups: processors, memory, disk, and their names."""

import os
import platform
import shutil
from pathlib import Path

import psutil
from msgspec import Struct


class Machine(Struct, frozen=True):
    """What this process sees of its machine. `cpus` is what it may run on (affinity); memory and disk are bytes."""

    cpus: int
    memory: int
    cpu_model: str
    architecture: str
    os: str


def read_machine(root: Path = Path("/")) -> Machine:
    """Read it. `root` is the root of the file system (for /proc/cpuinfo and /etc/os-release)."""
    return Machine(
        cpus=_allowed_cpus(),
        memory=int(psutil.virtual_memory().total),
        cpu_model=_cpu_model(root),
        architecture=platform.machine(),
        os=_os_name(root),
    )


def disk_free(path: Path) -> int:
    """Bytes that may still be written below `path` by this user; 0 when there is no such place."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0


def _allowed_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model(root: Path) -> str:
    try:
        with (root / "proc/cpuinfo").open() as lines:  # one line of hundreds is wanted: stop there
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in ("model name", "Model", "cpu model"):
                    return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor()


def _os_name(root: Path) -> str:
    try:
        for line in (root / "etc/os-release").read_text().splitlines():
            if line.startswith("PRETTY_NAME="):
                return line.removeprefix("PRETTY_NAME=").strip('"')
    except OSError:
        pass  # not Linux
    return f"{platform.system()} {platform.release()}"
