"""Places for checks: they are small and have some of their own on each node, beside what is leased otherwise, so that
bad data is reported although every cpu is taken. Pure."""

from heapq import heapify, heappop, heappush

from llmos_scheduler.order import HOUR
from llmos_scheduler.records import Job, Node, Task

CHECKS_A_NODE = 2
Rank = tuple[int, int, str]


def check_places(node: Node) -> int:
    """How many checks the node takes at once."""
    if node.inventory is None or not node.runs("check") or node.cordoned:
        return 0
    return max(CHECKS_A_NODE, int(node.inventory.cpus) // 4)


def check_rank(job: Job) -> Rank:
    """Priority, an hour of waiting being worth one, then age."""
    return int(job.submitted_at * 1000) - job.spec.priority * HOUR, job.number, job.id


class Checks:
    """Checks that wait or run, and how many places each node has left for them."""

    def __init__(self) -> None:
        self._nodes: dict[str, tuple[int, bool]] = {}  # places, and whether it has GPUs: those come last
        self._held: dict[str, int] = {}
        self._waiting: dict[str, tuple[Rank, Task]] = {}
        self._running: dict[str, str] = {}
        self._queue: list[Rank] = []
        self._free: list[tuple[bool, int, str]] = []

    def node(self, node: Node) -> None:
        """What is known of the node changed."""
        places = check_places(node)
        if places:
            self._nodes[node.name] = places, bool(node.inventory and node.inventory.gpus)
            self._offer(node.name)
        else:
            self._nodes.pop(node.name, None)

    def wait(self, job: Job, task: Task) -> None:
        self.leave(job.id)
        rank = check_rank(job)
        self._waiting[job.id] = rank, task
        heappush(self._queue, rank)

    def run(self, job: str, node: str) -> None:
        self.leave(job)
        self._running[job] = node
        self._held[node] = self._held.get(node, 0) + 1
        self._offer(node)

    def leave(self, job: str) -> None:
        """It neither waits nor runs any more."""
        self._waiting.pop(job, None)
        node = self._running.pop(job, None)
        if node is not None:
            self._held[node] -= 1
            if not self._held[node]:
                del self._held[node]
            self._offer(node)

    def plan(self, limit: int) -> list[tuple[str, str]]:
        """At most `limit` starts as (job, node), the first in order first. Nothing is taken yet."""
        starts: list[tuple[str, str]] = []
        seen: list[Rank] = []
        taken: list[str] = []
        while self._queue and len(starts) < limit:
            rank = heappop(self._queue)
            known = self._waiting.get(rank[2])
            if known is None or known[0] != rank or (seen and seen[-1] == rank):
                continue  # it left
            seen.append(rank)
            node = self._take(known[1].avoid)
            if node is None:
                break
            taken.append(node)
            starts.append((rank[2], node))
        for rank in seen:
            heappush(self._queue, rank)
        for node in taken:
            self._held[node] -= 1
            if not self._held[node]:
                del self._held[node]
            self._offer(node)
        return starts

    def _take(self, avoid: str) -> str | None:
        """The node with the most places left, one with GPUs only if no other has any; `avoid` if there is no other."""
        avoided, found = None, None
        while self._free and found is None:
            entry = heappop(self._free)
            if entry[1] == -self._left(entry[2]) and entry[:1] == self._nodes.get(entry[2], ())[1:]:
                if entry[2] == avoid:
                    avoided = entry
                else:
                    found = entry
        chosen = found or avoided
        if avoided is not None and chosen is not avoided:
            heappush(self._free, avoided)
        if chosen is None:
            return None
        self._held[chosen[2]] = self._held.get(chosen[2], 0) + 1
        self._offer(chosen[2])
        return chosen[2]

    def _left(self, node: str) -> int:
        places, _ = self._nodes.get(node, (0, False))
        return max(0, places - self._held.get(node, 0))

    def _offer(self, node: str) -> None:
        left = self._left(node)
        if not left:
            return
        heappush(self._free, (self._nodes[node][1], -left, node))
        if len(self._free) > 8 * len(self._nodes) + 64:
            names = list(self._nodes)
            self._free = [(self._nodes[name][1], -left, name) for name in names if (left := self._left(name))]
            heapify(self._free)
