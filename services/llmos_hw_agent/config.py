"""The hw-agent's settings."""

import re

from llmos.errors import Fatal
from llmos.service import ServiceConfig

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class HwAgentConfig(ServiceConfig, frozen=True, kw_only=True):
    """Set by `LLMOS_<FIELD>` or the section `[hw_agent]`.

    `labels` reads `zone=a,rack=3`. `cpus` and `memory` say what the node offers where the agent can't see it (it runs
    in a container of its own); 0 and empty: as measured. `inventory_s`: how often the hardware is looked at.
    """

    labels: dict[str, str] = {}
    cpus: float = 0.0
    memory: str = ""
    inventory_s: float = 30.0

    def memory_bytes(self) -> int:
        """`memory` in bytes, 0 when it is not set. Raises `Fatal` for text that is no size."""
        if not self.memory:
            return 0
        match = _SIZE.fullmatch(self.memory.strip())
        if match is None:
            raise Fatal(f"LLMOS_MEMORY={self.memory!r} is no size", remedy="Write bytes, or text such as 6GiB.")
        unit = (match[2] or "").lower()
        return int(float(match[1]) * (1024 if unit.endswith("i") else 1000) ** _POWERS[unit[:1]])
