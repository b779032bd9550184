"""`python -m llmos_trainer`: one trainer, until SIGTERM or SIGINT."""

import sys

from llmos import service
from llmos_trainer.config import TrainerConfig
from llmos_trainer.service import serve


def main() -> int:
    """Run the service; the exit status."""
    return service.main("trainer", TrainerConfig, serve)


if __name__ == "__main__":
    sys.exit(main())
