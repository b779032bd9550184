"""Control groups as the kernel shows them, in trees on disk: v2, v1, both, none; on the host and inside a container."""

from pathlib import Path

import psutil
import pytest

from llmos_hw_agent.cgroup import Cgroup, Limits, Usage

GIB = 1 << 30
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
OTHER_MOUNTS = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n23 22 0:21 / /sys rw - sysfs sysfs rw\n"


def tree(root: Path, group: str, mounts: str, files: dict[str, str]) -> Cgroup:
    for path, text in {"proc/self/cgroup": group, "proc/self/mountinfo": OTHER_MOUNTS + mounts, **files}.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Cgroup(root)


def v1_mount(controllers: str, top: str = "/") -> str:
    return f"40 30 0:30 {top} /sys/fs/cgroup/{controllers} rw,nosuid - cgroup cgroup rw,{controllers}\n"


def test_a_v2_container_sees_its_limits_at_the_root_of_its_namespace(tmp_path: Path) -> None:
    cgroup = tree(tmp_path, "0::/\n", V2_MOUNT, {
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory.current": "1000\n",
        "sys/fs/cgroup/memory.stat": "anon 600\nfile 400\ninactive_file 300\n",
        "sys/fs/cgroup/cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
    })  # fmt: skip
    assert cgroup.limits() == Limits("v2", 1.5, 2 * GIB)
    assert cgroup.usage() == Usage(2.5, 700)


def test_the_tightest_limit_on_the_way_to_the_root_counts(tmp_path: Path) -> None:
    cgroup = tree(tmp_path, "0::/machine.slice/llmos.service/child\n", V2_MOUNT, {
        "sys/fs/cgroup/machine.slice/cpu.max": "100000 100000\n",
        "sys/fs/cgroup/machine.slice/memory.max": f"{8 * GIB}\n",
        "sys/fs/cgroup/machine.slice/llmos.service/cpu.max": "400000 100000\n",
        "sys/fs/cgroup/machine.slice/llmos.service/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/machine.slice/llmos.service/child/cpu.max": "max 100000\n",
        "sys/fs/cgroup/machine.slice/llmos.service/child/memory.max": "max\n",
    })  # fmt: skip
    assert cgroup.limits() == Limits("v2", 1.0, 4 * GIB)


@pytest.mark.parametrize("group", ["0::/\n", "0::/user.slice\n", "0::/../outside\n", "0::/gone\n"])
def test_a_v2_group_without_limits_or_outside_the_mount_limits_nothing(tmp_path: Path, group: str) -> None:
    cgroup = tree(tmp_path, group, V2_MOUNT, {
        "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
        "sys/fs/cgroup/user.slice/memory.max": "max\n",
    })  # fmt: skip
    assert cgroup.limits() == Limits("v2", None, None)


def test_a_v1_group_on_the_host_is_found_below_each_controller(tmp_path: Path) -> None:
    group = "5:memory:/jobs/a\n4:cpu,cpuacct:/jobs/a\n1:name=systemd:/init.scope\n"
    cgroup = tree(tmp_path, group, v1_mount("cpu,cpuacct") + v1_mount("memory"), {
        "sys/fs/cgroup/cpu,cpuacct/jobs/a/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu,cpuacct/jobs/a/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/jobs/a/cpuacct.usage": "3000000000\n",
        "sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/jobs/a/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/jobs/a/memory.usage_in_bytes": "500\n",
        "sys/fs/cgroup/memory/jobs/a/memory.stat": "cache 9\ntotal_inactive_file 100\n",
        "sys/fs/cgroup/memory/jobs/memory.limit_in_bytes": f"{GIB}\n",
    })  # fmt: skip
    assert cgroup.limits() == Limits("v1", 0.5, GIB)
    assert cgroup.usage() == Usage(3.0, 400)


def test_a_v1_container_whose_group_is_mounted_as_its_root_is_understood(tmp_path: Path) -> None:
    group = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n"
    mounts = v1_mount("cpu,cpuacct", "/docker/abc") + v1_mount("memory", "/docker/abc")
    cgroup = tree(tmp_path, group, mounts, {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}\n",
    })  # fmt: skip
    assert cgroup.limits() == Limits("v1", 2.0, 3 * GIB)
    assert cgroup.usage() == Usage(None, None)


def test_where_both_are_mounted_the_controllers_of_v1_count(tmp_path: Path) -> None:
    mounts = v1_mount("memory") + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    cgroup = tree(tmp_path, "4:memory:/a\n0::/a\n", mounts, {
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/unified/a/memory.max": "5\n",
    })  # fmt: skip
    assert cgroup.limits() == Limits("v1", None, GIB)


def test_a_machine_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert Cgroup(tmp_path).limits() == Limits("none", None, None)
    assert Cgroup(tmp_path).usage() == Usage(None, None)


@pytest.mark.parametrize("text", ["", "rubbish", "-1", "0 100000", "max"])
def test_a_file_that_says_nothing_limits_nothing(tmp_path: Path, text: str) -> None:
    cgroup = tree(tmp_path, "0::/\n", V2_MOUNT, {"sys/fs/cgroup/cpu.max": text, "sys/fs/cgroup/memory.max": "rubbish"})
    assert cgroup.limits() == Limits("v2", None, None)


def test_this_machine_is_read_without_an_error() -> None:
    cgroup = Cgroup()
    limits, usage = cgroup.limits(), cgroup.usage()
    assert limits.version in ("v1", "v2", "none")
    assert limits.cpus is None or limits.cpus > 0
    assert limits.memory is None or limits.memory > 0
    assert usage.memory is None or 0 <= usage.memory <= psutil.virtual_memory().total
