"""What serving knows of a loaded artifact: two protocols, and one table that says which class serves which task.

A `BatchEngine` answers an input in one pass; the lanes put inputs of several requests into one run. A `Generator` runs
by itself, step by step, and requests join and leave it. Both are blocking code without a bus, loaded in a thread.
"""

import asyncio
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct, field

from llmos.contracts.inference import FinishReason, InferenceRequested, Input, Output, TokenLogprob, Usage
from llmos.contracts.models import ServingContract
from llmos.errors import Busy, LlmosError, Rejected

FORMAT = 1  # of llmos.json


class Means(Struct, frozen=True):
    """What an engine may use: CPU threads, the device of the lease (`cpu`, `cuda:0`), bytes of memory beside the
    weights (0: not limited), for caches, and bytes of the GPU (0: all of it).
    """

    threads: int
    device: str = "cpu"
    memory: int = 0
    gpu_memory: int = 0


# --- one pass ---


class Row(Struct, gc=False):
    """One row of a run. `length` is what it costs (tokens, or as many as cost the same); rows of equal `kind` may
    share a run.
    """

    length: int
    kind: int = 0


class Prepared(Struct):
    """An input as its graph takes it: the rows to run (several when a long text is read in windows), the size for the
    tokens' bill, and whatever `read` needs.
    """

    rows: Sequence[Row]
    tokens: int = 0
    source: Any = None


class BatchEngine(Protocol):
    """A model that answers in one pass. All methods may be called from several threads at once."""

    contract: ServingContract
    takes: Literal["text", "image", "audio"]
    reserved: int
    """Bytes by which it may still grow."""

    def prepare(self, inputs: Sequence[Input]) -> list[Prepared]:
        """Tokenise, or decode and resize. Raises `Rejected` whose `param` names the input at fault."""
        ...

    def run(self, rows: Sequence[Row]) -> Sequence[Any]:
        """One padded run: what was found for each row. Raises what onnxruntime raises."""
        ...

    def read(self, prepared: Prepared, found: Sequence[Any], request: InferenceRequested) -> Output:
        """The answer for one input from what was found for its rows. Raises `NotFinite` for NaN or infinity."""
        ...

    def close(self) -> None:
        """Let go of the session; nothing is called afterwards."""
        ...


# --- many steps ---


class Piece(Struct, frozen=True, gc=False):
    """What was generated since the piece before, to be appended to output number `output`."""

    output: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason = ""


class Generated(Struct, frozen=True):
    """All outputs of a request (`params.n` for each input, in order), the bill, and when computing began and the first
    token was there (monotonic seconds).
    """

    outputs: list[Output]
    usage: Usage
    started_at: float
    first_at: float


class Generation(Protocol):
    """One request in a generator. Used on the event loop only."""

    done: asyncio.Future[Generated]
    """Resolves to the whole answer or to an `LlmosError` for the asker."""
    begun: bool
    """Whether a slot was given to it; before, giving the request back costs nothing."""

    def stop(self) -> None:
        """The asker wants no more: `done` resolves within a step, with what there is and `cancelled`."""
        ...

    def withdraw(self) -> None:
        """Nobody is here to answer any more: free its slots within a step; `done` is cancelled."""
        ...


class Generator(Protocol):
    """A model that generates step by step, on a thread of its own."""

    contract: ServingContract
    takes: Literal["text", "image", "audio"]
    reserved: int
    """Bytes by which it may still grow: caches that fill while it serves."""
    capacity: int
    """How many requests it wants to hold, those that wait for a slot included: serving pulls no more."""

    def submit(self, request: InferenceRequested, rank: int, say: Callable[[Piece], None]) -> Generation:
        """Take a request; called on the event loop, returns at once (tokenising goes to the engine's thread).

        `request.inputs` are `Input`s whose artifacts were fetched. `rank` is 0 for interactive, 1 for batch; within a
        rank, `request.priority` and fairness among tenants decide. `say` is called on the event loop for every piece if
        `request.params.stream`. Raises `Rejected` at once for a request that can never fit or has bad parameters. A
        deadline that passes before a slot is free fails it with `Late`.
        """
        ...

    def close(self) -> None:
        """End the thread and let go of the session; nothing is in it any more."""
        ...


Engine = BatchEngine | Generator


class NotFinite(Rejected):
    """The model gave NaN or infinity for an input."""

    code = "not_finite"


class Late(Rejected):
    """The request's deadline passed before its turn came."""

    code = "deadline"


class OutOfMemory(Busy):
    """There was not enough memory to compute this."""

    code = "no_memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of onnxruntime, CUDA or Python means that memory was short."""
    text = str(error)
    return isinstance(error, MemoryError | OutOfMemory) or any(
        sign in text for sign in ("Failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")
    )


def at_fault(error: LlmosError, param: str) -> Rejected:
    """The same error about one input."""
    problem = error.problem
    return Rejected(problem.message, remedy=problem.remedy, code=problem.code, param=param)


# --- loading ---

ENGINES: dict[str, str] = {
    "text-classification": "llmos_inferencer.encoding.labels:Classifier",
    "token-classification": "llmos_inferencer.encoding.entities:TokenClassifier",
    "question-answering": "llmos_inferencer.encoding.answers:QuestionAnswerer",
    "embeddings": "llmos_inferencer.encoding.vectors:Embedder",
    "image-classification": "llmos_inferencer.encoding.pictures:PictureClassifier",
    "audio-classification": "llmos_inferencer.encoding.sounds:SoundClassifier",
    "speech-recognition": "llmos_inferencer.encoding.sounds:Transcriber",
}
WRITES = "llmos_inferencer.decoding.generator:TextGenerator"  # whatever has a cache: it answers token by token


def load(root: Path, means: Means) -> Engine:
    """Open the artifact in `root` and run it once or twice. Blocking.

    Raises `Rejected` when nobody here serves its task, or its files don't belong together or can't be run.
    """
    contract = read_contract(root / "llmos.json")
    place = WRITES if contract.cache is not None else ENGINES.get(contract.task)
    if place is None:
        raise Rejected(
            f"nobody here serves the task {contract.task!r}",
            remedy=f"Upgrade this inferencer, or deploy one of: {', '.join(sorted(ENGINES))}.",
        )
    module, name = place.split(":")
    try:
        engine: Engine = getattr(import_module(module), name).load(root, contract, means)
    except LlmosError:
        raise
    except Exception as error:  # whatever onnxruntime or tokenizers raise: the next try would not help
        if is_out_of_memory(error):
            raise OutOfMemory(f"there is not enough memory to load it: {error}") from error
        raise Rejected(f"the artifact can't be loaded: {error}", remedy="Export the model again.") from error
    return engine


def read_contract(path: Path) -> ServingContract:
    """An artifact's `llmos.json`. Raises `Rejected` for one that can't be read or is of another format."""
    try:
        contract = msgspec.json.decode(path.read_bytes(), type=ServingContract)
    except (OSError, msgspec.DecodeError) as error:
        raise Rejected(f"the artifact's llmos.json can't be read: {error}", remedy="Export the model again.") from error
    if contract.format != FORMAT:
        raise Rejected(
            f"the artifact has format {contract.format}", remedy=f"Upgrade this inferencer; it reads format {FORMAT}."
        )
    if contract.max_length < 0:
        raise Rejected(f"llmos.json says max_length {contract.max_length}", remedy="Export the model again.")
    return contract
