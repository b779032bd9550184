"""Settings of the exporter."""

from llmos.service import ServiceConfig


class ExporterConfig(ServiceConfig, frozen=True, kw_only=True):
    """What an exporter is told beside `ServiceConfig`.

    `exports_at_once` bounds the child processes; what they may use is leased by the scheduler. An export that takes
    longer than `export_limit_s` seconds is ended, and may be tried again.
    """

    exports_at_once: int = 4
    export_limit_s: float = 1800.0
