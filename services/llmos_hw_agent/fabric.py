"""The fast network that a node hangs on, as a label: members of a gang go to nodes of one fabric first.

An NVLink domain spans the nodes of one rack and counts before InfiniBand, which is known by the prefix of its subnet.
Subnets that were left at the default prefix look alike: then the label is to be set by hand (LLMOS_LABELS).
"""

import ctypes
from pathlib import Path
from typing import Any

_ACTIVE = "4:"  # of ports/<n>/state: 4: ACTIVE


def infiniband(root: Path) -> str:
    """`ib-<subnet prefix>` of the first active InfiniBand port by name; empty without one (Ethernet ports are none)."""
    for port in sorted(root.glob("sys/class/infiniband/*/ports/*")):
        try:
            link, state = ((port / name).read_text().strip() for name in ("link_layer", "state"))
            prefix = "".join((port / "gids" / "0").read_text().strip().split(":")[:4])
        except OSError:
            continue  # a device that is being taken away
        if link == "InfiniBand" and state.startswith(_ACTIVE) and prefix:
            return f"ib-{prefix}"
    return ""


def nvlink_domain(nvml: Any, count: int) -> str:
    """`nvlink-<cluster>.<clique>` if all `count` GPUs belong to one NVLink domain, else empty; no error of NVML's."""
    domains = set()
    for index in range(count):
        try:
            info = nvml.c_nvmlGpuFabricInfo_t()
            nvml.nvmlDeviceGetGpuFabricInfo(nvml.nvmlDeviceGetHandleByIndex(index), ctypes.byref(info))
        except nvml.NVMLError:
            return ""  # no such fabric, or a driver that does not know of it
        cluster = bytes(info.clusterUuid)
        joined = info.state == nvml.NVML_GPU_FABRIC_STATE_COMPLETED and info.status == nvml.NVML_SUCCESS
        if not joined or not any(cluster):
            return ""
        domains.add(f"nvlink-{cluster[:4].hex()}.{info.cliqueId}")
    return domains.pop() if len(domains) == 1 else ""
