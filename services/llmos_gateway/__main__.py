"""`python -m llmos_gateway`: one gateway, until SIGTERM or SIGINT."""

import sys

from llmos import service
from llmos_gateway.config import GatewayConfig
from llmos_gateway.service import serve


def main() -> int:
    """Run the service; the exit status."""
    return service.main("gateway", GatewayConfig, serve)


if __name__ == "__main__":
    sys.exit(main())
