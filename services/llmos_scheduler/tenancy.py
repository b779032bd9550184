"""Who holds what on which node, and the nodes' hardware in the planner's words: machines with numbered devices."""

from collections.abc import Iterable, Sequence

from llmos.contracts.nodes import Gpu
from llmos.contracts.tasks import Member
from llmos_scheduler.cluster import Device, Machine
from llmos_scheduler.records import Node
from llmos_scheduler.resources import TAKES
from llmos_scheduler.work import Places


def devices_of(gpus: Iterable[Gpu]) -> list[Gpu]:
    """What can be leased: GPUs and MIG slices, but no GPU that is cut into slices."""
    gpus = list(gpus)
    cut = {gpu.parent for gpu in gpus if gpu.parent}
    return [gpu for gpu in gpus if gpu.id not in cut]


class Tenancy:
    """Leases by node and owner (a job, or `deployment/<name>`), machines by node.

    A device that is still leased but not in the inventory any more stays a device until that lease ends.
    """

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self._ids: dict[str, list[str]] = {}
        self._leases: dict[str, dict[str, list[str]]] = {}  # by node: device ids by owner
        self._owners: dict[str, list[str]] = {}  # the nodes of each owner
        self._haunted: set[str] = set()  # nodes with devices that are gone
        self._stale: set[str] = set()  # haunted nodes on which a lease ended

    # --- leases ---

    def hold(self, owner: str, members: Iterable[Member]) -> None:
        """The owner holds these now, and nothing else."""
        for node in self._owners.pop(owner, ()):
            here = self._leases[node]
            here.pop(owner, None)
            if not here:
                del self._leases[node]
            if node in self._haunted:
                self._stale.add(node)
        nodes = []
        for member in members:
            self._leases.setdefault(member.node, {}).setdefault(owner, []).extend(member.devices)
            nodes.append(member.node)
        if nodes:
            self._owners[owner] = nodes

    def on(self, node: str) -> list[str]:
        """Who holds anything on the node."""
        return list(self._leases.get(node, ()))

    def stale(self) -> set[str]:
        """Nodes whose machine has to be made again because a lease ended."""
        return self._stale

    # --- hardware ---

    def update(self, node: Node) -> bool:
        """Follow what is known of a node now. Whether its machine changed."""
        name, has = node.name, node.inventory
        before, ids = self.machines.get(name), self._ids.get(name)
        self._stale.discard(name)
        if has is None or not node.alive:
            self.machines.pop(name, None)
            self._ids.pop(name, None)
            self._haunted.discard(name)
            return before is not None
        gpus = devices_of(has.gpus)
        known = [gpu.id for gpu in gpus]
        leased = [device for devices in self._leases.get(name, {}).values() for device in devices]
        gone = sorted(set(leased) - set(known))
        kinds = {kind for worker in node.workers.values() if worker.alive for kind in worker.kinds}
        machine = Machine(
            cpus=int(has.cpus * 1000 + 0.5),
            memory=has.memory,
            devices=(*(Device(gpu.profile or gpu.model, gpu.memory) for gpu in gpus), *(Device("") for _ in gone)),
            labels=has.labels | {TAKES + kind: "yes" for kind in sorted(kinds)},
        )
        (self._haunted.add if gone else self._haunted.discard)(name)
        self.machines[name], self._ids[name] = machine, known + gone
        return machine != before or ids != known + gone

    def places(self, members: Sequence[Member]) -> Places:
        """A lease in the planner's words; on a node that is away, its devices have no numbers."""
        return tuple((member.node, self._numbers(member)) for member in members)

    def members(self, places: Places) -> list[Member]:
        """A plan's places in the contract's words."""
        return [Member(node, [self._ids[node][gpu] for gpu in gpus]) for node, gpus in places]

    def _numbers(self, member: Member) -> tuple[int, ...]:
        ids = self._ids.get(member.node, [])
        return tuple(ids.index(device) for device in member.devices if device in ids)
