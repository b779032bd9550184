"""Text generation as serving knows it: a `Generator` over the decoder engine."""

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from llmos.clock import Clock, SystemClock
from llmos.contracts.inference import InferenceRequested, Output, TokenAlternative, TokenLogprob, Usage
from llmos.contracts.models import Generation as Defaults
from llmos.contracts.models import ServingContract
from llmos.errors import LlmosError, Rejected
from llmos.ids import new_id
from llmos_inferencer.decoding.asking import Asking
from llmos_inferencer.decoding.crossed import CrossedGraph
from llmos_inferencer.decoding.decoder import Decoder, Heard
from llmos_inferencer.decoding.grammar import Grammars, Matcher
from llmos_inferencer.decoding.graph import AttentionGraph, Graph
from llmos_inferencer.decoding.plan import Limits
from llmos_inferencer.decoding.request import Chosen, Delta, Request
from llmos_inferencer.decoding.stepper import Say, Stepper, Vocabulary
from llmos_inferencer.engine import Generated, Late, Means, OutOfMemory, Piece
from llmos_inferencer.runtime import providers, session_options

ROWS = 32  # slots, if memory allows: beyond that a step takes as long as it has tokens (measured, int4 on 2 cores)
STALL_S = 0.06  # those who decode wait about so long at most for a chunk of somebody's prompt
SHARE = 0.5  # of the memory that is left for caches
PREFIX_SHARE = 0.2  # of it, for prompts that were computed
UNLIMITED = 2 << 30  # bytes for caches where no budget is set
SPINNING = {"allow_spinning": "1", "spin_duration_us": "100", "spin_backoff_max": "8"}
Say_ = Callable[[Piece], None]


