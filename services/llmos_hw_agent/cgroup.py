"""What the control group of this process may use, and uses: cgroup v2, v1, both at once, or none.

Readers take the root of the file system, so that a test can hand in a tree of its own. A controller's group is found
as the JVM and Go's automaxprocs do: its path from /proc/self/cgroup, below the mount that /proc/self/mountinfo names.
"""

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

_UNLIMITED = 1 << 60  # v1 writes "no limit" as a huge number of bytes


class Limits(Struct, frozen=True):
    """The tightest limits on the way to the root; memory in bytes, `None`: no limit. `version` is v1, v2 or none."""

    version: str = "none"
    cpus: float | None = None
    memory: int | None = None


class Usage(Struct, frozen=True):
    """CPU time used so far in seconds, and memory in bytes without the cache that can be dropped; `None`: unknown."""

    cpu: float | None = None
    memory: int | None = None


class Cgroup:
    """The control group of this process. Finding it reads two files; reading limits or usage a handful."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._v1: dict[str, list[Path]] = {}  # controller → its group's folder, then its parents' up to the mount
        self._v2: list[Path] = []
        try:
            paths = _paths((root / "proc/self/cgroup").read_text())
            mounts = list(_mounts((root / "proc/self/mountinfo").read_text()))
        except OSError:
            return
        for kind, controllers, top, point in mounts:
            if kind == "cgroup2" and "" in paths:
                self._v2 = _folders(root, point, top, paths[""])
            for controller in controllers if kind == "cgroup" else ():
                if controller in paths:
                    self._v1[controller] = _folders(root, point, top, paths[controller])

    @property
    def version(self) -> str:
        if any(controller in self._v1 for controller in ("cpu", "memory")):
            return "v1"
        return "v2" if self._v2 else "none"

    def limits(self) -> Limits:
        """The limits now; a group that can't be read limits nothing."""
        if self.version == "v1":
            folders = self._of("cpu")
            cpus = [_quota(_number(at / "cpu.cfs_quota_us"), _number(at / "cpu.cfs_period_us")) for at in folders]
            memory = [_number(at / "memory.limit_in_bytes") for at in self._of("memory")]
        else:
            cpus = [_cpu_max(_read(at / "cpu.max")) for at in self._v2]
            memory = [_number(at / "memory.max") for at in self._v2]
        return Limits(
            self.version,
            min((limit for limit in cpus if limit is not None), default=None),
            min((limit for limit in memory if limit is not None and limit < _UNLIMITED), default=None),
        )

    def usage(self) -> Usage:
        """What the group has used of its tightest memory limit's group, and of CPU time."""
        if self.version == "v1":
            nanoseconds = _first(_number(at / "cpuacct.usage") for at in self._of("cpuacct"))
            used = _first(_number(at / "memory.usage_in_bytes") for at in self._of("memory"))
            cache = _first(_field(at / "memory.stat", "total_inactive_file") for at in self._of("memory"))
            cpu = nanoseconds / 1e9 if nanoseconds is not None else None
        else:
            microseconds = _first(_field(at / "cpu.stat", "usage_usec") for at in self._v2)
            used = _first(_number(at / "memory.current") for at in self._v2)
            cache = _first(_field(at / "memory.stat", "inactive_file") for at in self._v2)
            cpu = microseconds / 1e6 if microseconds is not None else None
        return Usage(cpu, max(0, used - (cache or 0)) if used is not None else None)

    def _of(self, controller: str) -> list[Path]:
        return self._v1.get(controller, [])


def _paths(text: str) -> dict[str, str]:
    """Controller → path of /proc/self/cgroup; the empty controller is v2's."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _mounts(text: str) -> Iterator[tuple[str, list[str], str, str]]:
    """File system, its options, the mounted part of it, and where: the cgroup lines of /proc/self/mountinfo."""
    for line in text.splitlines():
        mount, _, source = line.partition(" - ")
        left, right = mount.split(" "), source.split(" ")
        if right[0] in ("cgroup", "cgroup2"):
            yield right[0], right[-1].split(","), left[3], left[4]


def _folders(root: Path, point: str, top: str, path: str) -> list[Path]:
    """The group's folder and its parents up to the mount; only the mount for a path that lies outside it."""
    mount = root / point.lstrip("/")
    inside = path.removeprefix(top.rstrip("/")) if path.startswith(top.rstrip("/")) else ""
    parts = [part for part in inside.split("/") if part]
    folder = mount.joinpath(*parts)
    if ".." in parts or not folder.is_dir():
        return [mount]
    return [folder, *(parent for parent in folder.parents if parent == mount or mount in parent.parents)]


def _quota(quota: int | None, period: int | None) -> float | None:
    return quota / period if quota and period and quota > 0 else None


def _cpu_max(text: str) -> float | None:
    quota, _, period = text.partition(" ")
    return _quota(int(quota), int(period or 100_000)) if quota.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.removeprefix("-").isdecimal() else None


def _field(path: Path, name: str) -> int | None:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return None


def _first(values: Iterator[int | None]) -> int | None:
    return next((value for value in values if value is not None), None)
