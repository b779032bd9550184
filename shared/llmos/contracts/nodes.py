"""Nodes: what hardware there is, which workers run on it, and whether they are alive."""

from msgspec import Struct, field

HEARTBEAT_S = 5.0
LOST_AFTER_S = 20.0


class Gpu(Struct, frozen=True, omit_defaults=True):
    """One GPU, or a MIG slice of one: then `parent` is the id of its GPU and `profile` its kind, such as `1g.10gb`.

    Memory in bytes; `compute` is the CUDA capability such as `9.0`. A GPU that is cut into slices is no device itself.
    """

    id: str
    model: str
    memory: int
    index: int = 0
    compute: str = ""
    parent: str = ""
    profile: str = ""


class Inventory(Struct, frozen=True, omit_defaults=True):
    """The hardware and software of a node. Memory and disk in bytes; `cpus` is what the cgroup allows."""

    cpus: float
    memory: int
    disk: int = 0
    gpus: list[Gpu] = field(default_factory=list)
    cpu_model: str = ""
    architecture: str = ""
    os: str = ""
    driver: str = ""
    cuda: str = ""
    torch: str = ""
    onnxruntime: str = ""
    providers: list[str] = field(default_factory=list)
    cgroup: str = ""
    labels: dict[str, str] = field(default_factory=dict)


class NodeInventoried(Struct, frozen=True, omit_defaults=True):
    """The inventory of a node, when it is first seen and when it changes; `version` counts the changes."""

    node: str
    version: int
    inventory: Inventory


class Heartbeat(Struct, frozen=True, omit_defaults=True):
    """KV `nodes`, key `<node>.<service>`, every 5 s: this service runs on this node.

    `kinds` are the task kinds it takes (`check`, `train`, `export`) and `serve` for replicas. `memory` is its budget in
    bytes (0: unknown), `used` what it has in use. hw-agent's own heartbeat carries the node's load.
    """

    node: str
    service: str
    instance: str
    at: float
    kinds: list[str] = field(default_factory=list)
    memory: int = 0
    used: int = 0
    load: dict[str, float] = field(default_factory=dict)


class WorkerJoined(Struct, frozen=True, omit_defaults=True):
    """The scheduler heard a service of a node for the first time, or again after it was lost."""

    node: str
    service: str
    kinds: list[str] = field(default_factory=list)
    memory: int = 0


class WorkerLost(Struct, frozen=True, omit_defaults=True):
    """A service of a node gave no heartbeat for 20 s."""

    node: str
    service: str


class NodeLost(Struct, frozen=True, omit_defaults=True):
    """No service of the node gave a heartbeat for 20 s: its leases are given up."""

    node: str


class NodeCordoned(Struct, frozen=True, omit_defaults=True):
    """Nothing new starts on the node. With `drain` preemptible work on it is preempted, and replicas move away."""

    node: str
    drain: bool = False
    by: str = ""
    reason: str = ""


class NodeUncordoned(Struct, frozen=True, omit_defaults=True):
    """The node takes work again."""

    node: str
    by: str = ""


class CordonRequested(Struct, frozen=True, omit_defaults=True):
    """Asked of the scheduler: let nothing new start on a node; with `drain`, clear it."""

    node: str
    drain: bool = False
    reason: str = ""
    requested_by: str = ""


class UncordonRequested(Struct, frozen=True, omit_defaults=True):
    """Asked of the scheduler: let a node take work again."""

    node: str
    requested_by: str = ""


class NodesRequested(Struct, frozen=True, omit_defaults=True):
    """Asked of the scheduler: list the nodes."""


class NodeView(Struct, frozen=True, omit_defaults=True):
    """A node as the scheduler sees it. `gpu_milli_leased` is by device; `replicas` are the deployments that lease of
    it; `reason` is why it was cordoned; `leads` are its services that decide for all of their kind (a scheduler)."""

    node: str
    alive: bool
    inventory: Inventory | None = None
    services: list[str] = field(default_factory=list)
    cpus_leased: float = 0.0
    memory_leased: int = 0
    gpus_leased: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    gpu_milli_leased: dict[str, int] = field(default_factory=dict)
    replicas: list[str] = field(default_factory=list)
    cordoned: bool = False
    draining: bool = False
    reason: str = ""
    reservations: list[str] = field(default_factory=list)
    leads: list[str] = field(default_factory=list)


class NodeList(Struct, frozen=True, omit_defaults=True):
    """Answer to `NodesRequested`."""

    nodes: list[NodeView] = field(default_factory=list)
