"""`llmos infer`, `chat` and `bench` against a scripted inferencer."""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

from llmos.bus import Bus
from llmos.contracts import subjects
from llmos.contracts.inference import (
    Answer,
    Entity,
    InferenceAnswered,
    InferenceDelta,
    InferenceRequested,
    Input,
    Output,
    Usage,
)
from llmos.testing.commands import Commands
from llmos.testing.scripted import ScriptedInferencer, playing

WORDS = ["a ", "short ", "answer"]


class Speaker(ScriptedInferencer):
    """Gives `outputs`, or says `words` (and no end, if it is `endless`)."""

    outputs: Sequence[Output] = ()
    endless = False

    async def run(self) -> None:
        consumer, filter = subjects.infer_consumer(self.deployment, "interactive")
        async for delivery in self.bus.work("INFER", consumer, filter, InferenceRequested, slots=lambda: 8):
            body, id = delivery.body, delivery.subject.rsplit(".", 1)[-1]
            self.requests.append(body)
            subject = subjects.reply(body.client, id)
            words = WORDS[: body.params.max_tokens or None]
            if body.params.stream:
                for number, word in enumerate(words):
                    delta = InferenceDelta(id, number, text=word)
                    await self.bus.tell(subject, delta, type="llmos.inference.delta.v1")
            await delivery.ack()
            if not self.endless:
                outputs = list(self.outputs) or [Output(text="".join(words), finish_reason="stop")]
                usage = Usage(9, 0, 0 if self.outputs else len(words))
                answer = InferenceAnswered(id, "chat", 2, "n-1", outputs, 1.0, 2.0, usage=usage, ttft_ms=5.0)
                await self.bus.tell(subject, answer, type="llmos.inference.answered.v1")


async def speaker(bus: Bus, llmos: Commands, nats_url: str, *outputs: Output) -> Speaker:
    llmos.env["LLMOS_NATS_URL"] = nats_url
    made = Speaker(bus, "chat")
    made.outputs = outputs
    await made.deploy()
    return made


def given(made: Speaker) -> Input:
    (each,) = made.requests[-1].inputs
    assert isinstance(each, Input)
    return each


async def test_entities_answers_vectors_and_text_each_have_their_table(
    bus: Bus, llmos: Commands, nats_url: str
) -> None:
    cases = [
        (Output(entities=[Entity("LOC", 0.9, "London", 3, 9)]), "London   LOC     0.900   3-9     1"),
        (Output(answer=Answer("in May", 0.5, 0, 6)), "in May   0.500   when?"),
        (Output(embedding=[0.5, -0.25]), "2            0.5000 -0.2500 …   when?"),
        (Output(text="said so"), "said so"),
    ]
    made = await speaker(bus, llmos, nats_url)
    async with playing(made):
        for output, line in cases:
            made.outputs = [output]
            done = await llmos.run("infer", "chat", "when?", "--context", "in May")
            assert done.out.splitlines()[-1] == line
            assert given(made) == Input(text="when?", pair="in May")


async def test_pictures_recordings_and_json_lines_are_read_from_files(
    bus: Bus, llmos: Commands, nats_url: str, tmp_path: Path
) -> None:
    (tmp_path / "cat.png").write_bytes(b"picture")
    (tmp_path / "miaow.wav").write_bytes(b"sound")
    (tmp_path / "all.jsonl").write_text('"one"\n{"text": "two", "pair": "three"}\n')
    (tmp_path / "bad.jsonl").write_text('"one"\n{"text": 2}\n')
    made = await speaker(bus, llmos, nats_url, Output("cat", 0.5))
    async with playing(made):
        await llmos.run("infer", "chat", "-f", "cat.png")
        assert given(made).image == b"picture"
        await llmos.run("infer", "chat", "-f", "miaow.wav")
        assert given(made).audio == b"sound"
        made.outputs = [Output("cat", 0.5)] * 2
        await llmos.run("infer", "chat", "-f", "all.jsonl")
        assert made.requests[-1].inputs == ["one", Input(text="two", pair="three")]
        done = await llmos.run("infer", "chat", "-f", "bad.jsonl")
    assert done.code == 2 and "bad.jsonl line 2" in done.err


async def test_a_chat_remembers_what_was_said_and_prints_it_as_it_comes(
    bus: Bus, llmos: Commands, nats_url: str
) -> None:
    made = await speaker(bus, llmos, nats_url)
    async with playing(made):
        done = await llmos.run("chat", "chat", "--system", "be brief", "--temperature", "0", stdin="hello\n\nand?")
    assert (done.code, done.out) == (0, "a short answer\n" * 2)
    assert "3 tokens, the first after 5 ms, chat version 2 on n-1" in done.err
    said = [(message.role, message.content) for message in given(made).messages]
    assert said == [
        ("system", "be brief"), ("user", "hello"), ("assistant", "a short answer"), ("user", "and?")
    ]  # fmt: skip
    assert made.requests[-1].params.temperature == 0


async def test_an_interrupt_ends_an_answer_and_takes_the_request_back(bus: Bus, llmos: Commands, nats_url: str) -> None:
    made = await speaker(bus, llmos, nats_url)
    made.endless = True
    async with playing(made):
        running = await llmos.start("chat", "chat", "hello")
        assert await running.stdout.readexactly(len("a short answer")) == b"a short answer"
        async with asyncio.timeout(20):
            recalls = bus.follow("CONTROL", ["llmos.ctl.cancel.*"])
            running.send(signal.SIGINT)
            done = await running.done()
            assert (await anext(recalls)).subject
    assert done.code == 0 and "cancelled" in done.err


async def test_a_bench_shows_rates_quantiles_and_a_picture(
    bus: Bus, llmos: Commands, nats_url: str, tmp_path: Path
) -> None:
    made = await speaker(bus, llmos, nats_url)
    async with playing(made):
        asked = ["bench", "chat", "--requests", "12", "--concurrency", "3", "--output-len", "2"]
        done = await llmos.run(*asked, "-o", "json", "--plot", "plot.svg")
        found = done.json()
        assert (found["requests"], found["concurrency"]) == (12, 3)
        assert found["generated_tokens_per_second"] > 0 and found["ttft"]["p50"] <= found["latency"]["p99"]
        assert (tmp_path / "plot.svg").read_text().count("<polyline") == 3
        assert {request.params.max_tokens for request in made.requests[1:]} == {2}
        table = (await llmos.run(*asked)).out.splitlines()
        assert table[0].split() == ["MEAN", "P50", "P90", "P99", "MAX"]
        assert [line.split()[0] for line in table[1:-1]] == ["latency", "queue", "ttft", "tpot"]
        assert "requests/s" in table[-1]
        made.outputs = [Output("yes", 0.5)]
        assert "ttft" not in (await llmos.run(*asked)).out
