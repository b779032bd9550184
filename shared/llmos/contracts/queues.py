"""Queues: how GPUs are divided among those who wait, and reservations of nodes."""

from msgspec import Struct, field

# How a queue orders its jobs; see the scheduler's README.
POLICIES = (
    "priority", "priority-preempt", "fifo", "easy", "round-robin", "saf", "srsf", "las", "deadline",
)  # fmt: skip


class QueueSettings(Struct, frozen=True, omit_defaults=True):
    """What an operator says of a queue. `name` is its path in the tree, such as `research/vision`; amounts are GPUs.

    `quota` is guaranteed, and taken back from borrowers if need be (none: all that it uses is borrowed); `limit` is the
    most that it may hold, borrowed or not; `weight` divides its share among its siblings; `policy` orders its jobs
    (empty: `priority`).
    """

    name: str
    policy: str = ""
    weight: float = 1.0
    quota: int | None = None
    limit: int | None = None


class QueuesChanged(Struct, frozen=True, omit_defaults=True):
    """The settings of all queues, from now on; a queue that is not listed is a leaf like any other."""

    queues: list[QueueSettings] = field(default_factory=list)
    by: str = ""


class ReservationMade(Struct, frozen=True, omit_defaults=True):
    """From `start` to `end` (Unix seconds; no end: until it is ended) only work of this queue (and those below it), or
    of this tenant, starts on these nodes; nothing at all if neither is named."""

    reservation: str
    nodes: list[str]
    queue: str = ""
    tenant: str = ""
    start: float = 0.0
    end: float | None = None
    by: str = ""


class ReservationEnded(Struct, frozen=True, omit_defaults=True):
    """The reservation holds no more."""

    reservation: str
    by: str = ""


# --- asked of the scheduler (llmos.call.scheduler.<verb>.<id>) ---


class QueuesRequested(Struct, frozen=True, omit_defaults=True):
    """Show every queue, with what it holds."""


class SetQueuesRequested(Struct, frozen=True, omit_defaults=True):
    """Set every queue at once; what is not listed goes back to its defaults."""

    queues: list[QueueSettings] = field(default_factory=list)
    requested_by: str = ""


class QueueView(Struct, frozen=True, omit_defaults=True):
    """A queue as it stands: its settings, the GPUs that it holds now and held on average, its running and waiting
    jobs."""

    name: str
    policy: str = ""
    weight: float = 1.0
    quota: int | None = None
    limit: int | None = None
    gpus: float = 0.0
    average: float = 0.0
    running: int = 0
    waiting: int = 0


class QueueList(Struct, frozen=True, omit_defaults=True):
    """Answer to `QueuesRequested` and `SetQueuesRequested`, by name."""

    queues: list[QueueView] = field(default_factory=list)


class ReserveRequested(Struct, frozen=True, omit_defaults=True):
    """Reserve nodes, as `ReservationMade`; a known name is changed."""

    reservation: str
    nodes: list[str]
    queue: str = ""
    tenant: str = ""
    start: float = 0.0
    end: float | None = None
    requested_by: str = ""


class UnreserveRequested(Struct, frozen=True, omit_defaults=True):
    """End a reservation."""

    reservation: str
    requested_by: str = ""


class ReservationsRequested(Struct, frozen=True, omit_defaults=True):
    """List the reservations that have not ended."""


class ReservationView(Struct, frozen=True, omit_defaults=True):
    """A reservation, and whether it holds now."""

    reservation: str
    nodes: list[str]
    queue: str = ""
    tenant: str = ""
    start: float = 0.0
    end: float | None = None
    by: str = ""
    active: bool = False


class ReservationList(Struct, frozen=True, omit_defaults=True):
    """Answer to `ReservationsRequested`, by start."""

    reservations: list[ReservationView] = field(default_factory=list)
