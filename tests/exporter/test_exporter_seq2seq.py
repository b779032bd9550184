"""Models that read, then write: two graphs and a cache write what the model does, Whisper's features in them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from exporter_rows import PAIRS, spoken
from llmos_exporter.quality import Texts


@pytest.mark.parametrize(
    ("task", "architecture", "metric"),
    [("translation", "marian", "bleu"), ("translation", "t5", "chrf"), ("summarisation", "bart", "rougeL")],
)
def test_two_graphs_write_what_the_model_does(
    task: str, architecture: str, metric: str, exported: Any, writers: Any
) -> None:
    made = exported(task, writers(architecture), PAIRS)
    assert made.done.parity["max_abs_diff"] < 1e-4 and made.done.parity["agreement"] == 1.0
    assert made.done.parity["company_diff"] < 1e-4
    assert made.done.metrics[metric] == made.done.source[metric]
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "decoder.onnx", "encoder.onnx", "llmos.json", "tokenizer.json",
    ]  # fmt: skip
    assert made.contract.files == {"encoder": "encoder.onnx", "decoder": "decoder.onnx"}
    assert made.contract.cache.kind == "grown" and made.contract.generation.eos_token_ids == [1]


def by_hand(made: Any, source: list[int], count: int) -> list[int]:
    """What an edge node would write, from the files and the contract alone."""
    contract, cache = made.contract, made.contract.cache
    encoder, decoder = (ort.InferenceSession(made.folder / contract.files[part]) for part in ("encoder", "decoder"))
    crossing = [value.name for value in encoder.get_outputs()]
    mask = np.ones((1, len(source)), np.int64)
    fixed = dict(
        zip(crossing, encoder.run(None, {"input_ids": np.array([source]), "attention_mask": mask}), strict=True)
    )
    names = [name % layer for layer in range(cache.layers) for name in (cache.past_key, cache.past_value)]
    gives = [name % layer for layer in range(cache.layers) for name in (cache.present_key, cache.present_value)]
    past = dict.fromkeys(names, np.zeros((1, cache.heads, 0, cache.size), np.float32))
    tokens, text = np.array([contract.generation.start]), []
    for _ in range(count):
        given = {"input_ids": tokens, "encoder_attention_mask": mask, **past, **fixed}
        logits, *present = decoder.run(["logits", *gives], given)
        past = dict(zip(names, present, strict=True))
        text.append(int(logits[0, -1].argmax()))
        tokens = np.array([[text[-1]]])
        if text[-1] in contract.generation.eos_token_ids:
            break
    return text


@pytest.mark.parametrize("architecture", ["marian", "t5", "bart"])
def test_an_edge_node_needs_only_the_artifact_to_write_as_generate_does(
    architecture: str, exported: Any, writers: Any
) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    made = exported("translation", writers(architecture), PAIRS)
    model = AutoModelForSeq2SeqLM.from_pretrained(writers(architecture)).eval()
    source = [5, 9, 40, 33, 1]
    wanted = model.generate(torch.tensor([source]), max_new_tokens=12, min_length=0, num_beams=1, do_sample=False)[0]
    start = made.contract.generation.start
    assert wanted.tolist()[: len(start)] == start
    found = by_hand(made, source, 12 - (len(start) - 1))
    assert found[:-1] == wanted.tolist()[len(start) :][: len(found) - 1]


def test_whisper_hears_samples_and_says_what_it_begins_with(exported: Any, writers: Any) -> None:
    made = exported("speech-recognition", writers("whisper"), spoken())
    assert made.done.parity["max_abs_diff"] < 1e-3 and made.done.parity["agreement"] == 1.0
    assert made.contract.audio.seconds == 1.0 and made.contract.input_names == ["audio"]
    assert made.contract.generation.start == [2, 3, 5, 7]
    assert (made.contract.generation.suppress, made.contract.generation.suppress_first) == ([8, 9], [1])
    assert set(made.done.metrics) >= {"wer", "cer"}


def test_log_mel_in_the_graph_is_the_extractors(writers: Any) -> None:
    import torch
    from transformers import WhisperFeatureExtractor

    from llmos_exporter.speech import LogMel

    extractor = WhisperFeatureExtractor.from_pretrained(writers("whisper"))
    audio = np.zeros((2, 16_000), np.float32)
    audio[0] = np.random.default_rng(0).normal(0, 0.1, 16_000)
    audio[1, :3000] = np.sin(np.arange(3000) * 0.1) * 0.5
    wanted = extractor(list(audio), sampling_rate=16_000, return_tensors="np").input_features
    assert np.abs(LogMel(extractor)(torch.from_numpy(audio)).numpy() - wanted).max() < 1e-3


def test_int8_of_a_writer_never_depends_on_company(exported: Any, writers: Any) -> None:
    small = exported("translation", writers("marian"), PAIRS, "int8")
    assert small.done.parity["company_diff"] <= 1e-5 and small.done.parity["agreement"] > 0.6


def test_texts_are_scored_as_their_task_is_used_to() -> None:
    class Right:
        truth = "the cats sat"

    for task, wanted in (
        ("translation", {"bleu", "chrf"}), ("summarisation", {"rouge1", "rouge2", "rougeL"}),
        ("speech-recognition", {"wer", "cer"}),
    ):  # fmt: skip
        texts = Texts(task, lambda rows, answers: ["the cat sat" for _ in rows])
        texts.add([Right()], [np.zeros(0, np.float32)])
        assert set(texts.numbers()) == wanted
    assert texts.numbers()["wer"] == pytest.approx(1 / 3)


def test_t5_reads_its_prefix_before_a_text(exported: Any, writers: Any, tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(writers("t5"), tmp_path / "t5")
    config = json.loads((tmp_path / "t5" / "config.json").read_text())
    config["task_specific_params"] = {"summarization": {"prefix": "w9 "}, "translation_en_to_de": {"prefix": "w8 "}}
    (tmp_path / "t5" / "config.json").write_text(json.dumps(config))
    assert exported("summarisation", tmp_path / "t5", PAIRS[:4]).contract.prefix == "w9 "
