"""Jobs: the spec that anybody may publish, and the facts of a job's life."""

from datetime import datetime
from typing import Any, Literal

from msgspec import Struct, field

from llmos.errors import Problem

# The enum is open on the wire; what a stack can run is checked at admission.
TASKS = (
    "text-classification", "token-classification", "question-answering", "embeddings", "text-generation",
    "translation", "summarisation", "image-classification", "audio-classification", "speech-recognition",
)  # fmt: skip
TRAINED_TASKS = ("text-classification",)  # the others are exported as they come: `train.method: none`
# The columns of a row, by task. `data.text` and `data.label` name those two, `data.columns` any.
COLUMNS: dict[str, tuple[str, ...]] = {
    "text-classification": ("text", "label"),
    "token-classification": ("tokens", "tags"),
    "question-answering": ("question", "context", "answers"),
    "embeddings": ("text", "pair", "score"),
    "text-generation": ("text",),
    "translation": ("source", "target"),
    "summarisation": ("source", "target"),
    "image-classification": ("image", "label"),
    "audio-classification": ("audio", "label"),
    "speech-recognition": ("audio", "text"),
}
# What an exported model is measured by on the test split, by task (`f1`: the macro average, of entities, or of words;
# `accuracy`, `loss` and `perplexity` of text-generation are of the next token).
QUALITY: dict[str, tuple[str, ...]] = {
    "text-classification": ("accuracy", "f1", "loss"),
    "token-classification": ("accuracy", "f1"),
    "question-answering": ("exact_match", "f1"),
    "embeddings": ("spearman", "pearson"),
    "text-generation": ("perplexity", "loss", "accuracy"),
    "translation": ("bleu", "chrf"),
    "summarisation": ("rouge1", "rouge2", "rougeL"),
    "image-classification": ("accuracy", "f1", "loss"),
    "audio-classification": ("accuracy", "f1", "loss"),
    "speech-recognition": ("wer", "cer"),
}
# And whatever its task: the median time of one answer (ms), the artifact's bytes, how near its answers (share) and
# numbers are to the source's. A gate can bound these and those of its task.
MEASURES = ("latency_ms_p50", "size_bytes", "agreement", "max_abs_diff", "mean_abs_diff")
METRICS = tuple(dict.fromkeys(name for names in (*QUALITY.values(), MEASURES) for name in names))

JobState = Literal[
    "queued", "checking", "training", "exporting", "deploying", "cancelling",
    "succeeded", "deployed", "refused", "rejected", "failed", "cancelled",
]  # fmt: skip
ENDED: frozenset[str] = frozenset({"succeeded", "deployed", "refused", "rejected", "failed", "cancelled"})


class ModelSource(Struct, frozen=True, omit_defaults=True):
    """The model to start from: `hf:org/name@rev`, `model:name@version`, `artifact:sha256:…`, `file://` or `s3://`."""

    base: str


class DataSource(Struct, frozen=True, omit_defaults=True):
    """Rows as JSONL, CSV or Parquet; `text` and `label` name the columns, `columns` those of other tasks, by role.

    Without `validation` or `test`, a tenth of `train` is split off for each, the same tenth every time. `train` may be
    left out where nothing is trained (`train.method: none`): then `validation` is a tenth of `test`.
    """

    train: str = ""
    validation: str | None = None
    test: str | None = None
    text: str = "text"
    label: str = "label"
    columns: dict[str, str] = {}


class TrainSettings(Struct, frozen=True, omit_defaults=True):
    """How to train. `epochs` or `steps`, not both (default 3 epochs); `warmup` below 1 is a share of all steps.

    Method `none` trains nothing: the base model is checked and exported as it is.
    """

    method: Literal["full", "lora", "none"] = "full"
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 16
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: float = 0.06
    max_length: int = 128
    max_grad_norm: float = 1.0
    seed: int = 42


class Bound(Struct, frozen=True, omit_defaults=True):
    """The range in which a metric must lie, both ends included."""

    min: float | None = None
    max: float | None = None


