"""Queues in a tree: who gets the next GPUs (DRF with a history that decays), quota, borrowing, limits.

Dominant resource fairness: Ghodsi et al., NSDI 2011. A queue's name is its path, `research/vision`; every queue on the
way is part of the tree, whether it is listed or not. Pure arithmetic on what `charge` was told.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log

from llmos.errors import Rejected

HALF_LIFE = 24 * 3_600_000


@dataclass(frozen=True, slots=True)
class Queue:
    """What an operator says of a queue; amounts are GPUs.

    `quota` is guaranteed, and taken back from borrowers if need be (`None`: no guarantee, all is borrowed); `limit` is
    the most that it may hold, borrowed or not. `weight` divides its share among its siblings.
    """

    name: str
    order: str = ""
    weight: float = 1.0
    quota: int | None = None
    limit: int | None = None


@dataclass(slots=True)
class _Branch:
    queue: Queue
    children: list[str] = field(default_factory=list)


class Tree:
    """The queues, and what each holds in the plan that is being made (`charge`). `totals`: the cluster, GPUs first.

    `history` is the recent use of each leaf as an average (`Usage.average`), in the same amounts.
    Raises `Rejected` for quotas that can't all be kept.
    """

    def __init__(
        self, queues: Iterable[Queue], totals: Sequence[float], history: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        self.totals = tuple(totals)
        self.branches = {"": _Branch(Queue(""))}
        self._paths: dict[str, list[str]] = {}
        for queue in queues:
            self._add(queue)
        self.used: dict[str, list[float]] = {}
        self._past: dict[str, list[float]] = {}
        self.clear(history or {})
        self._check()

    def clear(self, history: Mapping[str, Sequence[float]]) -> None:
        """Begin another plan."""
        self.used = {name: [0.0] * len(self.totals) for name in self.branches}
        self._past = {name: [0.0] * len(self.totals) for name in self.branches}
        for name, amounts in history.items():
            self._sum(self._past, name, amounts, 1)

    def path(self, name: str) -> list[str]:
        """The queue and those above it, itself first, the root last."""
        path = self._paths.get(name)
        if path is None:
            parts = name.split("/") if name else []
            path = self._paths[name] = ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]
        return path

    def charge(self, name: str, demand: Sequence[float], sign: int = 1) -> None:
        """Count a job against its queue and all above it, or take it off (-1)."""
        self._sum(self.used, name, demand, sign)

    def guaranteed(self, name: str) -> str | None:
        """The queue whose quota covers this one: itself, or the nearest above that has a quota."""
        return next((above for above in self.path(name) if self.branches[above].queue.quota is not None), None)

    def entitled(self, name: str, gpus: int) -> bool:
        """Whether so many more GPUs are within the quota that covers the queue."""
        above = self.guaranteed(name)
        return above is not None and self.used[above][0] + gpus <= (self.branches[above].queue.quota or 0)

    def allowed(self, name: str, gpus: int) -> bool:
        """Whether so many more GPUs keep every limit."""
        return all(
            limit is None or self.used[above][0] + gpus <= limit
            for above in self.path(name)
            for limit in (self.branches[above].queue.limit,)
        )

    def possible(self, name: str, gpus: int) -> bool:
        """Whether the cluster and the limits could ever hold a job of so many GPUs."""
        limits = [self.branches[above].queue.limit for above in self.path(name)]
        return gpus <= min([self.totals[0], *(limit for limit in limits if limit is not None)])

    def pick(self, heads: Mapping[str, int]) -> str:
        """The leaf that is served next. `heads`: for each leaf with a candidate, the GPUs that it asks for.

        From the root down: a child whose candidate is within its quota before those that borrow, then the least
        dominant share (held now + recent average) for its weight, then by name.
        """
        if len(heads) == 1:
            return next(iter(heads))
        found = self._pick("", heads)
        if found is None:
            raise ValueError("no queue has a candidate")
        return found[1]

    def share(self, name: str) -> float:
        """The queue's dominant share of the cluster for its weight: what it holds, and what it held on average."""
        sums = zip(self.used[name], self._past[name], self.totals, strict=True)
        shares = [(now + past) / total for now, past, total in sums if total]
        return max(shares, default=0.0) / self.branches[name].queue.weight

    def _pick(self, name: str, heads: Mapping[str, int]) -> tuple[bool, str] | None:
        options = [] if name not in heads else [(not self.entitled(name, heads[name]), -1.0, name, name)]
        for child in self.branches[name].children:
            found = self._pick(child, heads)
            if found is not None:
                options.append((found[0], self.share(child), child, found[1]))
        if not options:
            return None
        best = min(options)
        return best[0], best[3]

    def _sum(self, sums: dict[str, list[float]], name: str, amounts: Sequence[float], sign: int) -> None:
        for above in self.path(name):
            row = sums[above]
            for index, amount in enumerate(amounts):
                row[index] += sign * amount

    def _add(self, queue: Queue) -> None:
        for name in reversed(self.path(queue.name)):
            if name not in self.branches:
                self.branches[name] = _Branch(Queue(name))
                self.branches[name.rpartition("/")[0]].children.append(name)
        self.branches[queue.name].queue = queue

    def _check(self) -> None:
        for name, branch in self.branches.items():
            queue, quotas = branch.queue, self._quotas(name)
            if queue.weight <= 0:
                raise Rejected(f"queue {name!r}: a weight is above 0, not {queue.weight:g}", param="weight")
            if queue.limit is not None and queue.limit < (queue.quota or 0):
                raise Rejected(f"queue {name!r}: its limit is below its quota", param="limit")
            most = queue.quota if queue.quota is not None else self.totals[0] if not name else None
            if most is not None and quotas > most:
                raise Rejected(
                    f"the quotas below {name or 'the root'} add up to {quotas} GPUs of {most:g}",
                    remedy="Lower them: a quota is a guarantee.",
                    param="quota",
                )

    def _quotas(self, name: str) -> int:
        """What the queues below are guaranteed."""
        sums = 0
        for child in self.branches[name].children:
            quota = self.branches[child].queue.quota
            sums += self._quotas(child) if quota is None else quota
        return sums


class Usage:
    """Decaying use of each leaf: what it held on average, the recent past counting most (`half_life`, milliseconds)."""

    def __init__(self, half_life: int = HALF_LIFE) -> None:
        self._rate = log(2) / half_life
        self._sums: dict[str, float] = {}

    def advance(self, elapsed: int, held: Mapping[str, int]) -> None:
        """Time passed in which each leaf held so many GPUs."""
        kept = exp(-self._rate * elapsed)
        for name in self._sums.keys() | held.keys():
            self._sums[name] = self._sums.get(name, 0.0) * kept + held.get(name, 0) * (1 - kept)

    def average(self) -> dict[str, tuple[float]]:
        """GPUs of each leaf."""
        return {name: (self._sums[name],) for name in sorted(self._sums)}
