"""What is exported is served: the inferencer's engines give the very answers by which the artifact was measured."""

import base64
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from exporter_rows import PAIRS, TAGS, asked, paired, pictures, recordings, spoken, tagged
from llmos.contracts.inference import InferenceParams, InferenceRequested, Input, Output
from llmos_exporter.quality import Similarity, entities, errors
from llmos_inferencer.engine import Means, load

MEANS = Means(threads=1)


def served(made: Any, inputs: list[Input]) -> list[Output]:
    """The answers of the engine."""
    engine: Any = load(made.folder, MEANS)
    request = InferenceRequested("client", list(inputs))
    try:
        return [engine.read(one, engine.run(one.rows), request) for one in engine.prepare(inputs)]
    finally:
        engine.close()


def test_labels_are_those_that_were_measured(
    exported: Any, models: Callable[[str], Path], dataset: Path, media: Any
) -> None:
    import json

    rows = [json.loads(line) for line in (dataset / "test.jsonl").read_text().splitlines()]
    for made, inputs, truth in (
        (
            exported("text-classification", models("bert"), rows, "int8"),
            [Input(text=row["text"]) for row in rows],
            rows,
        ),
        (
            exported("image-classification", media("vit"), pictures()),
            [Input(image=base64.b64decode(row["image"])) for row in pictures()],
            pictures(),
        ),
        (
            exported("audio-classification", media("wav2vec2-layer"), recordings()),
            [Input(audio=base64.b64decode(row["audio"])) for row in recordings()],
            recordings(),
        ),
    ):
        found = [output.label for output in served(made, inputs)]
        right = np.mean([label == row["label"] for label, row in zip(found, truth, strict=True)])
        assert made.done.metrics["accuracy"] == pytest.approx(right)


def test_entities_are_those_that_were_measured(exported: Any, model_with: Any) -> None:
    rows = tagged()
    made = exported("token-classification", model_with("bert", "BertForTokenClassification", TAGS), rows)
    right = true = said = 0
    for row, output in zip(rows, served(made, [Input(text=" ".join(row["tokens"])) for row in rows]), strict=True):
        starts = np.cumsum([0, *(len(word) + 1 for word in row["tokens"])])
        wanted = {(kind, starts[first], starts[end] - 1) for kind, first, end in entities(row["tags"])}
        found = {(entity.label, entity.start, entity.end) for entity in output.entities}
        right, true, said = right + len(wanted & found), true + len(wanted), said + len(found)
    assert made.done.metrics["f1"] == pytest.approx(2 * right / (true + said))


def test_answers_are_those_that_were_measured(exported: Any, model_with: Any) -> None:
    rows = asked()
    made = exported("question-answering", model_with("bert", "BertForQuestionAnswering"), rows)
    outputs = served(made, [Input(text=row["question"], pair=row["context"]) for row in rows])
    exact = [output.answer.text.split() == row["answers"][0].split() for row, output in zip(rows, outputs, strict=True)]
    assert all(
        row["context"][one.answer.start : one.answer.end] == one.answer.text
        for row, one in zip(rows, outputs, strict=True)
    )
    assert made.done.metrics["exact_match"] == pytest.approx(np.mean(exact))


def test_vectors_are_those_that_were_measured(exported: Any, model_with: Any) -> None:
    rows = paired()
    made = exported("embeddings", model_with("bert", "BertModel"), rows)
    vectors = [served(made, [Input(text=row["text"]), Input(text=row["pair"])]) for row in rows]
    similarity = Similarity()
    similarity.add(
        [SimpleNamespace(truth=row["score"]) for row in rows],
        [np.array([one.embedding for one in pair], np.float32) for pair in vectors],
    )
    assert similarity.numbers()["spearman"] == pytest.approx(made.done.metrics["spearman"])


def test_what_is_heard_is_what_was_measured(exported: Any, media: Any) -> None:
    rows = recordings(text="abc a")
    made = exported("speech-recognition", media("ctc"), rows)
    texts = [output.text for output in served(made, [Input(audio=base64.b64decode(row["audio"])) for row in rows])]
    assert errors(["abc a"] * len(rows), texts)["cer"] == pytest.approx(made.done.metrics["cer"])


async def written(made: Any, inputs: list[Input], count: int) -> list[Output]:
    engine: Any = load(made.folder, MEANS)
    try:
        params = InferenceParams(max_tokens=count, temperature=0.0)
        asking = [
            engine.submit(InferenceRequested("client", [one], params=params), 0, lambda _: None) for one in inputs
        ]
        return [(await generation.done).outputs[0] for generation in asking]
    finally:
        engine.close()


@pytest.mark.parametrize(("architecture", "precision"), [("llama", "fp32"), ("gemma3", "fp32"), ("opt", "int8")])
async def test_a_decoder_writes_in_serving_what_it_wrote_in_the_export(
    architecture: str, precision: str, exported: Any, decoders: Any
) -> None:
    from llmos_exporter.tasks import open_source

    texts = [f"w{at} w9 w{at + 20}" for at in range(5, 11)]
    made = exported("text-generation", decoders(architecture), [{"text": text} for text in texts], precision)
    source: Any = open_source(made.order)
    writer: Any = source.exported({"model": made.folder / "model.onnx"}, 1)
    prompts = [source.tokenizer.encode(text).ids for text in texts]
    wanted = [until_end(text, made.contract.generation.eos_token_ids) for text in writer.write(prompts, 12)]
    found = await written(made, [Input(token_ids=prompt) for prompt in prompts], 12)
    assert [until_end(list(output.token_ids), made.contract.generation.eos_token_ids) for output in found] == wanted


@pytest.mark.parametrize(
    ("task", "architecture"), [("translation", "marian"), ("translation", "t5"), ("summarisation", "bart")]
)
async def test_an_encoder_decoder_writes_in_serving_what_it_wrote_in_the_export(
    task: str, architecture: str, exported: Any, writers: Any
) -> None:
    from llmos_exporter.tasks import open_source

    made = exported(task, writers(architecture), PAIRS)
    rows: Any = open_source(made.order).rows("test")
    ends = made.contract.generation.eos_token_ids
    found = await written(made, [Input(text=row["source"]) for row in PAIRS], 12)
    assert [until_end(list(one.token_ids), ends) for one in found] == [until_end(row.written, ends) for row in rows]


async def test_whisper_says_in_serving_what_it_said_in_the_export(exported: Any, writers: Any) -> None:
    from llmos_exporter.tasks import open_source

    made = exported("speech-recognition", writers("whisper"), spoken())
    rows: Any = open_source(made.order).rows("test")
    ends = made.contract.generation.eos_token_ids
    found = await written(made, [Input(audio=base64.b64decode(row["audio"])) for row in spoken()], 12)
    assert [until_end(list(one.token_ids), ends) for one in found] == [until_end(row.written, ends) for row in rows]


def until_end(tokens: list[int], ends: list[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    return tokens[: next((at for at, token in enumerate(tokens) if token in ends), len(tokens))]
