"""The audit service's settings."""

from llmos.service import ServiceConfig


class AuditConfig(ServiceConfig, frozen=True, kw_only=True):
    """Set by `LLMOS_<FIELD>` or the section `[audit]`.

    `origin` names the log for ever: `llmos/<node>` by default; give one that no other log has. `batch_s` is how long
    an entry may wait for others, in seconds: a longer wait writes less, a shorter one signs sooner.
    """

    origin: str = ""
    batch_s: float = 0.05

    @property
    def log_name(self) -> str:
        return self.origin or f"llmos/{self.node}"
