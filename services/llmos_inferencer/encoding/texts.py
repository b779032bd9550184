"""Texts through an encoder: tokenised, padded together, run. What the numbers mean is said by each task's class."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from llmos.contracts.inference import InferenceRequested, Input, Output
from llmos.contracts.models import ServingContract
from llmos.errors import Rejected
from llmos_inferencer.engine import Means, Prepared, Row
from llmos_inferencer.openvino import is_better, open_openvino
from llmos_inferencer.runtime import open_session

SAMPLE = 4  # times the warm-up, for choosing a runtime
WARM_UP = ("a", "a somewhat longer text, so that more than one shape was seen")


class TextRow(Row, gc=False):
    """One text, or a window of it, as the graph takes it, without padding."""

    ids: list[int] = []
    types: list[int] = []
    window: Any = None


class TextEngine:
    """An encoder of texts. `shape` of the output behind `[batch, length]` is for the task to check."""

    takes: Literal["text"] = "text"
    reserved = 0
    pairs: ClassVar[bool] = False  # whether an input needs a `pair`

    def __init__(self, session: Any, tokenizer: Tokenizer, contract: ServingContract) -> None:
        self.contract = contract
        self._session = session
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._truncate()

    @classmethod
    def load(cls, root: Path, contract: ServingContract, means: Means) -> Self:
        """Open graph and tokenizer and run them once or twice. Raises `Rejected` when they don't belong together."""
        if contract.max_length < 1:
            raise Rejected(f"llmos.json says max_length {contract.max_length}", remedy="Export the model again.")
        session = open_session(root / contract.files["model"], means)
        engine = cls(session, Tokenizer.from_file(str(root / "tokenizer.json")), contract)
        engine._check_graph()
        inputs = [Input(text="a", pair=text) if cls.pairs else Input(text=text) for text in WARM_UP]
        engine.answer(inputs)
        engine._take_faster(open_openvino(root / contract.files["model"], means), inputs)
        return engine

    def close(self) -> None:
        """Let go of the session."""
        del self._session

    def answer(self, inputs: Sequence[str | Input], top: int = 0) -> list[Output]:
        """The answers in order, all computed in one run."""
        request = InferenceRequested("", list(inputs), top=top)
        prepared = self.prepare([Input(text=each) if isinstance(each, str) else each for each in inputs])
        found = iter(self.run([row for each in prepared for row in each.rows]) if prepared else ())
        return [self.read(each, [next(found) for _ in each.rows], request) for each in prepared]

    def prepare(self, inputs: Sequence[Input]) -> list[Prepared]:
        """Tokenise."""
        texts = [each for at, each in enumerate(inputs) if not self._given_ids(at, each)]
        encoded = iter(self._encode([_text(each, self.contract.prefix) for each in texts]))
        return [self._of_ids(each) if each.token_ids else next(encoded) for each in inputs]

    @abstractmethod
    def run(self, rows: Sequence[Row]) -> Sequence[Any]:
        """One padded run."""

    @abstractmethod
    def read(self, prepared: Prepared, found: Sequence[Any], request: InferenceRequested) -> Output:
        """The answer for one input."""

    def _take_faster(self, other: Any, inputs: Sequence[Input]) -> None:
        """Serve with another runtime's session if it gives the same and is faster."""
        if other is None:
            return
        rows = [row for each in self.prepare(list(inputs) * SAMPLE) for row in each.rows]
        mine = self._session

        def run(session: Any) -> Any:
            self._session = session
            return self._run(rows)

        self._session = other if is_better(run, mine, other) else mine

    def _truncate(self) -> None:
        """A text of more than `max_length` tokens is truncated, as in training."""
        self._tokenizer.enable_truncation(max_length=self.contract.max_length)

    def _encode(self, texts: list[str | tuple[str, str]]) -> list[Prepared]:
        encoded = self._tokenizer.encode_batch_fast(texts)
        return [_prepared([TextRow(len(one.ids), ids=one.ids, types=one.type_ids)]) for one in encoded]

    def _given_ids(self, at: int, given: Input) -> bool:
        """Whether the input is token ids. Raises `Rejected` for one that this model can't take."""
        if given.image or given.audio or given.messages:
            raise Rejected("this model takes texts", remedy="Give `text`.", param=f"inputs[{at}]")
        if self.pairs and (given.token_ids or not given.text or not given.pair):
            raise Rejected(
                "this model takes a question as `text` and its context as `pair`", param=f"inputs[{at}].pair"
            )
        if len(given.token_ids) > self.contract.max_length:
            raise Rejected(
                f"{len(given.token_ids)} token ids are more than the model's {self.contract.max_length}",
                remedy="Give fewer; only texts are truncated.",
                param=f"inputs[{at}].token_ids",
            )
        return bool(given.token_ids)

    def _of_ids(self, given: Input) -> Prepared:
        return _prepared([TextRow(len(given.token_ids), ids=given.token_ids, types=[0] * len(given.token_ids))])

    def _run(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """The graph's output for rows padded to the longest."""
        contract = self.contract
        shape = (len(rows), max(row.length for row in rows))
        ids = np.full(shape, contract.pad_token_id, np.int64)
        types = np.full(shape, contract.pad_type_id, np.int64)
        mask = np.zeros(shape, np.int64)
        for at, row in enumerate(rows):
            assert isinstance(row, TextRow)  # prepared by this engine
            ids[at, : row.length] = row.ids
            types[at, : row.length] = row.types
            mask[at, : row.length] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        result: NDArray[np.float32]
        (result,) = self._session.run([contract.output_name], {name: feeds[name] for name in contract.input_names})
        return result

    def _check_graph(self) -> None:
        check_graph(
            self._session,
            self.contract,
            dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), "tensor(int64)"),
        )


def check_graph(session: Any, contract: ServingContract, allowed: dict[str, str]) -> None:
    """Raise `Rejected` unless the graph takes what llmos.json says, and that is among `allowed` (name → type)."""
    inputs = {given.name: given.type for given in session.get_inputs()}
    if set(inputs) != set(contract.input_names) or set(inputs) - set(allowed):
        raise Rejected(f"the graph takes {sorted(inputs)}, llmos.json says {sorted(contract.input_names)}")
    if any(kind != allowed[name] for name, kind in inputs.items()):
        raise Rejected(f"the graph's inputs are {inputs}, and should be {allowed}")
    if contract.output_name not in {given.name for given in session.get_outputs()}:
        raise Rejected(f"the graph has no output {contract.output_name!r}")


def _text(given: Input, prefix: str) -> str | tuple[str, str]:
    return (prefix + given.text, given.pair) if given.pair else prefix + given.text


def _prepared(rows: Sequence[Row]) -> Prepared:
    return Prepared(rows, tokens=sum(row.length for row in rows))