class ExportSettings(Struct, frozen=True, omit_defaults=True):
    """The form of the artifact that will serve, and what it will serve on.

    `auto` tries what suits the `target` and keeps the fastest (for `edge` the smallest) that passes the gate on the
    validation split. `int4` (weights only) is for text-generation, `fp16` for `cuda`. `max_length` is how many tokens
    serving will read (for text-generation: read and write); without it `train.max_length`, or, where nothing is
    trained, what the model can read.
    """

    precision: Literal["fp32", "int8", "fp16", "int4", "auto"] = "fp32"
    target: Literal["cpu", "cuda", "edge"] = "cpu"
    max_length: int | None = None


class ResourceRequest(Struct, frozen=True, omit_defaults=True):
    """What one task needs on each of its nodes. `memory` and `gpu_memory` are bytes, or text such as `2GiB`.

    `gpu_milli` and `gpu_memory` are of each GPU; less than 1000 milli is a share of one GPU that others use too.
    `gpu_models` are those that will do (none: any), `labels` what a node must carry. `nodes` above 1 make a gang: so
    many nodes at once, each with these amounts, or none.
    """

    cpus: float = 1.0
    memory: int | str = "2GiB"
    gpus: int = 0
    gpu_memory: int | str = 0
    gpu_milli: int = 1000
    gpu_models: list[str] = []
    labels: dict[str, str] = {}
    nodes: int = 1


class DeploySettings(Struct, frozen=True, omit_defaults=True):
    """Where to serve a model that passed its gate: under which name, by how many replicas.

    `resources` are leased for each replica (without them only the inferencer's own memory budget counts). `spread`
    names a node's label, such as `zone`, over whose values the replicas are spread.
    """

    name: str
    replicas: int = 1
    resources: ResourceRequest | None = None
    spread: str = ""


class RetrySettings(Struct, frozen=True, omit_defaults=True):
    """How often a task may be tried in all; a back-off lies between two attempts."""

    max_attempts: int = 3


class JobSpec(Struct, frozen=True, omit_defaults=True):
    """A job: what to train on what, the gate it has to pass, and where to serve it.

    `private` encrypts every artifact of the job with the tenant's key. `priority` is 0–100, higher first. `queue` is a
    path such as `research/vision`. `duration` is how many seconds training is expected to take: a hint for the order,
    no limit. Work that is not `preemptible` keeps its lease to its end.
    """

    name: str
    model: ModelSource
    data: DataSource
    tenant: str = "default"
    queue: str = "default"
    priority: int = 50
    task: str = "text-classification"
    train: TrainSettings = TrainSettings()
    gate: dict[str, Bound] = {}
    export: ExportSettings = ExportSettings()
    deploy: DeploySettings | None = None
    resources: ResourceRequest = field(default_factory=ResourceRequest)
    retry: RetrySettings = RetrySettings()
    deadline: datetime | None = None
    private: bool = False
    duration: float | None = None
    preemptible: bool = True


class JobSubmitted(JobSpec, frozen=True, omit_defaults=True):
    """`llmos.job.submit.<tenant>.<job id>`: the body is the spec itself."""


class Fault(Struct, frozen=True, omit_defaults=True):
    """One wrong thing: in the spec (`path`, such as `train.epochs`) or in a data file (and 1-based `line`)."""

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line is not None else self.path
        return f"{where}: {self.message}"


class JobAdmitted(Struct, frozen=True, omit_defaults=True):
    """The job is valid and queued."""

    job: str
    spec: JobSpec
    submitted_at: float
    traceparent: str = ""


class JobRejected(Struct, frozen=True, omit_defaults=True):
    """The spec or the data is wrong; every fault is listed and no model was loaded."""

    job: str
    tenant: str
    faults: list[Fault] = field(default_factory=list)
    name: str = ""


class JobCancelling(Struct, frozen=True, omit_defaults=True):
    """Somebody asked to cancel; running work stops at its next step."""

    job: str
    tenant: str
    requested_by: str = ""
    reason: str = ""


class JobCancelled(Struct, frozen=True, omit_defaults=True):
    """The job ended because somebody asked for it; nothing of it runs any more."""

    job: str
    tenant: str


