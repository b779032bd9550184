"""From a request as it came to what the decoder engine computes: tokens, sampling, constraint, limits."""

import math
from collections.abc import Sequence
from typing import Any

from llmos.contracts.inference import InferenceParams, InferenceRequested, Input
from llmos.contracts.models import Generation as Defaults
from llmos.contracts.models import ServingContract
from llmos.errors import Rejected
from llmos_inferencer.decoding.chat import ChatTemplate
from llmos_inferencer.decoding.plan import Limits, refuse_unless_fits
from llmos_inferencer.decoding.request import Constraint, Request, Sampling
from llmos_inferencer.engine import at_fault

MOST_LOGPROBS = 20


class Asking:
    """Turns requests into `Request`s. May be used in any thread, one at a time."""

    def __init__(self, contract: ServingContract, tokenizer: Any, limits: Limits) -> None:
        self._contract = contract
        self._tokenizer = tokenizer
        self._limits = limits
        self._defaults = contract.generation or Defaults()
        self._template = (
            ChatTemplate(contract.chat_template, contract.special_tokens) if contract.chat_template else None
        )

    def check(self, params: InferenceParams) -> None:
        """Raise `Rejected` for a parameter out of its range, named."""
        bounds: Sequence[tuple[str, float | None, float, float]] = (
            ("temperature", params.temperature, 0.0, math.inf),
            ("top_p", params.top_p, 1e-9, 1.0),
            ("top_k", params.top_k, 0, math.inf),
            ("min_p", params.min_p, 0.0, 1.0),
            ("repetition_penalty", params.repetition_penalty, 1e-3, 1e3),
            ("max_tokens", params.max_tokens, 0, math.inf),
            ("n", params.n, 1, self._limits.rows),
            ("logprobs", params.logprobs, 0, MOST_LOGPROBS),
        )
        for name, value, least, most in bounds:
            if value is not None and not least <= value <= most:
                raise Rejected(
                    f"{name} is {value}", remedy=f"It lies between {least:g} and {most:g}.", param=f"params.{name}"
                )
        if sum((params.schema is not None, bool(params.regex), bool(params.grammar))) > 1:
            raise Rejected(
                "a text can follow only one of schema, regex and grammar", remedy="Send one.", param="params.schema"
            )

    def requests(self, request: InferenceRequested, rank: int, key: str, seed: int) -> list[Request]:
        """One for each input, in order. Raises `Rejected`, with the numbers, for one that can't fit."""
        return [
            self._request(given, at, request, rank, f"{key}/{at}", seed + at)
            for at, given in enumerate(request.inputs)
            if isinstance(given, Input)
        ]

    def prompt(self, given: Input, at: int) -> list[int]:
        """An input's token ids: as they are, from its messages through the chat template, or from its text."""
        if given.token_ids:
            return self._checked(given.token_ids, f"inputs[{at}].token_ids")
        if given.messages:
            if self._template is None:
                raise Rejected(
                    "this model has no chat template",
                    remedy="Send text instead of messages, or export the model with a chat template.",
                    param=f"inputs[{at}].messages",
                )
            text = self._template.render(given.messages, param=f"inputs[{at}].messages")
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return list(self._tokenizer.encode(self._contract.prefix + given.text).ids)

    def _checked(self, ids: list[int], param: str) -> list[int]:
        for place, id in enumerate(ids):
            if not 0 <= id < self._contract.vocab_size:
                raise Rejected(
                    f"token {id} is not in the vocabulary of {self._contract.vocab_size}", param=f"{param}[{place}]"
                )
        return ids

    def source(self, given: Input, at: int) -> tuple[Any, int]:
        """What an encoder reads of an input, and its length in tokens."""
        contract = self._contract
        if contract.audio is not None:
            if not given.audio:
                raise Rejected(
                    "this model takes recordings", remedy="Give `audio` or `artifact`.", param=f"inputs[{at}]"
                )
            from llmos.media import samples

            try:
                return samples(given.audio, contract.audio), 0
            except Rejected as error:
                raise at_fault(error, f"inputs[{at}].audio") from error
        ids = self.prompt(given, at)
        if not 1 <= len(ids) <= contract.max_length:
            raise Rejected(
                f"the text has {len(ids)} tokens, the model reads 1 to {contract.max_length}",
                remedy="Split the text.",
                code="too_long",
                param=f"inputs[{at}]",
            )
        return ids, len(ids)

    def _request(self, given: Input, at: int, request: InferenceRequested, rank: int, id: str, seed: int) -> Request:
        params, defaults, context = request.params, self._defaults, self._limits.context
        if "encoder" in self._contract.files:
            prompt, (source, read) = list(defaults.start), self.source(given, at)
        else:
            prompt, source = self.prompt(given, at), None
            read = len(prompt)
        left = max(1, context - len(prompt))
        max_tokens = params.max_tokens or min(defaults.max_tokens, left)
        refuse_unless_fits(len(prompt), max_tokens, params.n, self._limits)
        return Request(
            id=id,
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=Sampling(
                temperature=_first(params.temperature, defaults.temperature),
                top_p=_first(params.top_p, defaults.top_p),
                top_k=int(_first(params.top_k, defaults.top_k)),
                min_p=_first(params.min_p, 0.0),
                repetition_penalty=_first(params.repetition_penalty, defaults.repetition_penalty),
                seed=seed,
                logprobs=params.logprobs,
            ),
            stop=tuple(params.stop),
            n=params.n,
            constraint=_constraint(params),
            tenant=request.tenant,
            rank=rank,
            priority=request.priority,
            deadline=request.deadline,
            source=source,
            read=read,
        )


def _first(given: float | None, default: float) -> float:
    return default if given is None else given


def _constraint(params: InferenceParams) -> Constraint | None:
    if params.schema is not None:
        return Constraint("schema", params.schema)
    if params.regex:
        return Constraint("regex", params.regex)
    return Constraint("grammar", params.grammar) if params.grammar else None
