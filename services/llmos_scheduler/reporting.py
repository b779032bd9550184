"""What the scheduler says of the facts it hears: metrics for the meters, one line each in the log."""

from typing import Any

from msgspec import Struct

from llmos.contracts import deployments, jobs, leader, nodes, queues, tasks
from llmos.telemetry import Telemetry
from llmos_scheduler.records import State, Task

_TASK_ENDS: dict[type[Struct], str] = {
    tasks.TaskSucceeded: "succeeded",
    tasks.TaskFailed: "failed",
    tasks.TaskRejected: "rejected",
    tasks.TaskRefused: "refused",
    tasks.TaskCancelled: "cancelled",
    tasks.TaskLost: "lost",
}
_JOB_ENDS = (
    jobs.JobRejected, jobs.JobCancelled, jobs.JobFailed, jobs.JobRefused, jobs.JobSucceeded, jobs.JobDeployed,
)  # fmt: skip
_OTHERS = (
    nodes.WorkerJoined, nodes.WorkerLost, nodes.NodeLost, nodes.NodeCordoned, nodes.NodeUncordoned,
    queues.QueuesChanged, queues.ReservationMade, queues.ReservationEnded, leader.LeaderElected,
    deployments.DeploymentChanged,
)  # fmt: skip


class Reporting:
    """Hears each event after `apply`; replayed history is not reported again."""

    def __init__(self, telemetry: Telemetry, log: Any) -> None:
        self._telemetry = telemetry
        self._log = log

    def on_event(self, state: State, event: Struct, at: float) -> None:
        if isinstance(event, jobs.JobAdmitted):
            self._telemetry.count("llmos.jobs.submitted", outcome="admitted")
            self._log.info("job admitted", job=event.job, tenant=event.spec.tenant, priority=event.spec.priority)
        elif isinstance(event, tasks.TaskPlaced):
            self._on_placed(state, event, at)
        elif isinstance(event, tasks.TaskPreempting):
            self._on_preempting(event)
        elif type(event) in _TASK_ENDS:
            self._on_task_ended(state, event, _TASK_ENDS[type(event)], at)
        elif isinstance(event, _JOB_ENDS):
            self._on_job_ended(state, event, at)
        elif isinstance(event, _OTHERS):
            self._log.info(type(event).__name__, **_short(event))

    def _on_placed(self, state: State, event: tasks.TaskPlaced, at: float) -> None:
        task = _task(state, event.job, event.task)
        if task is None or task.lease != event.lease:
            return
        wait = max(0.0, at - max(task.waiting_since, task.not_before))
        self._telemetry.record("llmos.task.queue_wait", wait, kind=task.kind)
        self._log.info("task placed", task=task.id, node=task.node, lease=task.lease, attempt=task.attempt)

    def _on_preempting(self, event: tasks.TaskPreempting) -> None:
        whom = "nobody" if not event.by else "deployment" if event.by.startswith("deployment/") else "job"
        self._telemetry.count("llmos.task.preempted", kind=event.kind, by=whom)
        self._log.info("task gives way", task=event.task, node=event.node, by=event.by, why=event.reason)

    def _on_task_ended(self, state: State, event: Any, outcome: str, at: float) -> None:
        task = _task(state, event.job, event.task)
        if task is None or task.lease != event.lease or task.ended_at != at:
            return
        self._telemetry.record(
            "llmos.task.duration", max(0.0, at - (task.placed_at or at)), kind=task.kind, outcome=outcome
        )
        why = {"why": task.problem.message} if task.problem else {}
        self._log.info(f"task {outcome}", task=task.id, node=task.node, lease=task.lease, **why)

    def _on_job_ended(self, state: State, event: Any, at: float) -> None:
        job = state.jobs.get(event.job)
        if job is None:
            self._telemetry.count("llmos.jobs.submitted", outcome="rejected")
            self._log.info("job rejected", job=event.job, faults=[str(fault) for fault in event.faults[:5]])
        elif job.ended_at == at:
            self._telemetry.count("llmos.jobs.ended", state=job.state)
            self._telemetry.record("llmos.job.duration", max(0.0, at - job.submitted_at), state=job.state)
            why = {"why": job.problem.message} if job.problem else {}
            self._log.info(f"job {job.state}", job=job.id, **why)


def _task(state: State, job: str, task: str) -> Task | None:
    known = state.jobs.get(job)
    return next((item for item in known.tasks.values() if item.id == task), None) if known else None


def _short(event: Struct) -> dict[str, Any]:
    values = {name: getattr(event, name) for name in event.__struct_fields__}
    return {name: value for name, value in values.items() if isinstance(value, str | int | list)}
