"""Generated text on its way to who asked, from an engine whose every word is known: streams, recalls, silent askers."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import msgspec
import pytest

from llmos.artifacts import put_tree
from llmos.contracts import subjects
from llmos.contracts.inference import (
    ClientPresent,
    InferenceAnswered,
    InferenceCancelRequested,
    InferenceDelta,
    InferenceMetered,
    InferenceParams,
    InferenceRequested,
    Input,
    Output,
    Usage,
)
from llmos.contracts.models import ModelVersion, ServingContract
from llmos.errors import Rejected
from llmos.ids import new_id
from llmos_inferencer import engine
from llmos_inferencer.engine import Generated, Means, OutOfMemory, Piece

BETWEEN_S = 0.01


class Saying:
    """A request in the parrot."""

    def __init__(self) -> None:
        self.done: asyncio.Future[Generated] = asyncio.get_running_loop().create_future()
        self.begun = False
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True

    def withdraw(self) -> None:
        self.stopped = True
        self.done.cancel()


class Parrot:
    """Repeats the words of its input, again and again, until `max_tokens` words were said."""

    takes: Literal["text"] = "text"
    reserved = 0
    capacity = 4
    living: ClassVar[list["Saying"]] = []
    short_of_memory: ClassVar[int] = 0

    def __init__(self, contract: ServingContract) -> None:
        self.contract = contract
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def load(cls, root: Path, contract: ServingContract, means: Means) -> Self:
        return cls(contract)

    def submit(self, request: InferenceRequested, rank: int, say: Callable[[Piece], None]) -> Saying:
        (given,) = request.inputs
        assert isinstance(given, Input)
        if not given.text:
            raise Rejected("nothing to repeat", param="inputs[0]")
        saying = Saying()
        self.living.append(saying)
        self._tasks.add(asyncio.create_task(self._say(saying, given.text.split(), request.params, say)))
        return saying

    async def _say(self, saying: Saying, words: list[str], params: InferenceParams, say: Any) -> None:
        loop = asyncio.get_running_loop()
        saying.begun, started, said = True, loop.time(), list[str]()
        if Parrot.short_of_memory:
            Parrot.short_of_memory -= 1
            saying.done.set_exception(OutOfMemory("Failed to allocate memory"))
            return
        while len(said) < params.max_tokens and not saying.stopped:
            said.append(words[len(said) % len(words)] + " ")
            if params.stream:
                say(Piece(0, said[-1], [len(said)]))
            await asyncio.sleep(BETWEEN_S)
        if not saying.done.done():
            output = Output(text="".join(said), finish_reason="cancelled" if saying.stopped else "length")
            saying.done.set_result(Generated([output], Usage(len(words), 0, len(said)), started, started + BETWEEN_S))

    def close(self) -> None:
        pass


async def register(stand: Any, monkeypatch: pytest.MonkeyPatch) -> ModelVersion:
    monkeypatch.setitem(engine.ENGINES, "text-generation", f"{__name__}:Parrot")
    root = stand.folder / "parrot"
    root.mkdir()
    (root / "llmos.json").write_bytes(msgspec.json.encode(ServingContract("text-generation", [], 64, 0, "", [])))
    Parrot.living.clear()
    version: ModelVersion = stand.sign("mood", 1, await put_tree(stand.store, root, kind="onnx"))
    return version


@pytest.fixture
async def parrot(stand: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """A stand with an inferencer that serves a parrot as `mood`."""
    version = await register(stand, monkeypatch)
    async with stand.running():
        await stand.ready(await stand.deploy(version))
        yield stand


async def stream(stand: Any, id: str, text: str, max_tokens: int, **more: Any) -> tuple[list[InferenceDelta], Any]:
    """Ask for a stream: its deltas and its answer."""
    params = InferenceParams(max_tokens=max_tokens, stream=True)
    body = InferenceRequested(stand.bus.client, [text], params=params, **more)
    deltas: list[InferenceDelta] = []
    subject = subjects.infer("mood", id)
    said = stand.bus.ask_stream(subject, body, type="llmos.inference.requested.v1", id=id, timeout=20.0)
    async with aclosing(said) as replies:
        async for kind, data in replies:
            if kind == "llmos.inference.answered.v1":
                return deltas, msgspec.json.decode(data, type=InferenceAnswered)
            deltas.append(msgspec.json.decode(data, type=InferenceDelta))
    raise AssertionError("no answer")


async def begun(count: int = 1) -> None:
    while len(Parrot.living) < count:
        await asyncio.sleep(0.01)


async def test_the_deltas_of_a_stream_add_up_to_its_answer_which_comes_last(parrot: Any) -> None:
    deltas, answer = await stream(parrot, "r-1", "pretty polly", 12)
    assert "".join(delta.text for delta in deltas) == answer.outputs[0].text == "pretty polly " * 6
    assert [delta.sequence for delta in deltas] == list(range(len(deltas)))
    assert (answer.usage, answer.attempt) == (Usage(2, 0, 12), 1)
    assert 0 < answer.ttft_ms < answer.queue_ms + answer.compute_ms


async def test_streams_of_several_askers_do_not_mix(parrot: Any) -> None:
    results = await asyncio.gather(*(stream(parrot, f"r-{word}", word, 9) for word in ("one", "two", "three")))
    for word, (deltas, answer) in zip(("one", "two", "three"), results, strict=True):
        assert "".join(delta.text for delta in deltas) == answer.outputs[0].text == f"{word} " * 9


async def test_a_request_that_is_recalled_is_answered_with_what_there_is(parrot: Any) -> None:
    asked = asyncio.create_task(stream(parrot, "r-1", "polly", 10_000))
    await begun()
    await parrot.bus.publish(subjects.control_cancel("r-1"), InferenceCancelRequested("r-1"), type="x")
    deltas, answer = await asked
    assert answer.outputs[0].finish_reason == "cancelled"
    assert answer.outputs[0].text == "".join(delta.text for delta in deltas)


async def test_a_request_that_was_recalled_before_it_came_is_not_begun(parrot: Any) -> None:
    running = asyncio.create_task(stream(parrot, "r-0", "polly", 10_000))
    await begun()
    for id in ("r-1", "r-0"):
        await parrot.bus.publish(subjects.control_cancel(id), InferenceCancelRequested(id), type="x")
    await running  # so the recall before it was heard, too
    _, answer = await stream(parrot, "r-1", "polly", 10_000)
    assert answer.problem.code == "cancelled"
    assert len(Parrot.living) == 1


async def test_an_asker_that_is_silent_for_too_long_frees_its_slot_and_one_that_is_there_keeps_it(
    parrot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmos_inferencer.serving.ACK_WAIT_S", 0.3)
    await parrot.deploy(None)
    await parrot.unloaded()
    await parrot.ready(await parrot.deploy(parrot.sign("mood", 1, (await artifact_of(parrot)))))
    _, answer = await stream(parrot, "r-1", "polly", 10_000, keep=0.2)
    assert answer.outputs[0].finish_reason == "cancelled"
    present = asyncio.create_task(stream(parrot, "r-2", "polly", 200, keep=0.2))
    while not present.done():
        client = parrot.bus.client
        await parrot.bus.publish(subjects.control_keep(client), ClientPresent(client), type="x")
        await asyncio.sleep(0.05)
    assert present.result()[1].outputs[0].finish_reason == "length"


async def artifact_of(stand: Any) -> str:
    return await put_tree(stand.store, stand.folder / "parrot", kind="onnx")


async def test_a_deadline_ends_a_generation_with_a_problem(parrot: Any) -> None:
    _, answer = await stream(parrot, "r-1", "polly", 10_000, deadline=time.time() + 0.3)
    assert answer.problem.code == "deadline"
    assert Parrot.living[0].stopped


async def test_what_was_begun_is_finished_at_a_drain_within_its_time_and_begun_again_elsewhere_after_it(
    stand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assigned = await stand.deploy(await register(stand, monkeypatch))
    async with stand.running(drain_s=0.3):
        await stand.ready(assigned)
        short = asyncio.create_task(stream(stand, "r-1", "polly", 10))
        long = asyncio.create_task(stream(stand, "r-2", "polly", 150))
        await begun(2)
    assert (await short)[1].attempt == 1
    async with stand.running():
        deltas, answer = await long
    assert (answer.attempt, answer.outputs[0].text) == (2, "polly " * 150)
    assert "".join(delta.text for delta in deltas if delta.attempt == 2) == "polly " * 150


async def test_bad_parameters_are_a_problem_and_the_bill_is_in_the_history(parrot: Any) -> None:
    assert (await stream(parrot, "r-1", "", 3))[1].problem.param == "inputs[0]"
    await stream(parrot, "r-2", "pretty polly", 3)
    await parrot.deploy(None)
    metered = await parrot.until(InferenceMetered)
    assert (metered.requests, metered.failures) == (2, 1)
    assert (metered.prompt_tokens, metered.completion_tokens) == (2, 3)
    assert metered.ttft_p50_ms > 0 and metered.tpot_p50_ms > 0


async def test_memory_that_ran_out_is_made_by_unloading_another_model_and_the_request_tried_again(parrot: Any) -> None:
    await parrot.ready(await parrot.deploy(await parrot.register(model="other"), name="other"))
    Parrot.short_of_memory = 1
    assert (await stream(parrot, new_id("r"), "polly", 3))[1].outputs[0].text == "polly " * 3
    assert "none left" in (await parrot.unloaded("other")).reason
    Parrot.short_of_memory = 1  # nothing is left to unload
    assert (await stream(parrot, new_id("r"), "polly", 3))[1].problem.code == "no_memory"
    assert (await parrot.ask("good", name="other")).outputs[0].label == "up-1"
