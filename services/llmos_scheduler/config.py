"""Settings of the scheduler: those of every service."""

from llmos.service import ServiceConfig


class SchedulerConfig(ServiceConfig, frozen=True, kw_only=True):
    """No settings of its own."""
