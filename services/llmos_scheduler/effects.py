"""What `decide` may ask the shell to do.

`Emit` adds a fact to the history. Everything else is a command to somebody else: wanted for as long as the state asks
for it, done again every `again` seconds until then, and safe to do twice.
"""

from dataclasses import dataclass

from msgspec import Struct

from llmos.contracts.deployments import ReplicaAssigned
from llmos.contracts.tasks import Kind, TaskAssigned


@dataclass(frozen=True, slots=True)
class Emit:
    """Say a fact. The id is a function of the fact, so that saying it again stores nothing new."""

    event: Struct
    id: str
    cause: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class DispatchWork:
    """Hand a placed task to its node."""

    node: str
    assignment: TaskAssigned
    traceparent: str = ""
    again: float = 15.0

    @property
    def key(self) -> str:
        rank = f".{self.assignment.rank}" if self.assignment.rank else ""
        return f"{self.assignment.task}.{self.assignment.lease}{rank}"


@dataclass(frozen=True, slots=True)
class WithdrawWork:
    """Take what no worker has taken up yet out of the work queue."""

    kind: Kind
    node: str
    task: str
    lease: int
    again: float = 5.0

    @property
    def key(self) -> str:
        return f"{self.task}.{self.lease}.{self.node}.withdrawn"


@dataclass(frozen=True, slots=True)
class StopTask:
    """Tell whoever works on the task under this lease to stop at the next step; `checkpoint`: it goes on elsewhere."""

    task: str
    lease: int
    reason: str
    traceparent: str = ""
    checkpoint: bool = False
    again: float = 2.0

    @property
    def key(self) -> str:
        return f"{self.task}.{self.lease}.{'preempt' if self.checkpoint else 'stop'}"


@dataclass(frozen=True, slots=True)
class AssignReplica:
    """Tell a node what it should serve under the name of a deployment."""

    assignment: ReplicaAssigned
    traceparent: str = ""
    again: float = 30.0

    @property
    def key(self) -> str:
        return f"{self.assignment.deployment}.{self.assignment.node}.{self.assignment.generation}.assigned"


Command = DispatchWork | WithdrawWork | StopTask | AssignReplica
Effect = Emit | Command
