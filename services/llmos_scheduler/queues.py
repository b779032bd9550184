"""What an operator says of queues, and which such settings can be kept."""

from collections.abc import Iterable
from dataclasses import dataclass

from llmos.errors import Rejected


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue; amounts are GPUs. Its name is its path: `research/vision` lies below `research`.

    `quota` is guaranteed, and taken back from borrowers if need be (`None`: no guarantee, all is borrowed); `limit` is
    the most that it may hold, borrowed or not. `weight` divides its share among its siblings. `order` is a policy.
    """

    name: str
    order: str = ""
    weight: float = 1.0
    quota: int | None = None
    limit: int | None = None


def check_queues(queues: Iterable[Queue], gpus: int | None = None) -> None:
    """Raises `Rejected` for settings that contradict each other, or quotas that so many GPUs can't keep."""
    known = {queue.name: queue for queue in queues}
    below: dict[str, int] = {}
    for name in sorted(known, key=lambda name: -name.count("/") if name else 1):
        queue = known[name]
        if not queue.weight > 0:
            raise Rejected(f"queue {name!r}: a weight is above 0, not {queue.weight:g}", param="weight")
        if queue.limit is not None and queue.limit < (queue.quota or 0):
            raise Rejected(f"queue {name!r}: its limit is below its quota", param="limit")
        if queue.quota is not None and below.get(name, 0) > queue.quota:
            raise _too_much(repr(name), below[name], queue.quota)
        sums = below.get(name, 0) if queue.quota is None else queue.quota
        above = name
        while above:
            above = above.rpartition("/")[0]
            below[above] = below.get(above, 0) + sums
            if above in known:
                break
    if gpus is not None and below.get("", 0) > gpus:
        raise _too_much("the root", below[""], gpus)


def _too_much(name: str, quotas: int, most: int) -> Rejected:
    return Rejected(
        f"the quotas below {name} add up to {quotas} GPUs of {most}",
        remedy="Lower them: a quota is a guarantee.",
        param="quota",
    )
