"""Rules of generated text through the bus, by a real model in a real inferencer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from decoders import write_artifact
from llmos.artifacts import put_tree
from llmos.contracts import subjects
from llmos.contracts.inference import (
    InferenceAnswered,
    InferenceCancelRequested,
    InferenceDelta,
    InferenceParams,
    InferenceRequested,
    Input,
    Message,
)
from llmos.ids import new_id

ASKED = "llmos.inference.requested.v1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("serving"), context=2048)


@pytest.fixture
async def model(stand: Any, folder: Path) -> AsyncIterator[Any]:
    """A stand with an inferencer that serves a decoder as `mood`."""
    version = stand.sign("mood", 1, await put_tree(stand.store, folder, kind="onnx"))
    async with stand.running():
        await stand.ready(await stand.deploy(version))
        yield stand


async def stream(stand: Any, id: str, given: Input, **params: Any) -> tuple[list[InferenceDelta], InferenceAnswered]:
    body = InferenceRequested(stand.bus.client, [given], params=InferenceParams(stream=True, **params))
    deltas: list[InferenceDelta] = []
    async with aclosing(
        stand.bus.ask_stream(subjects.infer("mood", id), body, type=ASKED, id=id, timeout=30.0)
    ) as said:
        async for kind, data in said:
            if kind == "llmos.inference.answered.v1":
                return deltas, msgspec.json.decode(data, type=InferenceAnswered)
            deltas.append(msgspec.json.decode(data, type=InferenceDelta))
    raise AssertionError("no answer")


async def test_the_deltas_of_streams_beside_each_other_add_up_to_their_answers(model: Any) -> None:
    chats = [Input(messages=[Message("user", word)]) for word in ("good", "bad", "the camera", "screen")]
    found = await asyncio.gather(
        *(stream(model, new_id("r"), chat, max_tokens=40, temperature=1.0, seed=1) for chat in chats)
    )
    for deltas, answer in found:
        assert answer.problem is None
        (output,) = answer.outputs
        assert [delta.sequence for delta in deltas] == list(range(len(deltas)))
        assert "".join(delta.text for delta in deltas) == output.text
        assert [token for delta in deltas for token in delta.token_ids] == output.token_ids
        assert deltas[-1].finish_reason == output.finish_reason
        assert answer.usage.completion_tokens == len(output.token_ids)
        assert answer.ttft_ms > 0


async def test_a_recalled_stream_ends_within_a_step_and_its_neighbour_goes_on(model: Any) -> None:
    id = new_id("r")
    long = asyncio.create_task(stream(model, id, Input(text="the"), max_tokens=2000, regex="([a-z]{2000})"))
    near = asyncio.create_task(stream(model, new_id("r"), Input(text="a"), max_tokens=60, regex="[a-z]{60,80}"))
    await near
    await model.bus.publish(
        subjects.control_cancel(id), InferenceCancelRequested(id), type="llmos.inference.cancel-requested.v1"
    )
    _, answer = await long
    (output,) = answer.outputs
    assert output.finish_reason == "cancelled" and 0 < len(output.token_ids) < 2000
    assert len((await near)[1].outputs[0].token_ids) > 10


async def test_a_prompt_that_cannot_fit_is_a_problem_with_the_numbers(model: Any) -> None:
    _, answer = await stream(model, new_id("r"), Input(token_ids=[7] * 2040), max_tokens=20)
    assert answer.problem is not None and answer.problem.code == "too_long"
    assert "2040" in answer.problem.message and "2048" in answer.problem.message