class TextGenerator:
    """A decoder with its tokenizer, chat template and grammars, over whichever graph."""

    def __init__(
        self, graph: Graph, contract: ServingContract, root: Path, *, budget: int, clock: Clock | None = None
    ) -> None:
        """`budget` bounds the bytes of slots and of prompts that are kept."""
        self.contract = contract
        self.takes: Literal["text", "image", "audio"] = "audio" if contract.audio is not None else "text"
        self._clock = clock or SystemClock()
        defaults = contract.generation or Defaults()
        slots, prefixes = int(budget * (1 - PREFIX_SHARE)), int(budget * PREFIX_SHARE)
        tokens = min(graph.rows * graph.context, slots // graph.token_bytes)
        if tokens < 2:
            raise Rejected(
                f"{slots} bytes are left for slots, and one token takes {graph.token_bytes}",
                remedy="Set LLMOS_MEMORY to more.",
                code="no_memory",
            )
        self.limits = Limits(graph.rows, graph.context, tokens)
        self.capacity = 2 * graph.rows
        self.reserved = tokens * graph.token_bytes + prefixes
        path = root / contract.files.get("tokenizer", "tokenizer.json")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._asking = Asking(contract, self._tokenizer, self.limits)
        self._grammars = Grammars(path, graph.vocabulary, defaults.eos_token_ids)
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        vocabulary = Vocabulary(
            frozenset(defaults.eos_token_ids), tuple(defaults.suppress), tuple(defaults.suppress_first)
        )

        def make(say: Say) -> Stepper:
            return Stepper(
                graph,
                self._tokenizer,
                vocabulary,
                limits=self.limits,
                prefix_budget=prefixes,
                stall=STALL_S,
                say=say,
                monotonic=self._clock.monotonic,
            )

        self.decoder = Decoder(make, self._clock)

    @classmethod
    def load(cls, root: Path, contract: ServingContract, means: Means) -> "TextGenerator":
        """Open the artifact in `root` and run it. Raises what onnxruntime raises."""
        layout, files = contract.cache, contract.files
        if layout is None or contract.max_length < 2:
            raise Rejected("llmos.json says nothing of the decoder's cache", remedy="Export the model again.")
        budget = int(means.memory * SHARE) if means.memory else UNLIMITED
        context = contract.max_length
        if "encoder" not in files:
            session = open_decoder(root / files["model"], means)
            graph = AttentionGraph(session, layout, rows=ROWS, context=context, budget=budget)
            graph.prefill(0, [0, 0], 0)
            graph.decode([0] * 2, [3, 1])
            return cls(graph, contract, root, budget=budget)
        encoder, decoder = (open_decoder(root / files[name], means) for name in ("encoder", "decoder"))
        return cls(CrossedGraph(encoder, decoder, layout, rows=ROWS, context=context), contract, root, budget=budget)

    def submit(self, request: InferenceRequested, rank: int, say: Say_) -> "TextGeneration":
        """Queue a request. Raises `Rejected` at once for bad parameters; what is found out later is set on `done`."""
        self._asking.check(request.params)
        return TextGeneration(self, request, rank, say if request.params.stream else None)

    def close(self) -> None:
        self._preparing.shutdown(wait=True)
        self.decoder.close()

    # --- for a generation ---

    async def tokenised(self, request: InferenceRequested, rank: int) -> list[tuple[Request, Matcher | None]]:
        """Tokens and grammars, made in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, self._tokenise, request, rank)

    def _tokenise(self, request: InferenceRequested, rank: int) -> list[tuple[Request, Matcher | None]]:
        seed = request.params.seed if request.params.seed is not None else secrets.randbits(48)
        asked = self._asking.requests(request, rank, new_id("g"), seed)
        return [(one, self._grammars.matcher(one.constraint) if one.constraint else None) for one in asked]

    def monotonic(self) -> float:
        """Seconds by the clock that deltas are stamped with."""
        return self._clock.monotonic()

    def token(self, id: int) -> str:
        """One token as text."""
        return str(self._tokenizer.decode([id], skip_special_tokens=False))


class TextGeneration:
    """One request, from its submission to its answer. Lives on the event loop."""

    def __init__(self, generator: TextGenerator, request: InferenceRequested, rank: int, say: Say_ | None) -> None:
        self.done: asyncio.Future[Generated] = asyncio.get_running_loop().create_future()
        self.begun = False
        self._generator = generator
        self._n = request.params.n
        self._say = say
        self._outputs = [_Writing() for _ in range(len(request.inputs) * self._n)]
        self._ids: list[str] = []
        self._prompt_tokens = self._cached = 0
        self._started = self._first = 0.0
        self._stopped = False
        self._left = len(self._outputs)
        self._task = asyncio.create_task(self._submit(request, rank))

    def stop(self) -> None:
        """End it with what there is."""
        self._stopped = True
        for id in self._ids:
            self._generator.decoder.cancel(id)

    def withdraw(self) -> None:
        """Forget it."""
        self._task.cancel()
        self._end()
        self.done.cancel()

    async def _submit(self, request: InferenceRequested, rank: int) -> None:
        try:
            asked = await self._generator.tokenised(request, rank)
        except LlmosError as error:
            self._fail(error)
            return
        except Exception as error:  # noqa: BLE001 - about this request, whatever it is; the asker must hear of it
            self._fail(Rejected(f"the request can't be read: {error}", code="unanswerable", param="inputs"))
            return
        if not asked:
            self._finish()
            return
        for at, (one, matcher) in enumerate(asked):
            self._ids.append(one.id)
            self._prompt_tokens += one.read
            self._generator.decoder.submit(one, matcher, partial(self._hear, at))
        if self._stopped:
            self.stop()

    def _hear(self, at: int, heard: Heard) -> None:
        for moment, delta in heard:
            if self.done.done():
                return
            if delta.problem is not None:
                problem = delta.problem
                kind = next((one for one in (Late, OutOfMemory) if one.code == problem.code), Rejected)
                self._fail(kind(problem.message, remedy=problem.remedy, code=problem.code, param=problem.param))
                return
            if not self.begun:
                self.begun, self._started = True, moment
            if delta.token_ids and not self._first:
                self._first = moment
            self._cached += delta.cached if delta.output == 0 else 0
            self._write(at * self._n + delta.output, delta)
        if not self._left:
            self._finish()

    def _write(self, number: int, delta: Delta) -> None:
        output = self._outputs[number]
        told = [self._logprob(chosen) for chosen in delta.logprobs]
        output.text.append(delta.text)
        output.token_ids += delta.token_ids
        output.logprobs += told
        output.unsaid_ids += delta.token_ids
        output.unsaid += told
        if delta.finish:
            output.finish = delta.finish
            self._left -= 1
        if self._say is not None and (delta.text or delta.finish):
            ids, output.unsaid_ids = output.unsaid_ids, []
            logprobs, output.unsaid = output.unsaid, []
            self._say(Piece(number, delta.text, ids, logprobs, delta.finish))

    def _logprob(self, chosen: Chosen) -> TokenLogprob:
        token = self._generator.token
        top = [TokenAlternative(id, token(id), round(value, 6)) for id, value in chosen.top]
        return TokenLogprob(chosen.id, token(chosen.id), round(chosen.logprob, 6), top)

    def _finish(self) -> None:
        outputs = [
            Output(
                text="".join(output.text),
                token_ids=output.token_ids,
                finish_reason=output.finish,
                logprobs=output.logprobs,
            )
            for output in self._outputs
        ]
        written = sum(len(output.token_ids) for output in self._outputs)
        now = self._generator.monotonic()
        usage = Usage(self._prompt_tokens, self._cached, written)
        self._end()
        if not self.done.done():
            self.done.set_result(Generated(outputs, usage, self._started or now, self._first or now))

    def _fail(self, error: LlmosError) -> None:
        self._end()
        if not self.done.done():
            self.done.set_exception(error)

    def _end(self) -> None:
        for id in self._ids:
            self._generator.decoder.forget(id)


class _Writing:
    """One output so far; `unsaid` is what no piece has told yet."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.unsaid_ids: list[int] = []
        self.unsaid: list[TokenLogprob] = []
        self.finish: Any = ""


def open_decoder(path: Path, means: Means) -> Any:
    """A session for a decoder. Its threads wait for the next of many small operators awake, but briefly: measured
    (125 M parameters, int4, 2 cores), a token alone takes 2.8 ms instead of 4.2, and where others want the cores a step
    of eight rows takes 23 ms instead of 38 with threads that spin on.
    """
    import onnxruntime as ort

    if means.device != "cpu":
        raise Rejected(
            f"the replica leases {means.device}, and text is written on CPUs only",
            remedy="Deploy this model without GPUs.",
            code="device",
        )
    options = session_options(means.threads, SPINNING)
    return ort.InferenceSession(str(path), options, providers=providers("cpu"))
