"""What a gateway is told."""

from llmos.service import ServiceConfig


class GatewayConfig(ServiceConfig, frozen=True, kw_only=True):
    """`http_port` 0 takes a free one. `http_hosts` are the names that requests may come for; empty means any name,
    or this machine's names when `http_host` is a loopback address (a web page must not reach a local stack by
    pointing its own name here). Sizes in bytes, times in seconds.
    """

    http_host: str = "127.0.0.1"
    http_port: int = 8080
    http_hosts: list[str] = []
    max_body: int = 512 * 1024
    admit_within_s: float = 2.0
    infer_within_s: float = 10.0
    keep_alive_s: float = 15.0
