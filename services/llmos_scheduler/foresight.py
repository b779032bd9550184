"""What would become of a job if it were submitted now (`llmos plan`). Pure: nothing is left behind."""

from msgspec.structs import replace

from llmos.contracts.jobs import Explanation, JobSpec
from llmos.contracts.tasks import Kind, kinds_of
from llmos_scheduler.brain import Brain
from llmos_scheduler.explain import waiting
from llmos_scheduler.records import Job, State, Task
from llmos_scheduler.resources import request_for
from llmos_scheduler.works import milliseconds, task_work

FORESEEN = "(planned)"  # the id of a job that nobody submitted


def foresee(state: State, brain: Brain, spec: JobSpec, now: float) -> Explanation:
    """The answer for the task that holds the job's resources: its training, or its export where nothing is trained.

    The check before it is taken to be over. Raises `Rejected` for amounts that can't be read.
    """
    kind: Kind = "train" if "train" in kinds_of(spec) else "export"
    job = Job(FORESEEN, spec, state.admitted + 1, now)
    task = Task(f"{FORESEEN}-{kind}", FORESEEN, kind, request_for(kind, spec), "waiting", waiting_since=now)
    task.expected = spec.duration or state.durations.expect(spec, kind)
    job.tasks = {kind: task}
    verdict = brain.planner.what_if(task_work(state, job, task), milliseconds(now))
    return replace(waiting(state, brain, job, task, verdict, now, would=True), job="")
