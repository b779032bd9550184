"""`python -m llmos_exporter`: one exporter, until SIGTERM or SIGINT."""

import sys

from llmos import service
from llmos_exporter.config import ExporterConfig
from llmos_exporter.service import serve


def main() -> int:
    """Run the service; the exit status."""
    return service.main("exporter", ExporterConfig, serve)


if __name__ == "__main__":
    sys.exit(main())
