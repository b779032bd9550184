"""Inference: a request on `llmos.infer.<model>.<class>.<id>`, its answer on `llmos.reply.<client>.<id>`."""

from typing import Literal

from msgspec import Struct, field

from llmos.errors import Problem

Class = Literal["interactive", "batch"]
CLASSES: tuple[Class, ...] = ("interactive", "batch")


class InferenceRequested(Struct, frozen=True, omit_defaults=True):
    """Texts to classify. `client` is the token of the reply subject; `deadline` is in Unix seconds.

    `top` limits how many labels an output lists (0: all).
    """

    client: str
    inputs: list[str]
    tenant: str = "default"
    top: int = 0
    deadline: float | None = None


class LabelScore(Struct, frozen=True):
    """A label and its probability."""

    label: str
    score: float


class Classification(Struct, frozen=True, omit_defaults=True):
    """The answer for one input: the best label first."""

    label: str
    score: float
    scores: list[LabelScore] = field(default_factory=list)


class InferenceAnswered(Struct, frozen=True, omit_defaults=True):
    """One output per input, in order, all by one version. Times in milliseconds.

    `problem` is set, and `outputs` empty, when the request could not be answered.
    """

    id: str
    model: str
    version: int = 0
    node: str = ""
    outputs: list[Classification] = field(default_factory=list)
    queue_ms: float = 0.0
    compute_ms: float = 0.0
    problem: Problem | None = None


class InferenceMetered(Struct, frozen=True, omit_defaults=True):
    """What a replica served in a period: the history holds sums, not every request. Milliseconds and Unix seconds."""

    deployment: str
    tenant: str
    node: str
    model: str
    version: int
    since: float
    until: float
    requests: int = 0
    inputs: int = 0
    failures: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
