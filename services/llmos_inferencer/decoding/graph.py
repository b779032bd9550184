"""A decoder's graph with GroupQueryAttention (as ONNX Runtime GenAI's model builder makes it) over a cache of slots.

Past and present are bound to the same memory, so a step copies nothing; the length of every row comes from the
attention mask. The operator takes many rows of one token, or one row of many tokens: prompts are computed row by row.
Blocking code, for one thread.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmos.contracts import models as contract
from llmos.errors import Rejected
from llmos_inferencer.decoding.cache import Cache, Plane, Saved

Floats = NDArray[np.float32]
MASK_STEP = 64  # the mask is this much wider at a time, so that bindings are kept over many steps
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


class Graph(Protocol):
    """What the stepper computes with. Rows are slots; lengths count the tokens whose keys and values a row holds."""

    vocabulary: int
    together: bool
    """Whether rows must begin in the same step to share runs."""
    rows: int
    context: int
    token_bytes: int

    def prefill(self, row: int, ids: Sequence[int], start: int, source: Any) -> Floats:
        """Compute `ids` at positions `start`… of a row; the logits `[vocabulary]` after the last one."""
        ...

    def decode(self, tokens: Sequence[int], lengths: Sequence[int], first: int = 0) -> Floats:
        """One token more for the rows from `first` on; `lengths` count it. Logits `[len(tokens), vocabulary]`, valid
        until the next call.
        """
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Write the beginning of one row into another."""
        ...

    def save(self, row: int, length: int) -> Any:
        """A copy of a row's beginning, for `load`; `None` if the graph can't."""
        ...

    def load(self, row: int, saved: Any, length: int) -> None:
        """Write what was saved into a row."""
        ...

    def leave(self, row: int) -> None:
        """Nobody needs what the row holds."""
        ...


class AttentionGraph:
    """`Graph` over an onnxruntime session. `budget` bounds (softly) the bytes that slots keep when nobody uses them."""

    together = False

    def __init__(self, session: Any, layout: contract.Cache, *, rows: int, context: int, budget: int) -> None:
        self._session = session
        self.rows = rows
        self.context = context
        self._budget = budget
        inputs = {given.name: given for given in session.get_inputs()}
        outputs = {given.name: given for given in session.get_outputs()}
        planes = planes_of(layout)
        wanted = {"input_ids", "attention_mask", *(plane.past for plane in planes)}
        if set(inputs) - {"position_ids"} != wanted or {"logits", *(plane.present for plane in planes)} - set(outputs):
            raise Rejected(
                f"the graph takes {sorted(inputs)} and gives {sorted(outputs)}; llmos.json says {sorted(wanted)}",
                remedy="Export the model again.",
            )
        self._positions = "position_ids" in inputs
        self.cache = Cache(planes, rows, context)
        self.token_bytes = self.cache.token_bytes
        self.vocabulary = int(outputs["logits"].shape[-1])
        self._logits_type = _TYPES[outputs["logits"].type]
        self._ids = np.zeros((max(rows, context),), np.int64)
        self._place = np.zeros((max(rows, context),), np.int64)
        self._mask = np.zeros(rows * (self.cache.pitch + MASK_STEP), np.int64)
        self._logits = np.zeros((rows, 1, self.vocabulary), self._logits_type)
        self._bindings: dict[tuple[int, int], Any] = {}  # (first row, rows) -> with the planes bound

    def prefill(self, row: int, ids: Sequence[int], start: int, source: Any = None) -> Floats:
        count = len(ids)
        self._ids[:count] = ids
        self._place[:count] = range(start, start + count)
        end = start + count
        self._mask[:end] = 1
        self.cache.touch(row, end)
        logits: Floats = self._run(row, 1, count, end)[0]
        return logits

    def decode(self, tokens: Sequence[int], lengths: Sequence[int], first: int = 0) -> Floats:
        count = len(tokens)
        self._ids[:count] = tokens
        ends = np.asarray(lengths, np.int64)
        self._place[:count] = ends - 1
        width = min(self.cache.pitch, -(-int(ends.max()) // MASK_STEP) * MASK_STEP)
        mask = self._mask[: count * width].reshape(count, width)
        np.less(np.arange(width), ends[:, None], out=mask, casting="unsafe")
        for row, end in enumerate(lengths, first):
            self.cache.touch(row, end)
        return self._run(first, count, 1, width)

    def copy(self, source: int, target: int, length: int) -> None:
        self.cache.copy(source, target, length)

    def save(self, row: int, length: int) -> Saved:
        return self.cache.save(row, length)

    def load(self, row: int, saved: Saved, length: int) -> None:
        self.cache.load(row, saved, length)

    def leave(self, row: int) -> None:
        if self.cache.resident > self._budget:
            self.cache.drop(row)

    def _run(self, first: int, rows: int, tokens: int, width: int) -> Floats:
        binding = self._binding(first, rows)
        _bind(binding.bind_input, "input_ids", self._ids, (rows, tokens))
        _bind(binding.bind_input, "attention_mask", self._mask, (rows, width))
        if self._positions:
            _bind(binding.bind_input, "position_ids", self._place, (rows, tokens))
        self._session.run_with_iobinding(binding)
        logits: Floats = np.asarray(self._logits[:rows, 0], np.float32)
        return logits

    def _binding(self, first: int, rows: int) -> Any:
        binding = self._bindings.get((first, rows))
        if binding is None:
            binding = self._session.io_binding()
            for plane, array in zip(self.cache.planes, self.cache.arrays, strict=True):
                part = array[first : first + rows]
                _bind(binding.bind_input, plane.past, part, part.shape)
                _bind(binding.bind_output, plane.present, part, part.shape)
            _bind(binding.bind_output, "logits", self._logits, (rows, 1, self.vocabulary))
            self._bindings[first, rows] = binding
        return binding


def _bind(bind: Any, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    bind(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)


def planes_of(layout: contract.Cache) -> list[Plane]:
    """The keys and values of every layer that grow as text is written."""
    names = ((layout.past_key, layout.present_key), (layout.past_value, layout.present_value))
    return [
        Plane(past % layer, present % layer, layout.heads, layout.size, layout.dtype)
        for layer in range(layout.layers)
        for past, present in names
    ]
