"""What to do next, decided without doing it: which replicas to bring up or take down, which inputs to compute
together, and which session to unload for room. Time comes in as an argument; nothing here waits, reads or writes.
"""

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable
from heapq import heappop, heappush
from typing import Generic, TypeVar
from zlib import crc32

from msgspec import Struct

from llmos.contracts.deployments import ReplicaAssigned
from llmos_inferencer.state import Actual, Desired, lease_of

# --- replicas ---


class Bring(Struct, frozen=True):
    """Stage, verify and load the assigned version beside what serves now, then switch to it."""

    assigned: ReplicaAssigned


class Confirm(Struct, frozen=True):
    """What serves is what a newer generation asks for: take its other settings over and say that it is ready."""

    assigned: ReplicaAssigned


class TakeDown(Struct, frozen=True):
    """Stop pulling, finish what was begun, give the rest back, unload; say so even if there was nothing."""

    assigned: ReplicaAssigned


Effect = Bring | Confirm | TakeDown


def converge(desired: Desired, actual: Actual, now: float) -> list[Effect]:
    """The effects that bring `actual` to `desired`, sorted by deployment; none for a deployment on which one is
    under way.
    """
    effects: list[Effect] = []
    for name, want in sorted(desired.items()):
        have = actual.get(name)
        if have is not None and have.status == "bringing":
            continue
        if want.desired == "absent" or want.version is None:
            if have is None or have.status != "absent" or have.generation < want.generation:
                effects.append(TakeDown(want))
        elif have is None:
            effects.append(Bring(want))
        elif have.generation < want.generation:
            same = (have.version, have.canary, have.lease) == (want.version, want.canary, lease_of(want))
            effects.append(Confirm(want) if same else Bring(want))
        elif have.status == "failed" and have.retry_at is not None and have.retry_at <= now:
            effects.append(Bring(want))
    return effects


def next_retry(actual: Actual) -> float | None:
    """When `converge` will have something to do although nothing is heard."""
    return min((replica.retry_at for replica in actual.values() if replica.retry_at is not None), default=None)


# --- versions ---


def chosen(request: str, weight: int) -> bool:
    """Whether the canary answers a request: `weight` percent of all ids, the same ones each time they come."""
    return crc32(request.encode()) % 100 < weight


# --- batches ---


class Waiting(Struct):
    """One row to compute: what it may share a run with (equal `session`), its class (0 interactive, 1 batch), its place
    in the order of arrival, and its length in tokens. `gone` once it is in a batch or withdrawn.
    """

    session: Hashable
    rank: int
    arrived: int
    length: int
    gone: bool = False


class Limits(Struct, frozen=True):
    """How large a batch may be: `rows`, and `tokens` with padding (an input longer than that runs alone).

    `overhead` is what a run costs beside its tokens, counted in tokens: 1.4 ms against 0.0625 ms a token were measured
    for MiniLM.
    """

    rows: int = 32
    tokens: int = 1024
    overhead: int = 24


W = TypeVar("W", bound=Waiting)


class Queue(Generic[W]):
    """Inputs that wait, sorted by length for each session and class, so that a batch is a slice of a row."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._rows: dict[tuple[Hashable, int], list[W]] = {}
        self._order: list[tuple[int, int, W]] = []  # a heap by class and arrival; who is gone is dropped when on top

    def add(self, item: W) -> None:
        """One more input waits."""
        insort(self._rows.setdefault((item.session, item.rank), []), item, key=_place)
        heappush(self._order, (item.rank, item.arrived, item))

    def withdraw(self, items: Iterable[W]) -> None:
        """These don't wait any more, those that are gone already left aside."""
        for item in items:
            if not item.gone:
                at = bisect_left(self._rows[item.session, item.rank], _place(item), key=_place)
                self._take(item, at, at + 1)

    def next_batch(self) -> list[W]:
        """Take the inputs to compute now, shortest first; empty when nothing waits.

        The head is the oldest interactive input, or the oldest of class batch when no other waits. Inputs for the same
        session and of the same class join it in order of closeness in length, as long as the padding that each brings
        costs less than a run of its own. Nothing ever waits for company: what is there is what is batched.
        """
        while self._order and self._order[0][2].gone:
            heappop(self._order)
        if not self._order:
            return []
        head = self._order[0][2]
        row = self._rows[head.session, head.rank]
        low = high = bisect_left(row, _place(head), key=_place)
        limits = self._limits
        while high - low + 1 < limits.rows:
            count, longest = high - low + 1, row[high].length
            wider = []  # the padding that the next shorter, and the next longer, input would bring
            if low > 0 and (count + 1) * longest <= limits.tokens:
                wider.append((longest - row[low - 1].length, low - 1, high))
            if high + 1 < len(row) and (count + 1) * row[high + 1].length <= limits.tokens:
                wider.append((count * (row[high + 1].length - longest), low, high + 1))
            padding, next_low, next_high = min(wider, default=(limits.overhead + 1, low, high))
            if padding > limits.overhead:
                break
            low, high = next_low, next_high
        return self._take(head, low, high + 1)

    def _take(self, one: W, low: int, high: int) -> list[W]:
        row = self._rows[one.session, one.rank]
        taken = row[low:high]
        del row[low:high]
        if not row:
            del self._rows[one.session, one.rank]
        for item in taken:
            item.gone = True
        return taken


def _place(item: Waiting) -> tuple[int, int]:
    return item.length, item.arrived


# --- memory ---


class Resident(Struct, frozen=True):
    """A loaded session: its cost in bytes, when it was last asked for, and whether it may go."""

    track: str
    memory: int
    used_at: float
    pinned: bool = False


def make_room(resident: Iterable[Resident], need: int, budget: int) -> list[str] | None:
    """The tracks to unload, least recently used first, so that `need` more bytes fit into `budget`.

    `None` when it would not fit if everything went that is not pinned.
    """
    everything = list(resident)
    if need + sum(session.memory for session in everything if session.pinned) > budget:
        return None
    loose = [session for session in everything if not session.pinned]
    oldest_first = sorted(loose, key=lambda session: (session.used_at, session.track))
    used = sum(session.memory for session in everything)
    unload = []
    for session in oldest_first:
        if used + need <= budget:
            break
        used -= session.memory
        unload.append(session.track)
    return unload
