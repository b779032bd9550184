"""Inference: a request on `llmos.infer.<model>.<class>.<id>`, its answer on `llmos.reply.<client>.<id>`.

With `params.stream`, `InferenceDelta`s come on the reply subject before the answer, which holds everything once more.
"""

from typing import Any, Literal

from msgspec import Struct, field

from llmos.errors import Problem

Class = Literal["interactive", "batch"]
CLASSES: tuple[Class, ...] = ("interactive", "batch")
FinishReason = Literal["", "stop", "length", "cancelled"]


class Message(Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation; `role` is what the model's chat template knows: system, user, assistant."""

    role: str
    content: str


class Input(Struct, frozen=True, omit_defaults=True):
    """One input; which fields count depends on the model's task. A plain string is the same as `{"text": …}`.

    Question answering: `text` is the question and `pair` the context. Generation: `messages` (through the chat
    template), or `text`, or `token_ids` as they are. Images and audio: the bytes of a file (base64 in JSON, at most
    about 350 KiB in one message), or `artifact`, the address `sha256:…` of such a file in the artifact store.
    """

    text: str = ""
    pair: str = ""
    messages: list[Message] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    image: bytes = b""
    audio: bytes = b""
    artifact: str = ""


class InferenceParams(Struct, frozen=True, omit_defaults=True):
    """How to generate; `None` (`max_tokens`: 0) leaves it to the defaults of the model's artifact.

    `n` outputs come for each input. `logprobs`: so many alternatives a token; 0: no logprobs. At most one
    of `schema` (a JSON schema), `regex` and `grammar` (Lark) constrains the text. `stop` ends it before any of these
    texts. One `seed` gives one text.
    """

    max_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    n: int = 1
    logprobs: int = 0
    schema: dict[str, Any] | None = None
    regex: str = ""
    grammar: str = ""
    stream: bool = False


class InferenceRequested(Struct, frozen=True, omit_defaults=True):
    """Inputs for a model. `client` is the token of the reply subject; `deadline` is in Unix seconds.

    `top` limits how many labels an output lists (0: all). A higher `priority` goes first within the class. With `keep`
    above 0, the client says `ClientPresent` at least so often (seconds); when it does not, the request is cancelled.
    """

    client: str
    inputs: list[str | Input]
    tenant: str = "default"
    top: int = 0
    deadline: float | None = None
    params: InferenceParams = field(default_factory=InferenceParams)
    priority: int = 0
    keep: float = 0.0


class InferenceCancelRequested(Struct, frozen=True, omit_defaults=True):
    """`llmos.ctl.cancel.<request>`: nobody wants the answer any more; what was generated is answered as `cancelled`."""

    request: str
    reason: str = ""


class ClientPresent(Struct, frozen=True, omit_defaults=True):
    """`llmos.ctl.keep.<client>`: the client still waits for its answers."""

    client: str


class LabelScore(Struct, frozen=True):
    """A label and its probability."""

    label: str
    score: float


class Entity(Struct, frozen=True):
    """A part of the text with a label of its own: `text[start:end]`, in characters."""

    label: str
    score: float
    text: str
    start: int
    end: int


class Answer(Struct, frozen=True):
    """The part of the context that answers the question: `pair[start:end]`, in characters; empty if none does."""

    text: str
    score: float
    start: int
    end: int


class TokenLogprob(Struct, frozen=True, omit_defaults=True):
    """A token that was chosen, the natural logarithm of its probability, and its likeliest alternatives."""

    id: int
    token: str
    logprob: float
    top: "list[TokenAlternative]" = field(default_factory=list)


class TokenAlternative(Struct, frozen=True):
    """A token that might have been chosen."""

    id: int
    token: str
    logprob: float


class Output(Struct, frozen=True, omit_defaults=True):
    """What the model says of one input; which fields are set depends on its task.

    Classification: the best label first. Token classification: `entities` in the order of the text. Question answering:
    `answer`. Embeddings: `embedding`. Generation: `text`, `token_ids` and why it ended: `stop` (by itself, or by a stop
    text), `length` (`max_tokens`), `cancelled`.
    """

    label: str = ""
    score: float = 0.0
    scores: list[LabelScore] = field(default_factory=list)
    entities: list[Entity] = field(default_factory=list)
    answer: Answer | None = None
    embedding: list[float] = field(default_factory=list)
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Usage(Struct, frozen=True, omit_defaults=True):
    """Tokens: of all inputs, of those the ones that were computed before (prefix cache), and of all outputs."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class InferenceDelta(Struct, frozen=True, omit_defaults=True):
    """What was generated since the delta before: `text` is to be appended to output number `output`.

    `sequence` counts the deltas of a request from 0. A request that was begun again elsewhere (its replica died) starts
    over with the next `attempt`: what the earlier ones said of it counts no more.
    """

    id: str
    sequence: int
    attempt: int = 1
    output: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason = ""


class InferenceAnswered(Struct, frozen=True, omit_defaults=True):
    """`params.n` outputs for each input, in order, all by one version. Times in milliseconds.

    `problem` is set, and `outputs` empty, when the request could not be answered. `queue_ms` went by before computing
    began, `ttft_ms` until the first token was there (counted from when the bus stored the request).
    """

    id: str
    model: str
    version: int = 0
    node: str = ""
    outputs: list[Output] = field(default_factory=list)
    queue_ms: float = 0.0
    compute_ms: float = 0.0
    problem: Problem | None = None
    usage: Usage = field(default_factory=Usage)
    ttft_ms: float = 0.0
    attempt: int = 1


class InferenceMetered(Struct, frozen=True, omit_defaults=True):
    """What a replica served in a period: the history holds sums, not every request. Milliseconds and Unix seconds.

    `expired` of the `failures` had a deadline that passed before they were begun. `ttft` is the time to first token
    and `tpot` the time per output token after it, of generated text.
    """

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
    expired: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    ttft_p50_ms: float = 0.0
    ttft_p99_ms: float = 0.0
    tpot_p50_ms: float = 0.0
