"""Rules of models with an encoder and a decoder: the same engine, whatever the graph allows of it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from decoders import BOS, EOS, write_translator
from llmos.contracts.inference import InferenceParams, InferenceRequested, Input
from llmos.errors import Rejected
from llmos_inferencer.decoding.generator import TextGenerator
from llmos_inferencer.engine import Generated, Means, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_translator(tmp_path_factory.mktemp("translator"))


@pytest.fixture(scope="module")
def generator(folder: Path) -> Iterator[TextGenerator]:
    engine = load(folder, Means(1))
    assert isinstance(engine, TextGenerator)
    yield engine
    engine.close()


async def write(generator: TextGenerator, *sources: list[int], **params: Any) -> Generated:
    request = InferenceRequested("c", [Input(token_ids=ids) for ids in sources], params=InferenceParams(**params))
    async with asyncio.timeout(20):
        return await generator.submit(request, 0, lambda _: None).done


def greedy(folder: Path, source: list[int], count: int) -> list[int]:
    """The same text without a cache: everything from the beginning for every token."""
    encoder, decoder = (ort.InferenceSession(str(folder / f"{name}.onnx")) for name in ("encoder", "decoder"))
    mask = np.ones((1, len(source)), np.int64)
    names = ["cross.0.key", "cross.0.value"]
    cross = dict(zip(names, encoder.run(names, {"input_ids": [source], "attention_mask": mask}), strict=True))
    nothing = np.zeros((1, 2, 0, 8), np.float32)
    past = dict.fromkeys(("past_key_values.0.key", "past_key_values.0.value"), nothing)
    written: list[int] = []
    while len(written) < count and (not written or written[-1] != EOS):
        ids = np.array([[BOS, 7, *written]])
        (logits,) = decoder.run(["logits"], {"input_ids": ids, "encoder_attention_mask": mask, **past, **cross})
        written.append(int(logits[0, -1].argmax()))
    return written


def sources() -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(6, 290, length).tolist() for length in (3, 30, 32, 33, 5, 64, 31, 2)]


async def test_what_is_written_is_what_the_graphs_say_without_a_cache(generator: TextGenerator, folder: Path) -> None:
    found = await write(generator, *sources(), max_tokens=10)
    for source, output in zip(sources(), found.outputs, strict=True):
        assert output.token_ids == greedy(folder, source, 10)
    assert found.usage.prompt_tokens == sum(map(len, sources()))


async def test_a_text_is_the_same_alone_and_in_company(generator: TextGenerator) -> None:
    params = {"temperature": 1.0, "seed": 5, "n": 2, "max_tokens": 20}
    alone = [
        (await write(generator, source, **(params | {"seed": 5 + at}))).outputs for at, source in enumerate(sources())
    ]
    company = (await write(generator, *sources(), **params)).outputs
    assert company == [output for outputs in alone for output in outputs]
    staggered = []
    for at, source in enumerate(sources()):
        staggered.append(asyncio.create_task(write(generator, source, **(params | {"seed": 5 + at}))))
        await asyncio.sleep(0.002)
    assert [output for task in staggered for output in (await task).outputs] == company


async def test_rows_that_begin_together_share_their_runs(generator: TextGenerator) -> None:
    graph: Any = generator.decoder._stepper.graph
    widths: list[int] = []
    step = graph._step

    def watch(group: Any, ids: Any) -> Any:
        widths.append(len(ids))
        return step(group, ids)

    graph._step = watch
    try:
        await write(generator, [7] * 9, [8] * 9, [9] * 9, max_tokens=5)
    finally:
        del graph._step
    assert max(widths) > 1


async def test_a_source_that_is_too_long_is_refused_with_the_numbers(generator: TextGenerator) -> None:
    with pytest.raises(Rejected, match=r"97 tokens, the model reads 1 to 96"):
        await write(generator, [7] * 97)


async def test_a_source_at_fault_hurts_no_neighbour(generator: TextGenerator, folder: Path) -> None:
    good = asyncio.create_task(write(generator, [7] * 9, max_tokens=10))
    with pytest.raises(Rejected, match="vocabulary"):
        await write(generator, [99_999])
    assert (await good).outputs[0].token_ids == greedy(folder, [7] * 9, 10)
