"""`python -m llmos_inferencer`: one inferencer, until SIGTERM or SIGINT."""

import sys

from llmos import service
from llmos_inferencer.config import InferencerConfig
from llmos_inferencer.service import serve


def main() -> int:
    """Run the service; the exit status."""
    return service.main("inferencer", InferencerConfig, serve)


if __name__ == "__main__":
    sys.exit(main())
