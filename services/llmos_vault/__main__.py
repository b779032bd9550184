"""Run the vault: `python -m llmos_vault`."""

import sys

from llmos import service
from llmos_vault.config import VaultConfig
from llmos_vault.service import serve


def main() -> int:
    return service.main("vault", VaultConfig, serve)


if __name__ == "__main__":
    sys.exit(main())
