"""`python -m llmos_scheduler`: run the scheduler as a process."""

import sys

from llmos import service
from llmos_scheduler.config import SchedulerConfig
from llmos_scheduler.service import serve


def main() -> int:
    return service.main("scheduler", SchedulerConfig, serve)


if __name__ == "__main__":
    sys.exit(main())
