"""Why a job waits, in sentences: what it needs, what each node lacks, who is ahead, and what would let it run. Pure."""

from llmos.contracts.jobs import Explanation
from llmos.sizes import format_bytes
from llmos_scheduler import rollout
from llmos_scheduler.lifecycle import stopping
from llmos_scheduler.placement import Room, capacity, rooms, waiting_tasks
from llmos_scheduler.records import Job, Node, State, Task, TurnedAway


def explain(state: State, job: Job | TurnedAway, now: float) -> Explanation:
    """What the job does or waits for at `now`, judged by the same rules as `decide`."""
    if isinstance(job, TurnedAway):
        return Explanation(job.job, "rejected", "The job was not admitted.", [str(fault) for fault in job.faults])
    task = job.current
    if job.ended:
        summary, reasons = _ending(job)
        return Explanation(job.id, job.state, summary, reasons)
    stop = stopping(job, now)
    if stop is not None:
        what = f"{task.kind} on {task.node} has been told to stop" if task and task.live else "it ends now"
        return Explanation(job.id, job.state, f"{_sentence(stop.why)}: {what}.")
    if task is None:
        waits = rollout.obstacle(state, job)
        remedies = ["Start an inferencer on another node."] if "can serve" in waits else []
        return Explanation(job.id, job.state, f"{_sentence(waits)}.", remedies=remedies)
    if task.live:
        return Explanation(job.id, job.state, _working(task, now))
    if task.state != "waiting":
        return Explanation(job.id, job.state, f"{_sentence(task.kind)} ended as {task.state}; the job ends now.")
    if task.not_before > now:
        why = task.problem.message if task.problem else "the worker gave it back"
        summary = f"{_sentence(task.kind)} failed on {task.node} and is tried again in {task.not_before - now:.0f} s."
        again = f"attempt {task.failures + 1} of {job.spec.retry.max_attempts}"
        return Explanation(job.id, job.state, summary, [f"{again}; the last one ended because: {why}"])
    return _waiting(state, job, task, now)


def _waiting(state: State, job: Job, task: Task, now: float) -> Explanation:
    queue = [other.id for other, _ in waiting_tasks(state, now)]
    ahead = queue[: queue.index(job.id)] if job.id in queue else []
    free = rooms(state)
    obstacles = {name: _obstacle(state, node, free.get(name), task) for name, node in sorted(state.nodes.items())}
    reasons = [f"{name}: {obstacle}" for name, obstacle in obstacles.items() if obstacle]
    open_nodes = [name for name, obstacle in obstacles.items() if not obstacle]
    if open_nodes:
        first = f" after {len(ahead)} job{'s' * (len(ahead) > 1)} ahead of it" if ahead else " now"
        return Explanation(
            job.id, job.state, f"{_sentence(task.kind)} can run on {', '.join(open_nodes)}{first}.", reasons, ahead
        )
    if not any(node.runs(task.kind) for node in state.nodes.values()):
        service = "exporter" if task.kind == "export" else "trainer"
        summary = f"No living node takes {task.kind} work."
        return Explanation(job.id, job.state, summary, reasons, ahead, [f"Start a {service} on a node."])
    if task.kind == "check":
        summary = "Check waits for a place: every node that checks data is busy with other checks."
        return Explanation(job.id, job.state, summary, reasons, ahead)
    summary = f"{_sentence(task.kind)} needs {task.request} and no node has that free."
    return Explanation(job.id, job.state, summary, reasons, ahead, _remedies(state, job, task))


def _obstacle(state: State, node: Node, room: Room | None, task: Task) -> str:
    """Why the task can't start on a node now; empty if it can."""
    if not node.alive or room is None:
        return "is away"
    if not node.runs(task.kind):
        return f"no worker takes {task.kind}"
    if node.inventory is None:
        return "its hardware is not known; is a hw-agent running there?"
    if room.fits(task.kind, task.request):
        return ""
    if task.kind == "check":
        return "its places for checks are taken"
    wants, whole = task.request, capacity(node)
    lacks = []
    if wants.cpus > room.cpus:
        lacks.append(f"{wants.cpus:g} cpus, {max(0.0, round(room.cpus, 2)):g} of {whole.cpus:g} are free")
    if wants.memory > room.memory:
        free = f"{format_bytes(max(0, room.memory))} of {format_bytes(whole.memory)}"
        lacks.append(f"{format_bytes(wants.memory)} of memory, {free} are free")
    if wants.gpus > len(room.devices(wants)):
        size = f" of {format_bytes(wants.gpu_memory)}" if wants.gpu_memory else ""
        lacks.append(f"{wants.gpus} GPUs{size}, {len(room.devices(wants))} of {len(whole.devices(wants))} are free")
    holders = [other.id for other in state.live_tasks() if other.node == node.name and other.kind != "check"]
    held = f"; held by {', '.join(holders)}" if holders else ""
    return f"needs {'; '.join(lacks)}{held}"


def _remedies(state: State, job: Job, task: Task) -> list[str]:
    """What would let it run: waiting if some node is large enough, otherwise a smaller request or a larger node."""
    wants = task.request
    nodes = [capacity(node) for node in state.nodes.values() if node.runs(task.kind) and node.inventory]
    if any(room.fits(task.kind, wants) for room in nodes):
        return ["It starts when enough of that is free again; a higher priority lets it go first."]
    remedies = [f"Add a node with {wants}."]
    for field, want, most in (
        ("cpus", wants.cpus, max((room.cpus for room in nodes), default=0)),
        ("memory", wants.memory, max((room.memory for room in nodes), default=0)),
        ("gpus", wants.gpus, max((len(room.devices(wants)) for room in nodes), default=0)),
    ):
        if want > most:
            text = format_bytes(int(most)) if field == "memory" else f"{most:g}"
            remedies.append(f"Ask for less: resources.{field} of at most {text}.")
    return remedies


def _working(task: Task, now: float) -> str:
    if task.state == "placed":
        waited = now - (task.placed_at or now)
        return f"{_sentence(task.kind)} was given to {task.node} {waited:.0f} s ago and is about to start."
    done = task.progress
    step = f": step {done['step']:g} of {done['steps']:g}" if done.get("steps") else ""
    left = f", about {done['eta']:.0f} s left" if "eta" in done else ""
    return f"{_sentence(task.kind)} runs on {task.node}{step}{left}."


def _ending(job: Job) -> tuple[str, list[str]]:
    faults = [str(fault) for task in job.tasks.values() for fault in task.faults]
    reasons = faults or job.tasks["export"].reasons or ([job.problem.message] if job.problem else [])
    return f"The job has ended: {job.state}.", reasons


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
