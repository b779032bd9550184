"""Which GPUs of which nodes a gang gets: all at once, on as few nodes as possible."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Places: TypeAlias = dict[str, tuple[int, ...]]  # node → indexes of its GPUs


class Gangs:
    """Free GPUs by node, in the order of the nodes given. Deterministic; nothing is moved once it is placed."""

    def __init__(self, nodes: Sequence[tuple[str, int]]) -> None:
        self.free: dict[str, list[int]] = {name: list(range(count)) for name, count in nodes}
        self.total = sum(count for _, count in nodes)

    def take(self, gpus: int) -> Places:
        """The fullest node that holds all; else whole large nodes first, and the rest on the fullest that holds it.

        Raises `ValueError`, and takes nothing, if there are not as many.
        """
        if gpus > sum(map(len, self.free.values())):
            raise ValueError(f"{gpus} GPUs are not free")
        places: Places = {}
        while gpus:
            holds = [(len(free), index, name) for index, (name, free) in enumerate(self.free.items()) if free]
            name = min(
                (node for node in holds if node[0] >= gpus), default=max(holds, key=lambda node: (node[0], -node[1]))
            )[2]
            free = self.free[name]
            places[name], self.free[name] = tuple(free[:gpus]), free[gpus:]
            gpus -= len(places[name])
        return places

    def give_back(self, places: Mapping[str, Sequence[int]]) -> None:
        """The GPUs of a job that ended or gave way."""
        for name, indexes in places.items():
            self.free[name] = sorted({*self.free[name], *indexes})
