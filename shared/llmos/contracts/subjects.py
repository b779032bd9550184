"""Every subject, stream, consumer and bucket of llmos, in one table; and which type travels on which subject."""

from functools import cache
from operator import attrgetter
from typing import Any, Literal

from msgspec import Struct

from llmos.contracts import audit, dead, deployments, inference, jobs, keys, leader, models, nodes, queues, tasks
from llmos.errors import Rejected
from llmos.ids import is_token

SYSTEM = "system"  # the tenant of facts that belong to no tenant
DAY = 86_400.0


class StreamSpec(Struct, frozen=True):
    """One JetStream stream. Times in seconds, sizes in bytes; 0 means no limit."""

    name: str
    subjects: tuple[str, ...]
    retention: Literal["limits", "workqueue"]
    storage: Literal["file", "memory"]
    max_age: float = 0.0
    max_bytes: int = 0
    max_msgs_per_subject: int = 0
    max_consumers: int = -1
    discard: Literal["old", "new"] = "old"
    duplicate_window: float = 120.0
    compression: Literal["none", "s2"] = "none"
    message_ttl: bool = False


STREAMS: dict[str, StreamSpec] = {
    spec.name: spec
    for spec in (
        StreamSpec(
            "JOBS", ("llmos.job.submit.*.*",), "workqueue", "file",
            discard="new", max_bytes=1 << 30, duplicate_window=600,
        ),
        StreamSpec("WORK", ("llmos.work.*.*.*",), "workqueue", "file", duplicate_window=600),
        StreamSpec(
            "INFER", ("llmos.infer.*.*.*",), "workqueue", "file",
            discard="new", max_age=600, max_bytes=1 << 30, message_ttl=True,
        ),
        StreamSpec("CALL", ("llmos.call.*.*.*",), "workqueue", "memory", discard="new", max_age=60, max_bytes=64 << 20),
        StreamSpec("REPLY", ("llmos.reply.*.*",), "limits", "memory", max_age=600, max_bytes=256 << 20),
        StreamSpec(
            "EVENTS", ("llmos.evt.*.*.*.*",), "limits", "file",
            max_age=30 * DAY, max_consumers=10_000, compression="s2", duplicate_window=600,
        ),
        StreamSpec("CONTROL", ("llmos.ctl.*.*",), "limits", "memory", max_age=3600),
        StreamSpec("DEPLOY", ("llmos.deploy.*.*",), "limits", "file", max_msgs_per_subject=1),
        StreamSpec("DEAD", ("llmos.dead.*.*",), "limits", "file", max_age=30 * DAY),
    )
}  # fmt: skip


class BucketSpec(Struct, frozen=True):
    """One key-value bucket; `ttl` in seconds, 0 keeps for ever."""

    name: str
    ttl: float = 0.0
    history: int = 1


BUCKETS: dict[str, BucketSpec] = {
    spec.name: spec
    for spec in (
        BucketSpec("state"),
        BucketSpec("lease", ttl=15.0),
        BucketSpec("nodes", ttl=30.0),
        BucketSpec("models"),
    )
}  # fmt: skip


class Row(Struct, frozen=True):
    """One subject: its pattern, the type of its messages, the stream that keeps it, and the `ce-type`."""

    pattern: str
    type: type[Struct]
    stream: str
    ce_type: str
    id: str = ""  # attribute path of the id token, for events; `=word` is that word
    tenant: str = ""  # attribute path of the tenant token, for events; empty: `system`


def _event(noun: str, fact: str, kind: type[Struct], id_path: str, tenant_path: str = "tenant") -> Row:
    return Row(f"llmos.evt.{noun}.{fact}.*.*", kind, "EVENTS", f"llmos.{noun}.{fact}.v1", id_path, tenant_path)


