"""The SDK's streams: what is passed on adds up to the answer, whatever happens to replicas and connections."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.artifacts import open_store
from llmos.bus import Bus
from llmos.cancel import cancel
from llmos.client import Client
from llmos.contracts import subjects
from llmos.contracts.inference import (
    InferenceAnswered,
    InferenceCancelRequested,
    InferenceDelta,
    InferenceRequested,
    Input,
    Output,
)
from llmos.errors import Busy, NotFound, Problem, Rejected
from llmos.inferring import Joined, Restarted
from llmos.sync import SyncClient
from llmos.testing.scripted import ScriptedInferencer

DELTA, ANSWERED = "llmos.inference.delta.v1", "llmos.inference.answered.v1"
TEXT = "the quick brown fox jumps over the lazy dog"


def deltas(cuts: list[int], attempt: int = 1) -> list[InferenceDelta]:
    at = [0, *sorted(cuts), len(TEXT)]
    pieces = [TEXT[low:high] for low, high in pairwise(at)]
    return [InferenceDelta("r", number, attempt, text=piece) for number, piece in enumerate(pieces)]


@given(
    st.lists(st.lists(st.integers(0, len(TEXT)), max_size=9), min_size=1, max_size=3),
    st.data(),
)
def test_whatever_is_lost_doubled_or_begun_again_the_parts_add_up_to_the_answer(attempts: Any, data: Any) -> None:
    joined, passed = Joined(), ""
    for number, cuts in enumerate(attempts, 1):
        said = deltas(cuts, number)
        heard = data.draw(st.lists(st.sampled_from(said), max_size=12).map(lambda some: sorted(some, key=sequence)))
        if data.draw(st.booleans()):
            heard = said[: data.draw(st.integers(0, len(said)))]
        for delta in heard:
            out = joined.add(delta)
            passed += out.text if out else ""
            assert TEXT.startswith(passed)
    answer = InferenceAnswered("r", "m", outputs=[Output(text=TEXT)], attempt=len(attempts))
    assert passed + "".join(delta.text for delta in joined.finish(answer)) == TEXT


def sequence(delta: InferenceDelta) -> int:
    return delta.sequence


def test_a_text_that_is_generated_anew_and_differs_is_an_error_and_no_clean_end() -> None:
    joined = Joined()
    assert joined.add(InferenceDelta("r", 0, 1, text="one two")) is not None
    assert joined.add(InferenceDelta("r", 0, 2, text="one ")) is None
    with pytest.raises(Restarted):
        joined.add(InferenceDelta("r", 1, 2, text="three"))
    with pytest.raises(Restarted):
        joined.finish(InferenceAnswered("r", "m", outputs=[Output(text="another")], attempt=2))


class Talker(ScriptedInferencer):
    """Says `script` to every request: deltas, then an answer."""

    script: list[Any] = []

    async def run(self) -> None:
        consumer, filter = subjects.infer_consumer(self.deployment, "interactive")
        async for delivery in self.bus.work("INFER", consumer, filter, InferenceRequested, slots=lambda: 8):
            self.requests.append(delivery.body)
            subject = subjects.reply(delivery.body.client, delivery.subject.rsplit(".", 1)[-1])
            for said in self.script:
                kind = DELTA if isinstance(said, InferenceDelta) else ANSWERED
                await self.bus.tell(subject, said, type=kind)
            await delivery.ack()


@asynccontextmanager
async def talking(bus: Bus, *script: Any) -> AsyncIterator[Talker]:
    talker = Talker(bus, "chat")
    talker.script = list(script)
    await talker.deploy()
    running = asyncio.create_task(talker.run())
    yield talker
    await cancel(running)


@pytest.fixture
async def client(nats_url: str) -> AsyncIterator[Client]:
    async with await Client.connect(nats_url) as client:
        yield client


async def test_a_stream_passes_on_what_is_said_and_ends_with_the_whole_answer(bus: Bus, client: Client) -> None:
    answer = InferenceAnswered("r", "chat", outputs=[Output(text=TEXT)])
    async with talking(bus, *deltas([3, 9]), answer) as talker:
        said = [each async for each in client.stream("chat", "hello")]
    assert "".join(each.text for each in said if isinstance(each, InferenceDelta)) == TEXT
    assert said[-1] == answer
    (request,) = talker.requests
    assert request.params.stream and request.keep > 0 and request.deadline


async def test_a_problem_ends_a_stream_as_an_error(bus: Bus, client: Client) -> None:
    answer = InferenceAnswered("r", "chat", problem=Problem("rejected", "too long"))
    async with talking(bus, *deltas([3])[:1], answer):
        with pytest.raises(Rejected, match="too long"):
            async for _ in client.stream("chat", "hello"):
                pass


async def test_leaving_a_stream_recalls_the_request(bus: Bus, client: Client) -> None:
    async with talking(bus, *deltas([3])):
        recalls = bus.follow("CONTROL", ["llmos.ctl.cancel.*"], start=1)
        async with aclosing(client.stream("chat", "hello")) as said:
            async for _ in said:
                break
        async with asyncio.timeout(10), aclosing(recalls):
            async for heard in recalls:
                recall = msgspec.json.decode(heard.data, type=InferenceCancelRequested)
                assert recall.request == heard.subject.rsplit(".", 1)[-1]
                break


async def test_a_stream_without_an_end_is_busy_and_one_of_nothing_not_found(bus: Bus, client: Client) -> None:
    async with talking(bus, *deltas([3])):
        with pytest.raises(Busy, match="answered within"):
            async for _ in client.stream("chat", "hello", timeout=0.5):
                pass
    with pytest.raises(NotFound):
        async for _ in client.stream("nobody", "hello"):
            pass


async def test_a_large_picture_goes_through_the_store(bus: Bus, nats_url: str, tmp_path: Any) -> None:
    async with await Client.connect(nats_url, artifacts=tmp_path.as_uri()) as client:
        async with talking(bus, InferenceAnswered("r", "chat", outputs=[Output("cat", 0.5)])) as talker:
            small, large = b"small", b"large" * 100_000
            for image in (small, large):
                await client.infer("chat", [Input(image=image)])
        first, second = [request.inputs[0] for request in talker.requests]
        assert isinstance(first, Input) and first.image == small
        assert isinstance(second, Input) and not second.image
        assert await open_store(tmp_path.as_uri()).get_bytes(second.artifact) == large


async def test_a_stream_can_be_read_by_blocking_code(bus: Bus, nats_url: str) -> None:
    def read() -> str:
        with SyncClient(nats_url) as client:
            return "".join(each.text for each in client.stream("chat", "hello") if isinstance(each, InferenceDelta))

    async with talking(bus, *deltas([5]), InferenceAnswered("r", "chat", outputs=[Output(text=TEXT)])):
        assert await asyncio.to_thread(read) == TEXT
