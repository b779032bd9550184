"""Options that many commands share, and the connection that they lead to."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from llmos_cli.exits import debugging

if TYPE_CHECKING:
    from llmos.client import Client
    from llmos.local import StackInfo

Output = Annotated[
    Literal["table", "json", "yaml"], Parameter(name=["--output", "-o"], help="How to print: table, json or yaml.")
]
DataDir = Annotated[
    Path | None, Parameter(name="--data-dir", help="Where the stack of this machine keeps its data (LLMOS_DATA_DIR).")
]


@Parameter(name="*")
@dataclass(frozen=True)
class Cluster:
    """Which stack to talk to: `--nats-url`, `--data-dir`, LLMOS_NATS_URL, else the one that runs here."""

    nats_url: Annotated[str | None, Parameter(name="--nats-url", help="The bus of the stack (LLMOS_NATS_URL).")] = None
    data_dir: DataDir = None

    async def connect(self, tenant: str = "default") -> "Client":
        """Connect, quietly: what the bus library would log is said by the error that a command ends with."""
        from llmos.client import Client
        from llmos.telemetry import configure_logging

        configure_logging("debug" if debugging() else "critical")
        return await Client.connect(self.nats_url, tenant, data_dir=self.data_dir)

    def stack(self) -> "StackInfo | None":
        """The stack of this machine, unless another one is meant."""
        from llmos import local

        found = local.find_stack(self.data_dir)
        return found if found is not None and self.nats_url in (None, found.nats_url) else None


@Parameter(name="*")
@dataclass(frozen=True)
class Target(Cluster):
    """Which stack to talk to, and for which tenant."""

    tenant: Annotated[str, Parameter(name="--tenant", env_var="LLMOS_TENANT", help="Whose jobs.")] = "default"

    async def connect(self, tenant: str = "") -> "Client":
        """Connect for the tenant."""
        return await super().connect(tenant or self.tenant)


def who() -> str:
    """Who asks, for the history."""
    return f"cli/{os.environ.get('USER', 'somebody')}"
