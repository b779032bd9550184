"""The live scheduler's door to `ranking`: work with GPUs goes where the jobs to expect lose the least by it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import ceil

import numpy as np

from llmos.contracts.nodes import Gpu
from llmos_scheduler.cluster import WHOLE, Cluster, Device, Machine, Shape
from llmos_scheduler.placement import ByPriority, Room
from llmos_scheduler.ranking import Gradient
from llmos_scheduler.records import Job, State, Task
from llmos_scheduler.resources import Request

MOST_SHAPES = 256  # the most common requests stand for all


class LeastLoss(ByPriority):
    """As `ByPriority`, but for work with GPUs: not where the last attempt failed; where the loss is least; where the
    job's artifacts already are; then the first by name. What other jobs lose outweighs a copy over the network.
    """

    def choose(self, state: State, job: Job, task: Task, free: Iterable[Room]) -> Room | None:
        rooms = list(free)
        able = [room for room in rooms if room.fits(task.kind, task.request)]
        if len(able) < 2 or not task.request.gpus:
            return super().choose(state, job, task, able)
        cost = losses(state.asked, rooms, task.request)
        visited = self.visited(job)

        def preference(room: Room) -> tuple[bool, int, bool, str]:
            name = room.node.name
            return name == task.avoid, cost[name], name not in visited, name

        return min(able, key=preference)


def losses(asked: Mapping[Request, int], rooms: Sequence[Room], request: Request) -> dict[str, int]:
    """By node, the coarse cost of placing the request there; of rooms of nodes that told their inventory.

    `asked` are the requests that jobs made so far. The cost of a room that the request does not fit means nothing.
    """
    known = [(room, inventory) for room in rooms if (inventory := room.node.inventory) is not None]
    cluster = Cluster(
        Machine(int(has.cpus * 1000), has.memory, tuple(map(_device, has.gpus)), has.labels) for _, has in known
    )
    for row, (room, has) in enumerate(known):
        free = {gpu.id for gpu in room.gpus}
        cluster.cpus[row], cluster.memory[row] = round(room.cpus * 1000), room.memory
        for column, gpu in enumerate(has.gpus):
            if gpu.id not in free:
                cluster.milli[row, column] = cluster.gpu_memory[row, column] = 0
    gradient = Gradient(cluster)
    gradient.learn({shape(wish): count for wish, count in Counter(asked).most_common(MOST_SHAPES)})
    fits = np.arange(len(known))
    costs = gradient.costs(shape(request), fits).tolist()
    return {room.node.name: cost for (room, _), cost in zip(known, costs, strict=True)}


def shape(request: Request) -> Shape:
    """Today's contract as a shape: whole GPUs of at least so much memory."""
    return Shape(ceil(request.cpus * 1000), request.memory, request.gpus, WHOLE, request.gpu_memory)


def _device(gpu: Gpu) -> Device:
    return Device(gpu.model, gpu.memory)
