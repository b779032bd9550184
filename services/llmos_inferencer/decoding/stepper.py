"""One step at a time: requests join, prompts are computed in chunks, every row that decodes gets one token, outputs
that are complete leave. Blocking code for one thread; it knows no event loop, and a clock is handed in.
"""

from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from llmos.errors import LlmosError, Problem
from llmos_inferencer.decoding import plan
from llmos_inferencer.decoding.grammar import Matcher
from llmos_inferencer.decoding.graph import Floats, Graph
from llmos_inferencer.decoding.prefixes import Prefixes
from llmos_inferencer.decoding.request import Chosen, Delta, FinishReason, Request
from llmos_inferencer.decoding.sampling import choose, logprobs, uniform
from llmos_inferencer.decoding.text import Decodes, Detokenizer, StopTexts
from llmos_inferencer.engine import OutOfMemory, is_out_of_memory

MEASURE = 0.2  # how much the newest measurement weighs
Ids = NDArray[np.intp]
Say = Callable[[str, Delta], None]  # (request, delta)


class Vocabulary(Struct, frozen=True):
    """Which tokens end a text, which are never chosen, and which not as the first."""

    eos: frozenset[int] = frozenset()
    suppress: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()


class Output(Struct, eq=False):
    """One text being written: its slot, how many tokens the slot holds, and the token to feed next."""

    request: Request
    index: int
    row: int
    text: Detokenizer
    stops: StopTexts
    length: int = 0
    token: int = 0
    written: int = 0
    matcher: Matcher | None = None
    seen: NDArray[np.bool_] | None = None


class Job(Struct, eq=False):
    """A request that has slots."""

    request: Request
    want: plan.Want
    prompt: plan.Prompt | None = None  # while it is computed
    outputs: list[Output] = field(default_factory=list)
    cached: int = 0


