"""What an exporter decides: whether parity holds, whether a gate is passed, which version comes next. Pure."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from llmos.contracts.jobs import Bound, JobSpec
from llmos.contracts.models import Candidate, ModelRecord, ModelVersion
from llmos.contracts.tasks import TaskProgressed
from llmos.errors import Rejected

MAX_ABS_DIFF = 1e-3  # of fp32 logits, between the trained model and its graph
MIN_AGREEMENT = 0.999  # of labels, likewise

PROGRESS_EVERY_S = 1.0
LIFE_SIGN_EVERY_S = 10.0

# Each phase, with the share of the whole that is done when it begins.
PHASES: dict[str, float] = {
    "loading": 0.0,
    "exporting": 0.1,
    "quantising": 0.3,
    "parity": 0.4,
    "evaluating": 0.5,
    "registering": 0.9,
}


def fraction(phase: str, share: float) -> float:
    """How much of the whole export is done when `share` (0–1) of a phase is."""
    begins = PHASES[phase]
    ends = min((start for start in PHASES.values() if start > begins), default=1.0)
    return begins + (ends - begins) * min(max(share, 0.0), 1.0)


def unfaithful(parity: Mapping[str, float]) -> list[str]:
    """Why an fp32 graph is not the trained model; empty when it is. `parity` as in `ModelVersion`."""
    reasons = []
    if not parity["max_abs_diff"] <= MAX_ABS_DIFF:  # a NaN is no pass
        reasons.append(f"its logits differ by up to {parity['max_abs_diff']:.3g} (limit {MAX_ABS_DIFF:g})")
    if not parity["agreement"] >= MIN_AGREEMENT:
        reasons.append(f"it gives the same label for {parity['agreement']:.4f} of the rows (limit {MIN_AGREEMENT:g})")
    if parity.get("greedy", 1.0) != 1.0:
        reasons.append(f"it writes the same text for {parity['greedy']:.4f} of the prompts (limit 1)")
    return reasons


def judge(gate: Mapping[str, Bound], metrics: Mapping[str, float]) -> list[str]:
    """Why the gate is not passed: one reason a metric, by name; empty when it is.

    A metric that was not measured is a reason too, which names those that were.
    """
    reasons = []
    for name in sorted(gate):
        bound = gate[name]
        if name not in metrics:
            reasons.append(f"{name} was not measured; measured were {', '.join(sorted(metrics))}")
            continue
        value = metrics[name]
        if bound.min is not None and not value >= bound.min:
            reasons.append(f"{name} is {value:.6g}, below the gate's minimum of {bound.min:.6g}")
        if bound.max is not None and not value <= bound.max:
            reasons.append(f"{name} is {value:.6g}, above the gate's maximum of {bound.max:.6g}")
    return reasons


def choose(tried: Sequence[Candidate], target: str) -> str:
    """The precision to keep of those that pass: the fastest for `cpu`; the smallest for `edge`, and for `cuda`, whose
    speed nobody measured here.

    Where none passes it is the first, the most exact: the gate will say what it lacks.
    """
    by = "latency_ms_p50" if target == "cpu" else "size_bytes"
    passing = [one for one in tried if not one.reasons]
    return min(passing, key=lambda one: one.metrics[by]).precision if passing else tried[0].precision


def model_name(spec: JobSpec) -> str:
    """The name under which a job's model is registered."""
    return spec.deploy.name if spec.deploy else spec.name


def check_owner(record: ModelRecord | None, name: str, tenant: str) -> None:
    """Raise `Rejected` when the name belongs to another tenant."""
    if record is not None and record.tenant != tenant:
        raise Rejected(
            f"the model name {name!r} belongs to another tenant",
            remedy="Choose another name (deploy.name, or name when nothing is deployed).",
            param="deploy.name",
        )


def registered_for(record: ModelRecord | None, job: str) -> ModelVersion | None:
    """The version that this job has registered already, if it has."""
    return next((version for version in record.versions if version.job == job), None) if record else None


def next_version(record: ModelRecord | None) -> int:
    """The number of the version to register."""
    return max((version.version for version in record.versions), default=0) + 1 if record else 1


def with_version(record: ModelRecord | None, version: ModelVersion) -> ModelRecord:
    """The record that holds one version more."""
    versions: Sequence[ModelVersion] = record.versions if record else ()
    return ModelRecord(name=version.model, tenant=version.tenant, versions=[*versions, version])


class Pace(Struct):
    """When progress is said: at most once a second, at least every ten; of what comes between, the newest."""

    newest: TaskProgressed | None = None
    said: TaskProgressed | None = None
    at: float = float("-inf")

    def hear(self, progress: TaskProgressed) -> None:
        """Take what may be said next."""
        self.newest = progress

    def due(self, now: float) -> TaskProgressed | None:
        """What is to be said at `now` (monotonic seconds), and is then taken as said; `None` when it is too early."""
        since = now - self.at
        fresh = self.newest is not self.said
        if self.newest is None or since < (PROGRESS_EVERY_S if fresh else LIFE_SIGN_EVERY_S):
            return None
        self.said, self.at = self.newest, now
        return self.newest
