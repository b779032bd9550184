"""Rules of text generation as serving knows it: from a request to pieces and an answer."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizers import Tokenizer

from decoders import TEMPLATE, write_artifact
from llmos.contracts.inference import InferenceParams, InferenceRequested, Input, Message
from llmos.errors import Rejected
from llmos_inferencer.decoding.generator import ROWS, TextGeneration, TextGenerator
from llmos_inferencer.engine import Generated, Late, Means, Piece, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("generator"))


@pytest.fixture(scope="module")
def generator(folder: Path) -> Iterator[TextGenerator]:
    engine = load(folder, Means(1))
    assert isinstance(engine, TextGenerator)
    yield engine
    engine.close()


def ask(*inputs: Input | str, deadline: float | None = None, **params: Any) -> InferenceRequested:
    given = [Input(text=each) if isinstance(each, str) else each for each in inputs]
    return InferenceRequested("c", given, deadline=deadline, params=InferenceParams(**({"max_tokens": 8} | params)))


def tokens(generator: TextGenerator, text: str) -> list[int]:
    return generator._asking.prompt(Input(text=text), 0)


class Asked:
    def __init__(self, generator: TextGenerator, request: InferenceRequested) -> None:
        self.pieces: list[Piece] = []
        self.generation: TextGeneration = generator.submit(request, 0, self.pieces.append)

    async def answer(self) -> Generated:
        async with asyncio.timeout(20):
            return await self.generation.done


async def answer(generator: TextGenerator, *inputs: Input | str, **params: Any) -> Generated:
    return await Asked(generator, ask(*inputs, **params)).answer()


async def test_an_answer_holds_text_tokens_usage_and_why_it_ended(generator: TextGenerator) -> None:
    found = await answer(generator, "the camera is good", "bad", n=2)
    assert len(found.outputs) == 4
    assert found.outputs[0] == found.outputs[1]  # greedy
    for output in found.outputs:
        assert output.finish_reason in ("stop", "length") and 1 <= len(output.token_ids) <= 8
    assert found.usage.completion_tokens == sum(len(output.token_ids) for output in found.outputs)
    assert found.usage.prompt_tokens == sum(len(tokens(generator, text)) for text in ("the camera is good", "bad"))
    assert 0 < found.started_at <= found.first_at <= time.monotonic()


async def test_pieces_come_in_order_and_make_up_the_answer(generator: TextGenerator) -> None:
    asked = Asked(generator, ask("the", "a", stream=True, n=2, temperature=1.0, seed=3, logprobs=2))
    found = await asked.answer()
    for number, output in enumerate(found.outputs):
        pieces = [piece for piece in asked.pieces if piece.output == number]
        assert "".join(piece.text for piece in pieces) == output.text
        assert [id for piece in pieces for id in piece.token_ids] == output.token_ids
        assert [one for piece in pieces for one in piece.logprobs] == output.logprobs
        assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [output.finish_reason]
        assert pieces[-1].finish_reason
        for told, id in zip(output.logprobs, output.token_ids, strict=True):
            assert told.id == id and told.logprob <= 0 and len(told.top) == 2


async def test_one_seed_gives_one_text_in_any_company(generator: TextGenerator) -> None:
    params = {"temperature": 1.0, "top_p": 0.9, "seed": 42, "n": 2}
    alone = await answer(generator, "the", **params)
    crowd = [answer(generator, "a screen", temperature=1.0, seed=at) for at in range(6)]
    company, *_ = await asyncio.gather(answer(generator, "the", **params), *crowd)
    assert company.outputs == alone.outputs
    assert alone.outputs[0] != alone.outputs[1]
    assert (await answer(generator, "the", **(params | {"seed": 43}))).outputs != alone.outputs


async def test_messages_go_through_the_chat_template(generator: TextGenerator, folder: Path) -> None:
    turns = [Message("system", "good"), Message("user", "the camera")]
    found = await answer(generator, Input(messages=turns))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode("<s><|system|>good<|user|>the camera<|assistant|>", add_special_tokens=False).ids
    assert found.usage.prompt_tokens == len(ids)
    assert found.outputs == (await answer(generator, Input(token_ids=ids))).outputs


async def test_what_the_template_refuses_is_told(generator: TextGenerator, folder: Path) -> None:
    contract = msgspec.structs.replace(
        generator.contract, chat_template="{{ raise_exception('roles must alternate') }}" + TEMPLATE
    )
    other = TextGenerator.load(folder, contract, Means(1))
    with pytest.raises(Rejected, match="roles must alternate") as caught:
        await answer(other, Input(messages=[Message("user", "a")]))
    assert caught.value.problem.param == "inputs[0].messages"
    other.close()


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"temperature": -1.0}, "params.temperature"),
        ({"top_p": 0.0}, "params.top_p"),
        ({"n": ROWS + 1}, "params.n"),
        ({"logprobs": 99}, "params.logprobs"),
        ({"schema": {}, "regex": "a"}, "params.schema"),
        ({"schema": {"type": "nonsense"}}, "params.schema"),
        ({"regex": "("}, "params.regex"),
        ({"grammar": "start: nothing"}, "params.grammar"),
        ({"max_tokens": 600}, "inputs"),
    ],
)
async def test_bad_parameters_are_refused_by_name(generator: TextGenerator, params: dict[str, Any], param: str) -> None:
    with pytest.raises(Rejected) as caught:
        await answer(generator, "the", **params)
    assert caught.value.problem.param == param
    assert caught.value.problem.remedy


async def test_a_prompt_that_cannot_fit_is_refused_with_the_numbers(generator: TextGenerator) -> None:
    with pytest.raises(Rejected, match=r"600 tokens and up to 8 .* holds 512"):
        await answer(generator, Input(token_ids=[7] * 600))
    with pytest.raises(Rejected, match="not in the vocabulary"):
        await answer(generator, Input(token_ids=[7, 99_999]))


async def test_json_follows_its_schema(generator: TextGenerator) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "size": {"type": "integer", "maximum": 99}},
        "required": ["name", "size"],
        "additionalProperties": False,
    }
    found = await answer(generator, "the", "a", schema=schema, n=2, temperature=1.0, seed=1, max_tokens=200)
    for output in found.outputs:
        assert output.finish_reason == "stop"
        value = json.loads(output.text)
        assert set(value) == {"name", "size"} and len(value["name"]) <= 5 and value["size"] <= 99


async def test_text_follows_its_regex_or_grammar(generator: TextGenerator) -> None:
    found = await answer(generator, "the", regex="[a-c]{3}-[0-9]{2}")
    assert found.outputs[0].text[3] == "-" and len(found.outputs[0].text) == 6
    found = await answer(generator, "the", grammar='start: "yes" | "no"')
    assert found.outputs[0].text in ("yes", "no") and found.outputs[0].finish_reason == "stop"


async def test_a_stopped_request_is_answered_with_what_there_is(generator: TextGenerator) -> None:
    asked = Asked(generator, ask(Input(token_ids=[9] * 20), max_tokens=400, stream=True, regex="[a-z]*"))
    while not asked.pieces:
        await asyncio.sleep(0.001)
    asked.generation.stop()
    (output,) = (await asked.answer()).outputs
    assert output.finish_reason == "cancelled" and 1 <= len(output.token_ids) < 400


async def test_a_withdrawn_request_frees_its_slots(generator: TextGenerator) -> None:
    asked = [Asked(generator, ask(Input(token_ids=[9] * 20), max_tokens=400, regex="[a-z]*")) for _ in range(ROWS)]
    while not all(each.generation.begun for each in asked):
        await asyncio.sleep(0.001)
    for each in asked:
        each.generation.withdraw()
    assert (await answer(generator, "the")).outputs
    assert all(each.generation.done.done() for each in asked)
    assert any(each.generation.done.cancelled() for each in asked)


async def test_a_deadline_that_passes_in_line_or_at_work_ends_the_request(generator: TextGenerator) -> None:
    late = Asked(generator, ask("the", deadline=time.time() - 1))
    with pytest.raises(Late):
        await late.answer()


async def test_what_was_computed_before_is_told(generator: TextGenerator) -> None:
    ids = [7, 9, 11, 13] * 20
    await answer(generator, Input(token_ids=ids))
    found = await answer(generator, Input(token_ids=[*ids, 5, 6]))
    assert found.usage.cached_tokens == len(ids)
    assert found.usage.prompt_tokens == len(ids) + 2
