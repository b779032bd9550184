"""Settings of the trainer."""

from pathlib import Path

import msgspec

from llmos.service import ServiceConfig


class TrainerConfig(ServiceConfig, frozen=True, kw_only=True):
    """What a trainer is told beside `ServiceConfig`.

    `file_roots` (LLMOS_FILE_ROOTS, separated by colons) are the directories from which `file://` references may be
    read. `checkpoint_every_s` is the time between two checkpoints within an epoch, in seconds. `address`
    (LLMOS_ADDRESS) is where the other nodes of a gang reach this one; empty: the address from which it reaches the bus.
    """

    file_roots: list[Path] = msgspec.field(default_factory=list)
    checkpoint_every_s: float = 30.0
    address: str = ""
