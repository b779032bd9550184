"""What the decoder engine is asked for and what it gives back: token ids in, deltas out. It knows no chat template and
no bus.
"""

from typing import Any, Literal

from msgspec import Struct, field

from llmos.errors import Problem

FinishReason = Literal["", "stop", "length", "cancelled"]


class Sampling(Struct, frozen=True):
    """How a token is chosen from the logits. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 cut nothing.

    The token at a position depends on `seed`, the number of the output and the position alone, never on who else is
    served. `logprobs`: how many alternatives of each token are told (0: no logprobs).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: int = 0


class Constraint(Struct, frozen=True):
    """What the text must look like: a JSON schema (an object), a regex or a Lark grammar (texts)."""

    kind: Literal["schema", "regex", "grammar"]
    spec: Any


class Request(Struct, frozen=True, kw_only=True):
    """One prompt, `n` outputs of at most `max_tokens` tokens each.

    `rank` 0 goes before 1, and within a rank a higher `priority` first. `deadline` is in Unix seconds. `source` holds
    what an encoder reads (token ids or samples), `read` tokens long; `prompt` is then how the decoder begins.
    """

    id: str
    prompt: list[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    n: int = 1
    constraint: Constraint | None = None
    tenant: str = "default"
    rank: int = 0
    priority: int = 0
    deadline: float | None = None
    source: Any = None
    read: int = 0

    @property
    def tokens(self) -> int:
        """The most tokens that one output can come to hold."""
        return len(self.prompt) + self.max_tokens


class Chosen(Struct, frozen=True, gc=False):
    """A token, the natural logarithm of its probability, and its likeliest alternatives."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


class Delta(Struct, frozen=True):
    """What was generated of one output since the delta before. `finish` is set in the last one of an output.

    The first delta of a request is empty: it has its slots, and `cached` tokens of its prompt need not be computed.
    `problem` ends the whole request.
    """

    output: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Chosen] = field(default_factory=list)
    finish: FinishReason = ""
    cached: int = 0
    problem: Problem | None = None