EVENTS: tuple[Row, ...] = (
    _event("job", "admitted", jobs.JobAdmitted, "job", "spec.tenant"),
    _event("job", "rejected", jobs.JobRejected, "job"),
    _event("job", "cancelling", jobs.JobCancelling, "job"),
    _event("job", "cancelled", jobs.JobCancelled, "job"),
    _event("job", "failed", jobs.JobFailed, "job"),
    _event("job", "refused", jobs.JobRefused, "job"),
    _event("job", "succeeded", jobs.JobSucceeded, "job"),
    _event("job", "deployed", jobs.JobDeployed, "job"),
    _event("task", "placed", tasks.TaskPlaced, "task"),
    _event("task", "started", tasks.TaskStarted, "task"),
    _event("task", "progressed", tasks.TaskProgressed, "task"),
    _event("task", "checkpointed", tasks.TaskCheckpointed, "task"),
    _event("task", "succeeded", tasks.TaskSucceeded, "task"),
    _event("task", "failed", tasks.TaskFailed, "task"),
    _event("task", "rejected", tasks.TaskRejected, "task"),
    _event("task", "refused", tasks.TaskRefused, "task"),
    _event("task", "preempting", tasks.TaskPreempting, "task"),
    _event("task", "cancelled", tasks.TaskCancelled, "task"),
    _event("task", "lost", tasks.TaskLost, "task"),
    _event("node", "inventoried", nodes.NodeInventoried, "node", ""),
    _event("node", "lost", nodes.NodeLost, "node", ""),
    _event("node", "cordoned", nodes.NodeCordoned, "node", ""),
    _event("node", "uncordoned", nodes.NodeUncordoned, "node", ""),
    _event("worker", "joined", nodes.WorkerJoined, "node", ""),
    _event("worker", "lost", nodes.WorkerLost, "node", ""),
    _event("model", "exported", models.ModelExported, "version.model", "version.tenant"),
    _event("model", "refused", models.ModelRefused, "model"),
    _event("deployment", "changed", deployments.DeploymentChanged, "deployment"),
    _event("replica", "ready", deployments.ReplicaReady, "deployment"),
    _event("replica", "failed", deployments.ReplicaFailed, "deployment"),
    _event("replica", "unloaded", deployments.ReplicaUnloaded, "deployment"),
    _event("queues", "changed", queues.QueuesChanged, "=scheduler", ""),
    _event("reservation", "made", queues.ReservationMade, "reservation", ""),
    _event("reservation", "ended", queues.ReservationEnded, "reservation", ""),
    _event("leader", "elected", leader.LeaderElected, "=scheduler", ""),
    _event("inference", "metered", inference.InferenceMetered, "deployment"),
    _event("key", "created", keys.KeyCreated, "tenant"),
    _event("key", "released", keys.KeyReleased, "subject"),
    _event("key", "denied", keys.KeyDenied, "subject"),
    _event("manifest", "signed", keys.ManifestSigned, "statement.model", "statement.tenant"),
)

COMMANDS: tuple[Row, ...] = (
    Row("llmos.job.submit.*.*", jobs.JobSubmitted, "JOBS", "llmos.job.submitted.v1"),
    Row("llmos.work.*.*.*", tasks.TaskAssigned, "WORK", "llmos.task.assigned.v1"),
    Row("llmos.infer.*.*.*", inference.InferenceRequested, "INFER", "llmos.inference.requested.v1"),
    Row("llmos.ctl.stop.*", tasks.TaskStopRequested, "CONTROL", "llmos.task.stop-requested.v1"),
    Row(
        "llmos.ctl.cancel.*",
        inference.InferenceCancelRequested,
        "CONTROL",
        "llmos.inference.cancel-requested.v1",
    ),
    Row("llmos.ctl.keep.*", inference.ClientPresent, "CONTROL", "llmos.client.present.v1"),
    Row("llmos.deploy.*.*", deployments.ReplicaAssigned, "DEPLOY", "llmos.replica.assigned.v1"),
    Row("llmos.dead.*.*", dead.DeadLetter, "DEAD", "llmos.dead.letter.v1"),
)


class Call(Struct, frozen=True):
    """A question to a service: `llmos.call.<service>.<verb>.<id>`, answered on `llmos.reply.<client>.<id>`."""

    service: str
    verb: str
    request: type[Struct]
    answer: type[Struct]

    @property
    def pattern(self) -> str:
        return f"llmos.call.{self.service}.{self.verb}.*"

    @property
    def ce_type(self) -> str:
        return f"llmos.call.{self.service}.{self.verb}.v1"


CALLS: tuple[Call, ...] = (
    Call("scheduler", "jobs", jobs.JobsRequested, jobs.JobList),
    Call("scheduler", "job", jobs.JobRequested, jobs.JobView),
    Call("scheduler", "explain", jobs.ExplainRequested, jobs.Explanation),
    Call("scheduler", "cancel", jobs.CancelRequested, jobs.JobView),
    Call("scheduler", "nodes", nodes.NodesRequested, nodes.NodeList),
    Call("scheduler", "plan", jobs.PlanRequested, jobs.Explanation),
    Call("scheduler", "cordon", nodes.CordonRequested, nodes.NodeView),
    Call("scheduler", "uncordon", nodes.UncordonRequested, nodes.NodeView),
    Call("scheduler", "queues", queues.QueuesRequested, queues.QueueList),
    Call("scheduler", "set_queues", queues.SetQueuesRequested, queues.QueueList),
    Call("scheduler", "reserve", queues.ReserveRequested, queues.ReservationView),
    Call("scheduler", "unreserve", queues.UnreserveRequested, queues.ReservationView),
    Call("scheduler", "reservations", queues.ReservationsRequested, queues.ReservationList),
    Call("scheduler", "shift", deployments.ShiftRequested, deployments.DeploymentChanged),
    Call("scheduler", "rollback", deployments.RollbackRequested, deployments.DeploymentChanged),
    Call("vault", "sign", keys.SignRequested, keys.SignAnswered),
    Call("vault", "key", keys.KeyRequested, keys.KeyAnswered),
    Call("vault", "rotate", keys.RotateRequested, keys.RotateAnswered),
    Call("vault", "trust", keys.TrustRequested, keys.TrustAnswered),
    Call("audit", "checkpoint", audit.CheckpointRequested, audit.CheckpointAnswered),
    Call("audit", "prove", audit.ProofRequested, audit.ProofAnswered),
    Call("audit", "entries", audit.EntriesRequested, audit.EntriesAnswered),
)

