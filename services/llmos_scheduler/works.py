"""Tasks and replicas in the planner's words: `Work`. Times become whole milliseconds here. Pure."""

from collections.abc import Iterator

from llmos_scheduler.lifecycle import preemptible
from llmos_scheduler.records import Deployment, Job, State, Task
from llmos_scheduler.resources import GANG, MOST_REPLICAS, Request
from llmos_scheduler.rollout import Wish
from llmos_scheduler.work import Work


def milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def takes(task: Task) -> tuple[str, ...]:
    """The kinds of work that the workers of its nodes must take."""
    return (task.kind, GANG) if task.request.nodes > 1 else (task.kind,)


def task_work(state: State, job: Job, task: Task) -> Work:
    """A task that waits, or that holds a lease."""
    begun = task.placed_at if task.live and task.placed_at is not None else task.waiting_since
    return Work(
        id=task.id,
        number=job.number * MOST_REPLICAS,
        submitted=milliseconds(job.submitted_at),
        duration=None if task.expected is None else milliseconds(task.expected),
        priority=job.spec.priority,
        queue=job.spec.queue,
        deadline=None if job.deadline is None else milliseconds(job.deadline),
        since=milliseconds(begun),
        done=milliseconds(task.done),
        ran=milliseconds(task.ran),
        waited=milliseconds(task.waited) if task.live else 0,
        shape=task.request.shape(takes(task)),
        nodes=task.request.nodes,
        tenant=job.tenant,
        preemptible=preemptible(job, task),
        saved=saved(task),
        avoid=task.avoid,
        near=frozenset(other.node for other in job.tasks.values() if other.state == "succeeded"),
        room=frozenset() if task.live else frozenset(state.rooms.get(task.id, ())),
        gives_way=task.gives_way,
    )


def saved(task: Task) -> int:
    """When a running task last saved its work: at its start, if not since."""
    return milliseconds(task.saved_at or task.started_at or task.placed_at or 0.0)


def replica_works(state: State, wish: Wish, deployment: Deployment | None) -> Iterator[Work]:
    """The replicas that wait for a node; the first that is missing has the number of those that are there.

    Those that are spread wait one after the other, since where the next may go depends on where the last one went.
    """
    taken = frozenset(deployment.change.leases) | frozenset(deployment.vacating) if deployment else frozenset()
    first = wish.replicas - wish.missing
    for place in range(first, first + 1 if wish.spread else wish.replicas):
        id = f"deployment/{wish.name}/{place}"
        yield Work(
            id=id,
            number=wish.number * MOST_REPLICAS + 1 + place,
            submitted=milliseconds(wish.submitted_at),
            since=milliseconds(wish.submitted_at),
            priority=wish.priority,
            queue=wish.queue,
            shape=wish.request.shape(("serve",)),
            tenant=wish.tenant,
            preemptible=False,
            latency=True,
            spread=wish.spread,
            apart=taken,
            family=wish.name,
            room=frozenset(state.rooms.get(id, ())),
        )


def lease_work(deployment: Deployment, node: str, request: Request) -> Work:
    """A replica that holds a lease on a node (or still leaves it)."""
    change = deployment.change
    return Work(
        id=f"deployment/{deployment.name}@{node}",
        number=deployment.number * MOST_REPLICAS,
        submitted=0,
        priority=change.priority,
        queue=change.queue,
        shape=request.shape(("serve",)),
        tenant=change.tenant,
        preemptible=False,
        latency=True,
        spread=change.spread,
    )