class JobFailed(Struct, frozen=True, omit_defaults=True):
    """The job ended: attempts are used up, its deadline passed, or it could not be deployed."""

    job: str
    tenant: str
    problem: Problem


class JobRefused(Struct, frozen=True, omit_defaults=True):
    """The exported model did not pass the job's gate; it was not registered."""

    job: str
    tenant: str
    reasons: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


class JobSucceeded(Struct, frozen=True, omit_defaults=True):
    """The model passed its gate and is registered; the job asked for no deployment."""

    job: str
    tenant: str
    model: str
    version: int


class JobDeployed(Struct, frozen=True, omit_defaults=True):
    """The model passed its gate, is registered, and every replica that the job asked for is ready."""

    job: str
    tenant: str
    model: str
    version: int
    nodes: list[str] = field(default_factory=list)


# --- asked of the scheduler (llmos.call.scheduler.<verb>.<id>) ---


class JobsRequested(Struct, frozen=True, omit_defaults=True):
    """List jobs, newest first."""

    tenant: str | None = None
    state: str | None = None
    limit: int = 100


class JobRequested(Struct, frozen=True, omit_defaults=True):
    """Show one job."""

    job: str


class ExplainRequested(Struct, frozen=True, omit_defaults=True):
    """Say why a job waits."""

    job: str


class PlanRequested(Struct, frozen=True, omit_defaults=True):
    """What would become of a job with this spec (a JSON object as in a submission), or of a known job: nothing is
    done."""

    tenant: str = "default"
    spec: dict[str, Any] = {}
    job: str = ""


class CancelRequested(Struct, frozen=True, omit_defaults=True):
    """Cancel a job; repeating the request changes nothing."""

    job: str
    requested_by: str = ""
    reason: str = ""


class TaskView(Struct, frozen=True, omit_defaults=True):
    """One task of a job as it stands."""

    task: str
    kind: str
    state: str
    attempt: int = 0
    node: str = ""
    placed_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    progress: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    problem: Problem | None = None
    nodes: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    preemptions: int = 0


class JobView(Struct, frozen=True, omit_defaults=True):
    """One job as it stands. Times are Unix seconds."""

    job: str
    name: str
    tenant: str
    queue: str
    state: JobState
    priority: int
    submitted_at: float
    ended_at: float | None = None
    model: str = ""
    version: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    tasks: list[TaskView] = field(default_factory=list)
    spec: JobSpec | None = None
    faults: list[Fault] = field(default_factory=list)
    problem: Problem | None = None
    reasons: list[str] = field(default_factory=list)
    trace: str = ""


class JobList(Struct, frozen=True, omit_defaults=True):
    """Answer to `JobsRequested`; the views carry neither tasks nor spec."""

    jobs: list[JobView] = field(default_factory=list)


class Obstacle(Struct, frozen=True, omit_defaults=True):
    """One thing that a job waits for.

    `node_class` says which kind of node in words (`8 x H100`), and `nodes` how many of them there are; `held_by` are
    the jobs (or deployments) that hold it.
    """

    kind: Literal[
        "quota", "limit", "priority", "resources", "gang", "reservation", "cordon", "worker", "deployment", "backoff",
    ]  # fmt: skip
    message: str
    node_class: str = ""
    nodes: int = 0
    held_by: list[str] = field(default_factory=list)


class Explanation(Struct, frozen=True, omit_defaults=True):
    """Why a job waits (or what it does): one sentence, then the reasons by node and the jobs ahead of it.

    `waits_for` are the obstacles, `held_by` the jobs that hold what it waits for, `earliest_start` (Unix seconds) what
    is known of when it can start, `would_run` what would let it run now. If it could start now: `starts_on` these
    nodes, and `preempts` these jobs.
    """

    job: str
    state: JobState
    summary: str
    reasons: list[str] = field(default_factory=list)
    ahead: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)
    waits_for: list[Obstacle] = field(default_factory=list)
    held_by: list[str] = field(default_factory=list)
    earliest_start: float | None = None
    would_run: list[str] = field(default_factory=list)
    starts_on: list[str] = field(default_factory=list)
    preempts: list[str] = field(default_factory=list)