PROBLEM_TYPE = "llmos.problem.v1"  # the ce-type of a reply that is a `Problem`
REPLIES: tuple[Row, ...] = (
    Row("llmos.reply.*.*", inference.InferenceAnswered, "REPLY", "llmos.inference.answered.v1"),
    Row("llmos.reply.*.*", inference.InferenceDelta, "REPLY", "llmos.inference.delta.v1"),
    *(Row("llmos.reply.*.*", call.answer, "REPLY", f"llmos.reply.{call.service}.{call.verb}.v1") for call in CALLS),
)

_EVENT_BY_TYPE = {row.type: row for row in EVENTS}
_EVENT_BY_FACT = {(noun, fact): row.type for row in EVENTS for noun, fact in [row.pattern.split(".")[2:4]]}


def event_row(event: Struct | type[Struct]) -> Row:
    """The table's row for an event or its class. Raises `KeyError` for what is no event."""
    return _EVENT_BY_TYPE[event if isinstance(event, type) else type(event)]


def event_subject(event: Struct) -> str:
    """`llmos.evt.<noun>.<fact>.<tenant>.<id>` for an event."""
    row = event_row(event)
    tenant = str(_path(row.tenant)(event)) if row.tenant else SYSTEM
    return row.pattern.replace("*.*", f"{token(tenant)}.{token(str(_path(row.id)(event)))}")


def event_type(subject: str) -> type[Struct] | None:
    """The class of what travels on an event subject; `None` for a fact that this version does not know."""
    parts = subject.split(".")
    if len(parts) != 6 or parts[0] != "llmos" or parts[1] != "evt":
        return None
    return _EVENT_BY_FACT.get((parts[2], parts[3]))


def event_filter(kind: type[Struct], *, tenant: str = "*", id: str = "*") -> str:
    """The filter subject that selects one fact."""
    return event_row(kind).pattern.replace("*.*", f"{tenant}.{id}")


def find_call(service: str, verb: str) -> Call:
    """The table's row for a call. Raises `KeyError`."""
    return next((call for call in CALLS if (call.service, call.verb) == (service, verb)), None) or _unknown(
        service, verb
    )


def _unknown(service: str, verb: str) -> Call:
    raise KeyError(f"no call {service}.{verb} in the table")


@cache
def _path(path: str) -> Any:
    return attrgetter(path) if not path.startswith("=") else lambda _event: path[1:]


def token(text: str) -> str:
    """`text` if it may be one token of a subject. Raises `Rejected`."""
    if not is_token(text):
        raise Rejected(
            f"{text[:64]!r} can't be part of a subject",
            remedy="Use 1 to 128 letters, digits, '_' and '-'.",
        )
    return text


def job_submit(tenant: str, job: str) -> str:
    return f"llmos.job.submit.{token(tenant)}.{token(job)}"


def work(kind: str, node: str, task: str) -> str:
    return f"llmos.work.{token(kind)}.{token(node)}.{token(task)}"


def work_consumer(kind: str, node: str) -> tuple[str, str]:
    """Durable name and filter of the WORK consumer of one kind on one node."""
    return f"{token(kind)}-{token(node)}", f"llmos.work.{kind}.{node}.*"


def infer(model: str, request: str, klass: str = "interactive") -> str:
    return f"llmos.infer.{token(model)}.{token(klass)}.{token(request)}"


def infer_consumer(model: str, klass: str) -> tuple[str, str]:
    """Durable name and filter of the INFER consumer of one deployment and class."""
    return f"{token(model)}-{token(klass)}", f"llmos.infer.{model}.{klass}.*"


def call(service: str, verb: str, request: str) -> str:
    return f"llmos.call.{token(service)}.{token(verb)}.{token(request)}"


def reply(client: str, request: str) -> str:
    return f"llmos.reply.{token(client)}.{token(request)}"


def control_stop(task: str) -> str:
    return f"llmos.ctl.stop.{token(task)}"


def control_cancel(request: str) -> str:
    return f"llmos.ctl.cancel.{token(request)}"


def control_keep(client: str) -> str:
    return f"llmos.ctl.keep.{token(client)}"


def deploy(node: str, deployment: str) -> str:
    return f"llmos.deploy.{token(node)}.{token(deployment)}"


def dead_letter(stream: str, consumer: str) -> str:
    return f"llmos.dead.{token(stream)}.{token(consumer)}"
