"""Where a replica's session runs: on the GPU that it leases, as CUDA numbers it here, else on the CPU."""

import re
from collections.abc import Sequence
from pathlib import Path

from llmos.errors import Rejected
from llmos_inferencer.state import Lease

_UUID = re.compile(r"^GPU UUID:\s*(\S+)", re.MULTILINE)


def device(lease: Lease, visible: str | None, root: Path = Path("/")) -> str:
    """`cpu` or `cuda:<number>`. `visible` is CUDA_VISIBLE_DEVICES, `None` when it is not set.

    Raises `Rejected` for more than one GPU, and for one that this process can't see.
    """
    if not lease.devices:
        return "cpu"
    if len(lease.devices) > 1:
        raise Rejected(
            f"a replica runs on one GPU, and it leases {len(lease.devices)}",
            remedy="Set deploy.resources.gpus to 1, and deploy.replicas to more.",
        )
    known, id = _known(root), lease.devices[0]
    seen = list(known) if visible is None else [_named(entry.strip(), known) for entry in visible.split(",")]
    if id not in seen:
        slice = id.startswith("MIG-")
        raise Rejected(
            f"this inferencer does not see the {'MIG slice' if slice else 'GPU'} {id}",
            remedy=f"Start an inferencer for it, with CUDA_VISIBLE_DEVICES={id}: a process sees one slice only."
            if slice
            else "Check CUDA_VISIBLE_DEVICES, and that the container is given the GPU.",
        )
    return f"cuda:{seen.index(id)}"


def _known(root: Path) -> Sequence[str]:
    """The ids of the driver's GPUs in the order of their bus, which is CUDA's (CUDA_DEVICE_ORDER=PCI_BUS_ID)."""
    found = []
    for file in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        try:
            text = file.read_text()
        except OSError:
            continue  # lost at this moment
        if uuid := _UUID.search(text):
            found.append(uuid[1])
    return found


def _named(entry: str, known: Sequence[str]) -> str:
    """The id that an entry of CUDA_VISIBLE_DEVICES stands for: a number, or an id or the beginning of one."""
    if entry.isdigit():
        return known[int(entry)] if int(entry) < len(known) else entry
    return next((id for id in known if entry and id.startswith(entry)), entry)
