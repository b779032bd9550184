"""The load: shares of what limits the node, from its control group or from the machine."""

from pathlib import Path

from llmos_hw_agent.cgroup import Cgroup, Limits
from llmos_hw_agent.gpu import GpuLoad
from llmos_hw_agent.load import LoadMeter


class Hands:
    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


def group(root: Path, *, seconds: float, memory: int) -> None:
    for path, text in {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/cpu.max": "200000 100000\n",
        "sys/fs/cgroup/memory.max": "1000\n",
        "sys/fs/cgroup/memory.current": f"{memory}\n",
        "sys/fs/cgroup/memory.stat": "inactive_file 100\n",
        "sys/fs/cgroup/cpu.stat": f"usage_usec {int(seconds * 1e6)}\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_in_a_limited_group_the_load_is_its_share_of_the_limits(tmp_path: Path) -> None:
    hands = Hands()
    group(tmp_path, seconds=10.0, memory=350)
    cgroup = Cgroup(tmp_path)
    meter = LoadMeter(cgroup, cgroup.limits(), tmp_path, hands)
    assert meter.read()["memory"] == 0.25
    hands.at += 5.0
    group(tmp_path, seconds=15.0, memory=1200)  # 5 s of CPU in 5 s, of 2 CPUs
    load = meter.read([GpuLoad(0, 0.5, 0.25)])
    assert (load["cpu"], load["memory"], load["gpu0"], load["gpu0_memory"]) == (0.5, 1.0, 0.5, 0.25)
    assert load["disk_free"] > 0


def test_without_limits_the_load_is_the_machines(tmp_path: Path) -> None:
    meter = LoadMeter(Cgroup(tmp_path), Limits(), tmp_path, Hands())
    load = meter.read()
    assert 0 <= load["cpu"] <= 1
    assert 0 < load["memory"] < 1
