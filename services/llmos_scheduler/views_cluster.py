"""How nodes, queues and reservations are shown to those who ask. Pure."""

from collections.abc import Iterator

from llmos.contracts.nodes import NodeView
from llmos.contracts.queues import QueueList, QueueSettings, QueueView, ReservationMade, ReservationView
from llmos_scheduler.cluster import WHOLE
from llmos_scheduler.records import Node, State
from llmos_scheduler.resources import Request


def view_nodes(state: State, now: float) -> list[NodeView]:
    """Every node that was ever heard of, sorted by name, with what is leased of it (checks beside)."""
    held: dict[str, list[tuple[str, Request | None, list[str]]]] = {}
    for task in state.live_tasks():
        for member in task.members:
            request = task.request if task.kind != "check" else None
            held.setdefault(member.node, []).append((task.id, request, list(member.devices)))
    serving: dict[str, list[str]] = {}
    for name, node, request, devices in _replicas(state):
        serving.setdefault(node, []).append(name)
        held.setdefault(node, []).append(("", request, devices))
    reserved: dict[str, list[str]] = {}
    for made in _lasting(state, now):
        for name in made.nodes:
            reserved.setdefault(name, []).append(made.reservation)
    return [
        view_node(node, held.get(node.name, []), serving.get(node.name, []), reserved.get(node.name, []))
        for node in sorted(state.nodes.values(), key=lambda node: node.name)
    ]


def view_node(
    node: Node, held: list[tuple[str, Request | None, list[str]]], replicas: list[str], reserved: list[str]
) -> NodeView:
    """One node. `held`: task (empty: a replica), its request (`None`: a check), and the ids of its GPUs here."""
    milli: dict[str, int] = {}
    for _, request, devices in held:
        for device in devices:
            milli[device] = milli.get(device, 0) + (request.gpu_milli if request else WHOLE)
    return NodeView(
        node=node.name,
        alive=node.alive,
        inventory=node.inventory,
        services=sorted(worker.service for worker in node.workers.values() if worker.alive),
        cpus_leased=sum(request.cpus for _, request, _ in held if request),
        memory_leased=sum(request.memory for _, request, _ in held if request),
        gpus_leased=sorted(milli),
        tasks=[task for task, _, _ in held if task],
        gpu_milli_leased=milli,
        replicas=sorted(replicas),
        cordoned=node.cordoned,
        draining=node.draining,
        reason=node.reason,
        reservations=reserved,
    )


def _replicas(state: State) -> Iterator[tuple[str, str, Request, list[str]]]:
    """Deployment, node, amounts and GPUs of every replica that has a lease (or, without amounts, just serves)."""
    for deployment in state.deployments.values():
        request = deployment.request or Request()
        for node in deployment.replicas:
            yield deployment.name, node, request, list(deployment.change.leases.get(node, ()))
        for node, leaving in deployment.vacating.items():
            yield deployment.name, node, leaving.request, list(leaving.devices)


def view_queues(state: State, now: float) -> QueueList:
    """Every queue that was set or has jobs, and those above them, by name: what each and those below it hold."""
    gpus: dict[str, float] = {}
    average: dict[str, float] = {}
    running: dict[str, int] = {}
    waiting: dict[str, int] = {}

    def count(found: dict[str, float] | dict[str, int], queue: str, amount: float) -> None:
        for path in upward(queue):
            found[path] = found.get(path, 0) + amount  # type: ignore[assignment]

    for name, use in state.usage.uses.items():
        count(gpus, name, use.held[0] / WHOLE)
    for name, past in state.usage.averages(int(now * 1000)).items():
        count(average, name, past[0] / WHOLE)
    for job in state.living_jobs():
        task = job.current
        if task is not None and task.kind != "check":
            count(running if task.live else waiting, job.spec.queue, 1)
    known = {queue.name: queue for queue in state.queues}
    busy = {name for found in (running, waiting) for name in found} | {name for name, held in gpus.items() if held}
    names = {path for name in known.keys() | busy for path in upward(name)}
    views = []
    for name in sorted(names):
        queue = known.get(name, QueueSettings(name))
        views.append(
            QueueView(
                name=name,
                policy=queue.policy,
                weight=queue.weight,
                quota=queue.quota,
                limit=queue.limit,
                gpus=round(gpus.get(name, 0.0), 3),
                average=round(average.get(name, 0.0), 3),
                running=running.get(name, 0),
                waiting=waiting.get(name, 0),
            )
        )
    return QueueList(views)


def upward(queue: str) -> list[str]:
    """The queue and those above it."""
    parts = queue.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def view_reservations(state: State, now: float) -> list[ReservationView]:
    """Those that have not ended, by start."""
    return [view_reservation(made, now) for made in sorted(_lasting(state, now), key=lambda made: made.start)]


def view_reservation(made: ReservationMade, now: float) -> ReservationView:
    """One reservation."""
    active = made.start <= now and (made.end is None or now < made.end)
    return ReservationView(made.reservation, made.nodes, made.queue, made.tenant, made.start, made.end, made.by, active)


def _lasting(state: State, now: float) -> list[ReservationMade]:
    return [made for made in state.reservations.values() if made.end is None or now < made.end]