class Stepper:
    """All requests of one model.

    `say` is told every delta of a step in order: an empty one when the request gets its slots; the last of each output
    carries `finish`, or one delta the `problem`. `stall` is about how long, in seconds, a chunk of a prompt may keep
    those who decode waiting.
    """

    def __init__(
        self,
        graph: Graph,
        tokenizer: Decodes,
        vocabulary: Vocabulary,
        *,
        limits: plan.Limits,
        prefix_budget: int,
        stall: float,
        say: Say,
        monotonic: Callable[[], float],
    ) -> None:
        self.graph = graph
        self.limits = limits
        self.seconds_a_token = 0.0  # of a prompt, as measured lately
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._prefixes = Prefixes(prefix_budget)
        self._stall = stall
        self._say = say
        self._monotonic = monotonic
        self._line = plan.Line()
        self._room = plan.Room(limits)
        self._requests: dict[str, tuple[Request, Matcher | None]] = {}  # in line
        self._jobs: dict[str, Job] = {}
        self._decoding: dict[int, Output] = {}  # by row
        self._holes: dict[int, int] = {}
        self._number = 0
        self._step = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._jobs or len(self._line))

    @property
    def waiting(self) -> int:
        """Requests without slots."""
        return len(self._line)

    @property
    def decoding(self) -> int:
        """Outputs that get a token in every step."""
        return len(self._decoding)

    def add(self, request: Request, matcher: Matcher | None = None) -> None:
        """A request waits for its slots. It was checked with `plan.refuse_unless_fits`."""
        self._number += 1
        self._requests[request.id] = request, matcher
        want = plan.Want(
            request.id,
            self._number,
            request.n,
            request.tokens,
            request.tenant,
            request.rank,
            request.priority,
            request.deadline,
        )
        self._line.add(want, active=(job.request.tenant for job in self._jobs.values()))

    def cancel(self, id: str) -> None:
        """Free everything that a request holds, at once; its outputs are told as `cancelled`."""
        if id in self._jobs:
            self._close(self._jobs[id], "cancelled")
        elif id in self._requests:
            request, _ = self._forget(id)
            for index in range(request.n):
                self._say(id, Delta(index, finish="cancelled"))

    def fail(self, id: str, problem: Problem) -> None:
        """End a request with a problem."""
        if id in self._jobs:
            self._close(self._jobs[id])
        elif id in self._requests:
            self._forget(id)
        self._say(id, Delta(problem=problem))

    def fail_all(self, problem: Problem) -> None:
        """End every request with a problem."""
        for id in [*self._requests, *self._jobs]:
            self.fail(id, problem)

    def expire(self, now: float, problem: Problem) -> None:
        """End the requests whose deadline passed, before any work is done for those that wait."""
        late = [
            id for id, job in self._jobs.items() if job.request.deadline is not None and job.request.deadline <= now
        ]
        for id in [*self._line.expired(now), *late]:
            self.fail(id, problem)

    def step(self) -> None:
        """Compute one chunk of a prompt, if one is due, and a token for every row that decodes."""
        self._step += 1
        self._admit()
        size = plan.chunk_tokens(self.seconds_a_token, self._stall)
        while (chunk := plan.next_chunk(self._prompts(), size, self._step)) is not None:
            prompt, end = chunk
            self._prefill(next(job for job in self._jobs.values() if job.prompt is prompt), end)
            if not self.graph.together:
                break
        for source, target in plan.moves(self._decoding, self._rows(), self._holes, self._step):
            self._move(source, target)
        if self._decoding:
            self._decode()

    # --- slots ---

    def _admit(self) -> None:
        while (want := self._line.head()) is not None and self._room.fits(want):
            request, matcher = self._forget(want.id)
            self._line.charge(want.tenant, len(request.prompt))
            row = self._room.take(want)
            known, saved = (0, None) if request.source is not None else self._prefixes.find(request.prompt)
            prompt = plan.Prompt(row, want.number, want.rank, len(request.prompt), known)
            job = Job(request, want, prompt, cached=known)
            job.outputs.append(self._output(request, 0, row, matcher))
            self._jobs[want.id] = job
            if known:
                self.graph.load(row, saved, known)
            self._say(want.id, Delta(cached=known))

    def _output(self, request: Request, index: int, row: int, matcher: Matcher | None) -> Output:
        output = Output(request, index, row, Detokenizer(self._tokenizer), StopTexts(request.stop), matcher=matcher)
        if request.sampling.repetition_penalty != 1.0:
            output.seen = np.zeros(self.graph.vocabulary, np.bool_)
            output.seen[request.prompt] = True
        return output

    def _forget(self, id: str) -> tuple[Request, Matcher | None]:
        self._line.remove(id)
        return self._requests.pop(id)

    def _prompts(self) -> list[plan.Prompt]:
        return [job.prompt for job in self._jobs.values() if job.prompt is not None]

    def _rows(self) -> list[int]:
        return [output.row for job in self._jobs.values() for output in job.outputs]

    def _move(self, source: int, target: int) -> None:
        output = self._decoding.pop(source)
        self.graph.copy(source, target, output.length)
        self.graph.leave(source)
        self._room.moved(source, target)
        output.row = target
        self._decoding[target] = output

    def _free(self, job: Job, output: Output) -> None:
        self._decoding.pop(output.row, None)
        self._room.give_back(output.row, job.want.tokens)
        self.graph.leave(output.row)
        job.outputs.remove(output)

    def _close(self, job: Job, finish: FinishReason = "") -> None:
        """The request ends now; with `finish`, each of its outputs is told so."""
        if job.prompt is not None:
            self._room.give_back_kept(job.want.rows - 1, job.want.tokens)
            if finish:
                for index in range(1, job.want.rows):
                    self._say(job.request.id, Delta(index, finish=finish))
        for output in list(job.outputs):
            if finish:
                self._say(job.request.id, Delta(output.index, output.stops.flush(), finish=finish))
            self._free(job, output)
        self._jobs.pop(job.request.id, None)

    # --- computing ---

    def _prefill(self, job: Job, end: int) -> None:
        prompt, request = job.prompt, job.request
        assert prompt is not None  # it was chosen for having one
        began, done = self._monotonic(), prompt.done
        try:
            logits = self.graph.prefill(prompt.row, request.prompt[prompt.done : end], prompt.done, request.source)
        except Exception as error:  # noqa: BLE001 - about this prompt, whatever it is: the others go on
            self.fail(request.id, _problem(error))
            return
        self._measure((self._monotonic() - began) / (end - done))
        prompt.done, prompt.chunks = end, prompt.chunks + 1
        if end < prompt.length:
            return
        job.prompt = None
        if request.source is None and self._prefixes.worth(request.prompt, job.cached):
            saved = self.graph.save(prompt.row, end)
            if saved is not None:
                self._prefixes.keep(request.prompt, saved, end * self.graph.token_bytes)
        first = job.outputs[0]
        first.length = end
        for index in range(1, request.n):
            row = self._room.take_kept()
            self.graph.copy(prompt.row, row, end)
            matcher = first.matcher.fork() if first.matcher is not None else None
            output = self._output(request, index, row, matcher)
            output.length = end
            job.outputs.append(output)
        outputs = list(job.outputs)
        self._decoding.update((output.row, output) for output in outputs)
        logits = logits.copy()
        for output in outputs:
            if request.id in self._jobs:
                self._take(job, output, logits)

    def _measure(self, seconds: float) -> None:
        known = self.seconds_a_token
        self.seconds_a_token = known + (seconds - known) * MEASURE if known else seconds

    def _decode(self) -> None:
        """A token for every row that decodes; rows between them that don't are computed along and ignored."""
        top = max(self._decoding) + 1
        tokens, lengths = [0] * top, [1] * top
        for prompt in self._prompts():
            if prompt.row < top:
                lengths[prompt.row] = prompt.done + 1  # where the next chunk will write over it
        for row, output in self._decoding.items():
            tokens[row], lengths[row] = output.token, output.length + 1
        try:
            logits = self.graph.decode(tokens, lengths)
        except Exception:  # noqa: BLE001 - one row may be at fault: each alone, the others go on
            self._decode_alone()
            return
        outputs = [output for _, output in sorted(self._decoding.items())]
        if all(_is_plain(output) for output in outputs):
            chosen: Sequence[int] | None = logits.argmax(axis=1).tolist()
        else:
            chosen = None
        for output in outputs:
            job = self._jobs.get(output.request.id)
            if job is None:
                continue  # another output of the request failed
            output.length += 1
            self._take(job, output, logits[output.row], chosen[output.row] if chosen else None)

    def _decode_alone(self) -> None:
        for row, output in sorted(self._decoding.items()):
            job = self._jobs.get(output.request.id)
            if job is None:
                continue
            try:
                logits = self.graph.decode([output.token], [output.length + 1], row)[0]
            except Exception as error:  # noqa: BLE001 - this row's request is answered with it
                self.fail(output.request.id, _problem(error))
                continue
            output.length += 1
            self._take(job, output, logits)

    def _take(self, job: Job, output: Output, logits: Floats, token: int | None = None) -> None:
        """Choose an output's next token, tell it, and end the output if it is complete."""
        request, sampling = output.request, output.request.sampling
        try:
            if token is None or self._vocabulary.suppress or self._vocabulary.suppress_first:
                token = self._choose(output, logits)
            if not np.isfinite(logits[token]):
                raise _NotFiniteError
            told: list[Chosen] = [logprobs(logits, token, sampling.logprobs)] if sampling.logprobs else []
            output.written += 1
            ended = token in self._vocabulary.eos
            complete = output.matcher is not None and not ended and output.matcher.accept(token)
        except LlmosError as error:
            self.fail(request.id, error.problem)
            return
        except _NotFiniteError:
            message = "the model gave no finite number for this text"
            self.fail(request.id, Problem("not_finite", message, "Correct or leave out this text.", "inputs"))
            return
        self._line.charge(request.tenant, 1)
        if output.seen is not None:
            output.seen[token] = True
        text, stopped = output.stops.feed("" if ended else output.text.feed(token))
        finish: FinishReason = ""
        if ended or stopped or complete:
            finish = "stop"
        elif output.written >= request.max_tokens:
            finish = "length"
        if finish and not stopped:
            text += output.stops.flush()
        output.token = token
        self._say(request.id, Delta(output.index, text, [token], told, finish))
        if finish:
            self._free(job, output)
            if not job.outputs:
                del self._jobs[request.id]

    def _choose(self, output: Output, logits: Floats) -> int:
        sampling = output.request.sampling
        allowed = output.matcher.allowed() if output.matcher is not None else None
        banned = [*self._vocabulary.suppress, *(self._vocabulary.suppress_first if not output.written else ())]
        if banned:
            allowed = np.ones(len(logits), np.bool_) if allowed is None else allowed.copy()
            allowed[banned] = False
        seen: Ids | None = np.flatnonzero(output.seen) if output.seen is not None else None
        draw = uniform(sampling.seed, output.index, output.written) if sampling.temperature > 0 else 0.0
        return choose(logits, sampling, draw, seen=seen, allowed=allowed)


class _NotFiniteError(Exception):
    """The chosen token's logit is no number."""


def _is_plain(output: Output) -> bool:
    sampling = output.request.sampling
    return sampling.temperature <= 0 and output.seen is None and output.matcher is None


def _problem(error: Exception) -> Problem:
    if isinstance(error, LlmosError):
        return error.problem
    if is_out_of_memory(error):
        return Problem(OutOfMemory.code, f"there was not enough memory for a step: {error}")
    return Problem("unanswerable", f"the model can't compute this text: {error}", "Correct or leave it out.", "inputs")
