"""Where work goes among nodes that have room: one node, several for a gang (all or nothing), or GPUs anywhere.

One node: the least loss (`ranking`); what failed on a node goes there last; ties go to nodes that hold the work's
artifacts, then to the first. Replicas are spread first: over the values of a label that their siblings use least.
"""

import numpy as np

from llmos_scheduler.cluster import WHOLE, Ints, Mask
from llmos_scheduler.ground import Ground, Spots
from llmos_scheduler.ranking import NEVER, Costs
from llmos_scheduler.work import Work

LAST_RESORT = NEVER - 1


def choose(ground: Ground, work: Work, barred: Mask | None = None, only: frozenset[str] = frozenset()) -> Spots | None:
    """Free places for the work, or `None` if it does not fit. `only`: the nodes that will do (none: any)."""
    costs = ground.placer.costs(work.shape) if work.nodes else _loose_costs(ground, work)
    if costs is None:
        return None
    if barred is not None or only or work.apart or work.avoid:
        costs = _restricted(ground, work, costs, barred, only)
    if work.nodes > 1:
        return _gang(ground, work, costs)
    if not work.nodes:
        return _anywhere(ground, work, costs)
    if work.spread:
        costs = _spread(ground, work, costs)
    row = int(costs.argmin())
    if costs[row] == NEVER:
        return None
    if work.near and ground.names[row] not in work.near:
        row = _nearest(ground, work, costs, row)
    return ((row, tuple(ground.placer.ranking.devices(work.shape, row))),)


def _restricted(ground: Ground, work: Work, costs: Costs, barred: Mask | None, only: frozenset[str]) -> Costs:
    costs = costs.copy()
    if barred is not None:
        costs[barred] = NEVER
    if only:
        others = np.ones(len(costs), dtype=np.bool_)
        others[[ground.rows[name] for name in only if name in ground.rows]] = False
        costs[others] = NEVER
    for name in work.apart:
        if name in ground.rows:
            costs[ground.rows[name]] = NEVER
    avoid = ground.rows.get(work.avoid)
    if avoid is not None and costs[avoid] != NEVER:
        costs[avoid] = LAST_RESORT
    return costs


def _spread(ground: Ground, work: Work, costs: Costs) -> Costs:
    """Only nodes whose value of the label the siblings use least, among those with room."""
    used: dict[str, int] = {}
    for name in work.apart & ground.rows.keys():
        value = ground.label(ground.rows[name], work.spread)
        used[value] = used.get(value, 0) + 1
    fits = np.flatnonzero(costs < LAST_RESORT)
    counts = np.array([used.get(ground.label(row, work.spread), 0) for row in fits.tolist()], dtype=np.int64)
    if len(fits):
        costs = costs.copy()
        costs[fits[counts > counts.min()]] = LAST_RESORT
    return costs


def _nearest(ground: Ground, work: Work, costs: Costs, row: int) -> int:
    near = sorted(ground.rows[name] for name in work.near if name in ground.rows)
    return next((other for other in near if costs[other] == costs[row]), row)


def _gang(ground: Ground, work: Work, costs: Costs) -> Spots | None:
    """So many different nodes: on one fabric if one has as many, idle nodes first, then the least loss.

    Of several fabrics: the one on which fewest nodes that others use are taken, then the one with fewest to spare.
    """
    fits = np.flatnonzero(costs != NEVER)
    if len(fits) < work.nodes:
        return None
    ranked = fits[np.lexsort((fits, costs[fits], ~ground.idle(fits)))]
    chosen = pick_fabric(ground, ranked, work.nodes, ground.idle(ranked))
    return tuple((row, tuple(ground.placer.ranking.devices(work.shape, row))) for row in chosen)


def pick_fabric(ground: Ground, ranked: Ints, count: int, idle: Mask) -> list[int]:
    """`count` rows of `ranked` (at least as many, best first), of one fabric if possible."""
    best: tuple[int, int, int] | None = None
    chosen = ranked[:count]
    fabrics = ground.fabric[ranked]
    for fabric in np.unique(fabrics).tolist():
        if not ground.fabrics[fabric]:
            continue
        here = np.flatnonzero(fabrics == fabric)
        if len(here) >= count:
            key = (int((~idle[here[:count]]).sum()), len(here), fabric)
            if best is None or key < best:
                best, chosen = key, ranked[here[:count]]
    return [int(row) for row in chosen]


def _loose_costs(ground: Ground, work: Work) -> Costs | None:
    """Cost 0 where at least one GPU would do."""
    cluster, shape = ground.cluster, work.shape
    devices = (cluster.milli == WHOLE) & (cluster.gpu_memory >= shape.gpu_memory)
    fits = (devices & cluster.allowed(shape)[cluster.kind]).any(axis=1) & cluster.open
    if shape.labels:
        fits &= cluster.labelled(shape.labels)
    return np.where(fits, 0, NEVER).astype(np.int32) if fits.any() else None


def _anywhere(ground: Ground, work: Work, costs: Costs) -> Spots | None:
    """As few nodes as possible: the fullest that holds all, else the emptiest first and the rest on the fullest."""
    free: dict[int, list[int]] = {}
    for row in np.flatnonzero(costs != NEVER).tolist():
        able, room = ground.able(work.shape, row), ground.room(row)
        free[row] = [
            gpu
            for gpu, milli in enumerate(room.milli)
            if able[gpu] and milli == WHOLE and room.gpu_memory[gpu] >= work.shape.gpu_memory
        ]
    return pick_anywhere(free, work.shape.gpus)


def pick_anywhere(free: dict[int, list[int]], needed: int) -> Spots | None:
    """So many GPUs of those that are free (row → devices)."""
    if sum(map(len, free.values())) < needed:
        return None
    spots: list[tuple[int, tuple[int, ...]]] = []
    while needed:
        enough = [(len(gpus), row) for row, gpus in free.items() if len(gpus) >= needed]
        row = min(enough)[1] if enough else max((len(gpus), -row) for row, gpus in free.items())[1] * -1
        spots.append((row, tuple(free[row][:needed])))
        needed -= len(spots[-1][1])
        del free[row]
    return tuple(sorted(spots))
