"""What to do next, decided without doing it: which replicas to bring up or take down, which inputs to compute
together, and which session to unload for room. Time comes in as an argument; nothing here waits, reads or writes.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from msgspec import Struct

from llmos.contracts.deployments import ReplicaAssigned
from llmos_inferencer.state import Actual, Desired

# --- replicas ---


class Bring(Struct, frozen=True):
    """Stage, verify and load the assigned version beside what serves now, then switch to it."""

    assigned: ReplicaAssigned


class Confirm(Struct, frozen=True):
    """What serves is what a newer generation asks for: say that it is ready."""

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
            effects.append(Confirm(want) if have.version == want.version else Bring(want))
        elif have.status == "failed" and have.retry_at is not None and have.retry_at <= now:
            effects.append(Bring(want))
    return effects


def next_retry(actual: Actual) -> float | None:
    """When `converge` will have something to do although nothing is heard."""
    return min((replica.retry_at for replica in actual.values() if replica.retry_at is not None), default=None)


# --- batches ---


class Waiting(Struct):
    """One tokenised input: which session it is for, its class (0 interactive, 1 batch), its place in the order of
    arrival, and its length in tokens.
    """

    session: int
    rank: int
    arrived: int
    length: int


class Limits(Struct, frozen=True):
    """How large a batch may be: `rows`, and `tokens` with padding (an input longer than that runs alone).

    `overhead` is what a run costs beside its tokens, counted in tokens: 1.4 ms against 0.0625 ms a token were
    measured for MiniLM.
    """

    rows: int = 32
    tokens: int = 1024
    overhead: int = 24


W = TypeVar("W", bound=Waiting)


def next_batch(waiting: Sequence[W], limits: Limits) -> list[W]:
    """The inputs to compute now, shortest first; empty when nothing waits.

    The head is the oldest interactive input, or the oldest of class batch when no other waits. Inputs for the
    same session and of the same class join it in order of closeness in length, as long as the padding that each
    brings costs less than a run of its own. Nothing ever waits for company: what is there is what is batched.
    """
    if not waiting:
        return []
    head = min(waiting, key=lambda item: (item.rank, item.arrived))
    row = sorted(
        (item for item in waiting if item.session == head.session and item.rank == head.rank),
        key=lambda item: (item.length, item.arrived),
    )
    low = high = next(at for at, item in enumerate(row) if item is head)
    while high - low + 1 < limits.rows:
        count, longest = high - low + 1, row[high].length
        shorter = longest - row[low - 1].length if low > 0 else None
        longer = count * (row[high + 1].length - longest) if high + 1 < len(row) else None
        if longer is not None and (count + 1) * row[high + 1].length > limits.tokens:
            longer = None
        if shorter is not None and (count + 1) * longest > limits.tokens:
            shorter = None
        costs = [cost for cost in (shorter, longer) if cost is not None]
        if not costs or min(costs) > limits.overhead:
            break
        if longer == min(costs):
            high += 1
        else:
            low -= 1
    return row[low : high + 1]


# --- memory ---


class Resident(Struct, frozen=True):
    """A loaded session: its cost in bytes and when it was last asked for."""

    deployment: str
    memory: int
    used_at: float


def make_room(resident: Iterable[Resident], need: int, budget: int) -> list[str] | None:
    """The deployments to unload, least recently used first, so that `need` more bytes fit into `budget`.

    `None` when it would not fit into an empty process either.
    """
    if need > budget:
        return None
    oldest_first = sorted(resident, key=lambda session: (session.used_at, session.deployment))
    used = sum(session.memory for session in oldest_first)
    unload = []
    for session in oldest_first:
        if used + need <= budget:
            break
        used -= session.memory
        unload.append(session.deployment)
    return unload
