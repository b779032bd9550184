"""One exported classifier: tokenizer, onnxruntime session and labels. Blocking code, to be called from a thread;
it knows no bus.
"""

import os

os.environ.setdefault(
    "ORT_DISABLE_TELEMETRY", "1"
)  # read when onnxruntime is imported; its Linux wheels have telemetry on

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from llmos.contracts.inference import LabelScore, Output
from llmos.contracts.models import ServingContract
from llmos.errors import LlmosError, Rejected

TASK = "text-classification"
FORMAT = 1  # of llmos.json
WARM_UP = ("a", "a somewhat longer text, so that more than one shape was seen")
DIGITS = 6  # of a probability


class Tokens(msgspec.Struct, frozen=True, gc=False):
    """One text as the graph takes it, without padding."""

    ids: list[int]
    types: list[int]


class NotFinite(Rejected):
    """The model gave NaN or infinity for an input."""

    code = "not_finite"


class Engine:
    """A loaded model. `encode` and `run` may be called from several threads at once."""

    def __init__(self, session: Any, tokenizer: Tokenizer, contract: ServingContract) -> None:
        self.contract = contract
        self._session = session
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=contract.max_length)

    @classmethod
    def load(cls, root: Path, *, threads: int) -> "Engine":
        """Open the artifact in `root` (`model.onnx`, `tokenizer.json`, `llmos.json`) and run it once or twice.

        Raises `Rejected` when the files don't belong together or onnxruntime can't run them.
        """
        contract = _contract(root / "llmos.json")
        try:
            session = ort.InferenceSession(str(root / "model.onnx"), _options(threads), providers=_providers())
            engine = cls(session, Tokenizer.from_file(str(root / "tokenizer.json")), contract)
            engine._check_graph()
            engine.run(engine.encode(WARM_UP))
        except LlmosError:
            raise
        except Exception as error:  # whatever onnxruntime or tokenizers raise: the next try would not help
            raise Rejected(f"the artifact can't be loaded: {error}", remedy="Export the model again.") from error
        return engine

    def classify(self, texts: Sequence[str], top: int = 0) -> list[Output]:
        """The label of each text, in order: tokenise, one run, softmax."""
        return [self.read(row, top) for row in self.run(self.encode(texts))] if texts else []

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenise; a text of more than `max_length` tokens is truncated, as in training."""
        return [Tokens(text.ids, text.type_ids) for text in self._tokenizer.encode_batch_fast(list(texts))]

    def run(self, batch: Sequence[Tokens]) -> NDArray[np.float32]:
        """Probabilities `[len(batch), labels]` of one padded run. Raises what onnxruntime raises."""
        contract = self.contract
        shape = (len(batch), max(len(text.ids) for text in batch))
        ids = np.full(shape, contract.pad_token_id, np.int64)
        types = np.full(shape, contract.pad_type_id, np.int64)
        mask = np.zeros(shape, np.int64)
        for row, text in enumerate(batch):
            length = len(text.ids)
            ids[row, :length] = text.ids
            types[row, :length] = text.types
            mask[row, :length] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        (logits,) = self._session.run([contract.output_name], {name: feeds[name] for name in contract.input_names})
        if logits.shape != (len(batch), len(contract.labels)):
            raise Rejected(f"the model gives {logits.shape} for {len(batch)} texts and {len(contract.labels)} labels")
        scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
        result: NDArray[np.float32] = scaled / scaled.sum(axis=1, keepdims=True)
        return result

    def read(self, row: NDArray[np.float32], top: int = 0) -> Output:
        """One row of probabilities as an answer: the best label first, at most `top` of them (0: all), 6 decimals.

        Raises `NotFinite` for a row that holds no probabilities.
        """
        if not np.isfinite(row).all():
            raise NotFinite("the model gave no finite number for this text", remedy="Correct or leave out this text.")
        order = np.argsort(-row, kind="stable")[: top if top > 0 else None]
        labels = self.contract.labels
        scores = [LabelScore(labels[at], round(float(row[at]), DIGITS)) for at in order]
        return Output(scores[0].label, scores[0].score, scores)

    def _check_graph(self) -> None:
        inputs = {given.name: given.type for given in self._session.get_inputs()}
        wanted = self.contract.input_names
        if set(inputs) != set(wanted) or set(wanted) - {"input_ids", "attention_mask", "token_type_ids"}:
            raise Rejected(f"the graph takes {sorted(inputs)}, llmos.json says {sorted(wanted)}")
        if any(kind != "tensor(int64)" for kind in inputs.values()):
            raise Rejected(f"the graph's inputs are {inputs}, and not all int64")
        if self.contract.output_name not in {given.name for given in self._session.get_outputs()}:
            raise Rejected(f"the graph has no output {self.contract.output_name!r}")


def _contract(path: Path) -> ServingContract:
    try:
        contract = msgspec.json.decode(path.read_bytes(), type=ServingContract)
    except (OSError, msgspec.DecodeError) as error:
        raise Rejected(f"the artifact's llmos.json can't be read: {error}", remedy="Export the model again.") from error
    if contract.format != FORMAT:
        raise Rejected(
            f"the artifact has format {contract.format}", remedy=f"Upgrade this inferencer; it reads format {FORMAT}."
        )
    if contract.task != TASK or not contract.labels or contract.max_length < 1:
        raise Rejected(
            f"llmos.json says {contract.task!r}, {len(contract.labels)} labels, max_length {contract.max_length}",
            remedy=f"This version serves {TASK}.",
        )
    return contract


def _providers() -> list[str]:
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in ort.get_available_providers()]


def _options(threads: int) -> Any:
    _share_arena()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads win 0.4 ms of 2.4 on an idle machine and lose 3.5 ms where others want the cores too.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


@cache
def _share_arena() -> None:
    """One arena for the activations of all sessions, grown by what is asked for: they never hold three times what
    one needs.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": 1}))
