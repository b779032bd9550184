"""How jobs are shown to those who ask. Pure."""

import msgspec

from llmos.contracts.jobs import JobsRequested, JobView, TaskView
from llmos.contracts.tasks import KINDS
from llmos.errors import Problem
from llmos_scheduler.records import Job, State, Task, TurnedAway

LARGEST_LIST = 384 * 1024  # bytes: an answer is one message


def view_jobs(state: State, request: JobsRequested) -> list[JobView]:
    """Jobs without tasks and spec, the newest first: as many as were asked for and one message carries."""
    every: list[Job | TurnedAway] = [*state.jobs.values(), *state.turned_away.values()]
    every.sort(key=lambda job: job.submitted_at if isinstance(job, Job) else job.at, reverse=True)
    found: list[JobView] = []
    size = 0
    for job in every:
        if len(found) >= request.limit:
            break
        if request.tenant not in (None, job.tenant):
            continue
        view = view_job(job, whole=False)
        if request.state in (None, view.state):
            size += len(msgspec.json.encode(view))
            if size > LARGEST_LIST:
                break
            found.append(view)
    return found


def view_job(job: Job | TurnedAway, *, whole: bool = True) -> JobView:
    """One job; `whole` with its tasks and its spec."""
    if isinstance(job, TurnedAway):
        return JobView(
            job=job.job,
            name=job.name,
            tenant=job.tenant,
            queue="",
            state="rejected",
            priority=0,
            submitted_at=job.at,
            ended_at=job.at,
            faults=job.faults,
        )
    spec, export = job.spec, job.tasks["export"]
    return JobView(
        job=job.id,
        name=spec.name,
        tenant=spec.tenant,
        queue=spec.queue,
        state=job.state,
        priority=spec.priority,
        submitted_at=job.submitted_at,
        ended_at=job.ended_at,
        model=job.version.model if job.version else "",
        version=job.version.version if job.version else None,
        metrics=job.version.metrics if job.version else export.metrics if export.state == "refused" else {},
        tasks=[_view_task(job.tasks[kind]) for kind in KINDS if kind in job.tasks] if whole else [],
        spec=spec if whole else None,
        faults=[fault for task in job.tasks.values() for fault in task.faults],
        problem=job.problem or _last_problem(job),
        reasons=export.reasons,
        trace=_trace(job.traceparent),
    )


def _view_task(task: Task) -> TaskView:
    return TaskView(
        task=task.id,
        kind=task.kind,
        state=task.state,
        attempt=task.attempt,
        node=task.node,
        placed_at=task.placed_at,
        started_at=task.started_at,
        ended_at=task.ended_at,
        progress=task.progress,
        metrics=task.metrics,
        outputs=task.outputs,
        problem=task.problem,
    )


def _last_problem(job: Job) -> Problem | None:
    task = job.current
    return task.problem if task is not None and not job.ended else None


def _trace(traceparent: str) -> str:
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else ""
