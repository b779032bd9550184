"""Run the hw-agent: `python -m llmos_hw_agent`."""

import sys

from llmos import service
from llmos_hw_agent.config import HwAgentConfig
from llmos_hw_agent.service import serve


def main() -> int:
    return service.main("hw-agent", HwAgentConfig, serve)


if __name__ == "__main__":
    sys.exit(main())
