"""Run the audit service: `python -m llmos_audit`."""

import sys

from llmos import service
from llmos_audit.config import AuditConfig
from llmos_audit.service import serve


def main() -> int:
    return service.main("audit", AuditConfig, serve)


if __name__ == "__main__":
    sys.exit(main())
