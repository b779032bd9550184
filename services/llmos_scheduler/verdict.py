"""Why work waits, from the plan that left it waiting: typed causes, who holds what it needs, and when that ends."""

from collections.abc import Iterable, Iterator

import numpy as np

from llmos_scheduler.choice import choose
from llmos_scheduler.cluster import WHOLE, Mask, Room
from llmos_scheduler.ground import Ground
from llmos_scheduler.holds import end_of, lacking, possible, soonest
from llmos_scheduler.law import Facts
from llmos_scheduler.order import LAST
from llmos_scheduler.planning import Planning
from llmos_scheduler.work import Cause, Verdict, Work

NAMED = 10  # ids that a cause names at most
NEAREST = 16  # nodes, those that lack least, of which the leases are looked at


def explain(facts: Facts, made: Planning, work: Work, now: int) -> Verdict:
    """The verdict on work that waits; `made` is a plan of `now` that nothing was done about."""
    start = next((start for start in made.starts if start.work is work), None)
    if start is not None:
        return Verdict(starts_on=tuple(node for node, _ in start.places))
    preempts = tuple(stop.work.id for stop in made.stops if stop.by is work)
    if preempts:
        return Verdict(preempts=preempts)
    return _Inquiry(facts, made, work, now).verdict()


class _Inquiry:
    def __init__(self, facts: Facts, made: Planning, work: Work, now: int) -> None:
        self.facts, self.made, self.work, self.now = facts, made, work, now
        self.ground, self.shares = facts.ground, facts.shares
        path = self.shares.add(work.queue)
        self.barred: Mask | None = None
        if facts.access.reservations:
            self.barred = facts.access.barred(self.ground, facts.access.key(work, path), now)

    def verdict(self) -> Verdict:
        limited = self.shares.limited(self.work.queue, self.work.gpu_milli)
        if limited is not None:
            return self._limited(limited)
        if self.work.id in self.made.promised:
            leaving = tuple(sorted(self.facts.leaving))[:NAMED]
            return Verdict(
                causes=(
                    Cause("resources", "room is made for it: it waits until others have stopped", held_by=leaving),
                ),
                earliest=self._earliest(),
            )
        if choose(self.ground, self.work, self.barred) is not None:
            return Verdict(causes=(self._ahead(),))
        causes = [*self._hardware(), *self._quota()]
        return Verdict(causes=tuple(causes) or (self._ahead(),), earliest=self._earliest(), would_run=self._would_run())

    # --- limits, quota, order ---

    def _limited(self, name: str) -> Verdict:
        limit = self.shares.queues[name].limit or 0
        where = f"queue {name!r}" if name else "all queues together"
        if not self.shares.possible(self.work.queue, self.work.gpu_milli):
            message = (
                f"asks for {_gpus(self.work.gpu_milli)}, and the limit of {where} is {limit} GPUs: it never starts"
            )
            return Verdict(causes=(Cause("limit", message),))
        used = self.shares.used[name][0]
        holders = sorted(self._in_queue(name), key=lambda other: (end_of(other), other.number))
        message = f"{where} holds {_gpus(used)} of its limit of {limit}"
        over, earliest = used + self.work.gpu_milli - limit * WHOLE, None
        alone = tuple(other.id for other in holders if other.gpu_milli >= over)
        for other in holders:
            over -= other.gpu_milli
            if over <= 0:
                earliest = max(self.now, end_of(other)) if end_of(other) != LAST else None
                break
        cause = Cause("limit", message, held_by=_ids(holders))
        return Verdict(causes=(cause,), earliest=earliest, would_run=alone[:NAMED])

    def _in_queue(self, name: str) -> Iterator[Work]:
        """Running work with GPUs in the queue or below it."""
        for leaf, line in self.facts.lines.items():
            if name in self.shares.add(leaf):
                for works in line.running.values():
                    yield from (work for work in works.values() if work.gpu_milli)

    def _quota(self) -> Iterator[Cause]:
        """If its quota is used up, it only borrows; otherwise it would have reclaimed."""
        owner = self.shares.owner(self.work.queue)
        if owner is None or not self.work.gpu_milli or self.shares.entitled(self.work.queue, self.work.gpu_milli):
            return
        used, quota = self.shares.used[owner][0], self.shares.queues[owner].quota
        message = (
            f"queue {owner!r} holds {_gpus(used)} of its quota of {quota}: beyond that it borrows what others leave"
        )
        yield Cause("quota", message, held_by=_ids(self._in_queue(owner)))

    def _ahead(self) -> Cause:
        """It fits, but others are served first."""
        line = self.facts.lines[self.work.queue]
        top = line.top()
        first = [head for _, head in self.made.heads.values()] + list(self.made.promised.values())
        if top is not None and not line.order.skips:
            first.append(top.work)
        first += [start.work for start in self.made.starts]
        ids = tuple(dict.fromkeys(other.id for other in first if other is not self.work))[:NAMED]
        return Cause("priority", "there is room, but it is kept for work that is served first", held_by=ids)

    # --- hardware ---

    def _hardware(self) -> Iterator[Cause]:
        ground, work = self.ground, self.work
        holding = ground.holding(work.shape).copy() if work.nodes else np.ones(len(ground.names), dtype=np.bool_)
        for name in work.apart & ground.rows.keys():
            holding[ground.rows[name]] = False
        barred = self.barred if self.barred is not None else np.zeros(len(ground.names), dtype=np.bool_)
        open_ = ground.cluster.open
        usable = holding & open_ & ~barred
        if work.nodes > 1:
            count = int((ground.cluster.fitting(work.shape)[0] & usable).sum())
            yield Cause("gang", f"needs {work.nodes} nodes at once, {count} have room", nodes=work.nodes)
        if int(holding.sum()) < max(1, work.nodes):
            large = f"only {int(holding.sum())} nodes are large enough" if holding.any() else "no node is large enough"
            yield Cause("resources", large, nodes=int(holding.sum()))
        closed = holding & ~open_
        if closed.any():
            count = int(closed.sum())
            yield Cause("cordon", f"{count} nodes that could hold it are closed: {self._names(closed)}", nodes=count)
        kept = holding & open_ & barred
        if kept.any():
            names = sorted(
                one.name for one in self.facts.access.reservations.values() if not one.nodes.isdisjoint(self._all(kept))
            )
            count = int(kept.sum())
            yield Cause("reservation", f"{count} nodes are reserved for others ({', '.join(names)})", nodes=count)
        yield from self._classes(usable)

    def _classes(self, usable: Mask) -> Iterator[Cause]:
        """What is missing on each kind of nodes, on the one that lacks least."""
        rows = np.flatnonzero(usable)
        names = np.array([_class(self.ground, int(row)) for row in rows.tolist()])
        for name in sorted(set(names.tolist())):
            here = rows[names == name]
            nearest = here[np.argsort(lacking(self.ground, self.work.shape, here), kind="stable")][:NEAREST].tolist()
            missing = _missing(self.ground, self.work, nearest[0])
            holders = dict.fromkeys(
                id for row in nearest for id, (other, _) in self.ground.leases[row].items() if other is not self.work
            )
            yield Cause(
                "resources",
                f"{len(here)} nodes of {name}: {missing}",
                node_class=name,
                nodes=len(here),
                held_by=tuple(holders)[:NAMED],
            )

    def _earliest(self) -> int | None:
        found = soonest(self.ground, self.work, self.barred, (), self.facts.leaving, self.now)
        return None if found is None or found[0] == LAST else max(found[0], self.now)

    def _would_run(self) -> tuple[str, ...]:
        """Running work, any one of which would be enough."""
        if self.work.nodes != 1:
            return ()
        could = possible(self.ground, self.work, self.barred)
        if could is None:
            return ()
        rows = np.flatnonzero(could)
        ranked = rows[np.argsort(lacking(self.ground, self.work.shape, rows), kind="stable")][:NEAREST]
        found: dict[str, None] = {}
        for row in ranked.tolist():
            able = self.ground.able(self.work.shape, row)
            for id, lease in self.ground.leases[row].items():
                room = self.ground.room(row)
                room.move(self.ground.part(*lease), lease[1], 1)
                if room.devices(self.work.shape, able) is not None:
                    found[id] = None
        return tuple(found)[:NAMED]

    def _all(self, mask: Mask) -> set[str]:
        return {self.ground.names[row] for row in np.flatnonzero(mask).tolist()}

    def _names(self, mask: Mask) -> str:
        names = [self.ground.names[row] for row in np.flatnonzero(mask)[: NAMED + 1].tolist()]
        return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def _class(ground: Ground, row: int) -> str:
    """The hardware of a node in words: `8 x A100`."""
    counts: dict[str, int] = {}
    for device in ground.cluster.machines[row].devices:
        counts[device.model] = counts.get(device.model, 0) + 1
    return " + ".join(f"{count} x {model or 'GPU'}" for model, count in sorted(counts.items())) or "no GPUs"


def _missing(ground: Ground, work: Work, row: int) -> str:
    """What the node lacks for the work."""
    shape, room, able = work.shape, Room.of(ground.cluster, row), ground.able(work.shape, row)
    parts = []
    if room.cpus < shape.cpus:
        parts.append(f"{max(0, room.cpus) / 1000:g} of {shape.cpus / 1000:g} cpus are free")
    if room.memory < shape.memory:
        parts.append(f"{max(0, room.memory) / max(1, shape.memory):.0%} of the memory is free")
    free = sum(
        will and milli >= shape.milli and memory >= shape.gpu_memory
        for will, milli, memory in zip(able, room.milli, room.gpu_memory, strict=True)
    )
    if free < shape.gpus:
        share = "" if shape.milli == WHOLE else f" with {shape.milli} milli left"
        parts.append(f"{free} of {shape.gpus} GPUs{share} are free")
    return f"on {ground.names[row]} " + ", ".join(parts) if parts else f"{ground.names[row]} has room alone"


def _gpus(milli: int) -> str:
    return f"{milli / WHOLE:g} GPUs"


def _ids(works: Iterable[Work]) -> tuple[str, ...]:
    return tuple(work.id for work, _ in zip(works, range(NAMED), strict=False))
