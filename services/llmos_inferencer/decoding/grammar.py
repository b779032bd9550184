"""Text that must match a JSON schema, a regex or a Lark grammar, by llguidance: at every step it says which tokens may
come.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmos.errors import Rejected
from llmos_inferencer.decoding.request import Constraint

PARAM = {"schema": "params.schema", "regex": "params.regex", "grammar": "params.grammar"}


class Matcher:
    """The state of one output's text in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._bits = np.zeros(-(-vocabulary // 32), np.int32)

    def allowed(self) -> NDArray[np.bool_]:
        """Which token may come next, `[vocabulary]`; the end of the text counts as one where it may end."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        return np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocabulary].view(np.bool_)

    def accept(self, token: int) -> bool:
        """Go on by a token; whether the text is complete and nothing may follow."""
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def fork(self) -> "Matcher":
        """A matcher in the same state."""
        return Matcher(self._matcher.deep_copy(), self._vocabulary)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise Rejected(
                f"the constraint can't be followed any further: {self._matcher.get_error()}", code="constraint"
            )


class Grammars:
    """Makes matchers for one model's tokens. `matcher` may be called from several threads at once."""

    def __init__(self, tokenizer: Path, vocabulary: int, eos: list[int]) -> None:
        self._path = tokenizer
        self._vocabulary = vocabulary
        self._eos = eos
        self._tokenizer: Any = None

    def matcher(self, constraint: Constraint) -> Matcher:
        """A matcher at the beginning of a text. Raises `Rejected` naming what is wrong with it, and where."""
        try:
            import llguidance
        except ImportError:
            raise Rejected(
                "this inferencer was installed without llguidance, so it can't constrain what is generated",
                remedy="pip install 'llmos[inferencer]'",
                param=PARAM[constraint.kind],
            ) from None
        if self._tokenizer is None:
            self._tokenizer = llguidance.LLTokenizer(str(self._path), n_vocab=self._vocabulary, eos_token=self._eos)
        try:
            grammar = self._grammar(llguidance.LLMatcher, constraint)
            problem = llguidance.LLMatcher.validate_grammar(grammar, self._tokenizer)
        except ValueError as error:
            problem = str(error)
        if problem and not problem.startswith("WARNING"):
            raise Rejected(
                f"the {constraint.kind} can't be used: {problem.strip()}",
                remedy="Correct it, or leave it out.",
                code="constraint",
                param=PARAM[constraint.kind],
            )
        return Matcher(llguidance.LLMatcher(self._tokenizer, grammar, log_level=0), self._vocabulary)

    def _grammar(self, maker: Any, constraint: Constraint) -> str:
        match constraint.kind:
            case "schema":
                return str(maker.grammar_from_json_schema(msgspec.json.encode(constraint.spec).decode()))
            case "regex":
                return str(maker.grammar_from_regex(constraint.spec))
            case _:
                return str(maker.grammar_from_lark(constraint.spec))
