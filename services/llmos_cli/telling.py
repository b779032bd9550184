"""What an event says, in one line for a person. Pure."""

from msgspec import Struct

from llmos.contracts import deployments, jobs, leader, models, nodes, queues, tasks
from llmos_cli.printing import duration, number, numbers, size


def tell(event: Struct) -> str:
    """One line about a fact of a job; empty for one that says nothing new to a person."""
    return " ".join((_tell_job(event) or _tell_model(event) or _tell_task(event) or _tell_cluster(event)).split())


def _tell_job(event: Struct) -> str:
    match event:
        case jobs.JobAdmitted():
            return f"admitted: {event.spec.name}, priority {event.spec.priority}"
        case jobs.JobRejected():
            return f"rejected: {len(event.faults)} fault{'s' * (len(event.faults) != 1)}"
        case jobs.JobCancelling():
            return f"cancelling{f', asked by {event.requested_by}' if event.requested_by else ''}"
        case jobs.JobCancelled():
            return "cancelled"
        case jobs.JobFailed():
            return f"failed: {event.problem.message}"
        case jobs.JobRefused():
            return f"refused: {'; '.join(event.reasons)}"
        case jobs.JobSucceeded():
            return f"succeeded: {event.model} version {event.version} is registered"
        case jobs.JobDeployed():
            return f"deployed: {event.model} version {event.version} on {', '.join(event.nodes)}"
    return ""


def _tell_model(event: Struct) -> str:
    match event:
        case models.ModelExported():
            return f"exported: {event.version.model} version {event.version.version}, {numbers(event.version.metrics)}"
        case models.ModelRefused():
            return f"gate: {'; '.join(event.reasons)}"
        case deployments.DeploymentChanged():
            return f"deploying {event.version.model} version {event.version.version} to {', '.join(event.nodes)}"
        case deployments.ReplicaReady():
            return f"replica on {event.node} is ready after {event.load_s:.1f} s"
        case deployments.ReplicaFailed():
            return f"replica on {event.node} failed: {event.problem.message}"
    return ""


def _tell_task(event: Struct) -> str:
    match event:
        case tasks.TaskPlaced():
            return f"{event.kind}: placed on {event.node}{f', attempt {event.attempt}' if event.attempt > 1 else ''}"
        case tasks.TaskStarted():
            where = f", resumed at step {event.resumed_step}" if event.resumed_step is not None else ""
            return f"{event.kind}: started on {event.node}{where}"
        case tasks.TaskProgressed():
            return tell_progress(event)
        case tasks.TaskSucceeded():
            metrics = f", {numbers(event.metrics)}" if event.metrics else ""
            return f"{event.kind}: done{metrics}"
        case tasks.TaskFailed():
            return f"{event.kind}: failed: {event.problem.message}{'' if event.retryable else ' (for good)'}"
        case tasks.TaskRejected():
            return f"check: {len(event.faults)} fault{'s' * (len(event.faults) != 1)}"
        case tasks.TaskRefused():
            return f"export: refused: {'; '.join(event.reasons)}"
        case tasks.TaskPreempting():
            whom = f" to {event.by}" if event.by else ""
            return f"{event.kind}: gives way{whom}{f': {event.reason}' if event.reason else ''}"
        case tasks.TaskCancelled():
            return f"{event.kind}: stopped"
        case tasks.TaskLost():
            return f"{event.kind}: lost: {event.reason}"
    return ""


def _tell_cluster(event: Struct) -> str:
    match event:
        case nodes.NodeInventoried():
            has = event.inventory
            return f"node {event.node}: {has.cpus:g} cpus, {size(has.memory)}, {len(has.gpus)} GPUs"
        case nodes.WorkerJoined():
            return f"node {event.node}: {event.service} joined"
        case nodes.WorkerLost():
            return f"node {event.node}: {event.service} is lost"
        case nodes.NodeLost():
            return f"node {event.node}: lost"
        case nodes.NodeCordoned():
            why = f": {event.reason}" if event.reason else ""
            return f"node {event.node}: {'draining' if event.drain else 'cordoned'}{_by(event.by)}{why}"
        case nodes.NodeUncordoned():
            return f"node {event.node}: takes work again{_by(event.by)}"
        case queues.QueuesChanged():
            return f"queues set{_by(event.by)}: {', '.join(queue.name for queue in event.queues) or 'none'}"
        case queues.ReservationMade():
            return f"reservation {event.reservation}: {', '.join(event.nodes)}{_by(event.by)}"
        case queues.ReservationEnded():
            return f"reservation {event.reservation}: ended{_by(event.by)}"
        case leader.LeaderElected():
            return f"scheduler {event.instance} leads, term {event.term}"
    return ""


def _by(whom: str) -> str:
    return f" by {whom}" if whom else ""


def tell_progress(event: tasks.TaskProgressed) -> str:
    """State, step, loss, accuracy and the time that is left."""
    parts = [f"{event.kind}: {event.phase}" if event.phase != event.kind else event.kind]
    parts += [f"step {event.step}/{event.steps}"] if event.steps else []
    parts += [f"{name} {number(event.metrics[name])}" for name in ("loss", "accuracy") if name in event.metrics]
    parts += [f"{duration(event.eta)} left"] if event.eta is not None else []
    return ", ".join(parts)
