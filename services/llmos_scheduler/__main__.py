"""`python -m llmos_scheduler`: run the scheduler as a process."""

import gc
import sys

from llmos import service
from llmos_scheduler.config import SchedulerConfig
from llmos_scheduler.service import serve

# The state is large and has hardly a cycle in it: to look through it for garbage costs more than it finds.
COLLECT_AFTER = (50_000, 20, 100)


def main() -> int:
    gc.set_threshold(*COLLECT_AFTER)
    return service.main("scheduler", SchedulerConfig, serve)


if __name__ == "__main__":
    sys.exit(main())
