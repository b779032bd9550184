"""The hw-agent's settings."""

from llmos.service import ServiceConfig
from llmos.sizes import parse_setting


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
        return parse_setting(self.memory, "memory") if self.memory else 0
