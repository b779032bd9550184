"""Decoders: one form of graph for every family; the artifact foretells and writes what the model does."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from llmos.contracts.models import Cache, ServingContract
from llmos.errors import Rejected
from llmos_exporter.exporting import export
from llmos_exporter.orders import ExportOrder, Finished
from llmos_exporter.tasks import open_source

Models = Callable[[str], Path]
dice = random.Random(0)
TEXTS = [{"text": " ".join(f"w{dice.randint(3, 71)}" for _ in range(2 + row % 29))} for row in range(14)]


@pytest.fixture
def texts(rows_in: Any) -> Path:
    return Path(rows_in(TEXTS))


def order(model: Path, dataset: Path, room: Path, precision: str = "fp32", target: str = "cpu") -> ExportOrder:
    return ExportOrder(
        task="text-generation", precision=precision, model=str(model), dataset=str(dataset), work=str(room / "work"),
        result=str(room / "result"), max_length=0, threads=1, gate={}, source="", base="", dataset_address="",
        target=target,
    )  # fmt: skip


def exported(asked: ExportOrder) -> tuple[Finished, ServingContract]:
    done = export(asked, lambda *_: None)
    return done, msgspec.json.decode((Path(asked.result) / "llmos.json").read_bytes(), type=ServingContract)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "gpt2", "opt"])
def test_the_graph_foretells_and_writes_what_the_model_does(
    architecture: str, decoders: Models, texts: Path, tmp_path: Path
) -> None:
    done, contract = exported(order(decoders(architecture), texts, tmp_path))
    assert done.parity["max_abs_diff"] < 2e-4 and done.parity["agreement"] == 1.0 and done.parity["greedy"] == 1.0
    assert done.parity["company_diff"] < 1e-5, "alone or in company, prefilled or token by token"
    assert done.metrics["perplexity"] == pytest.approx(done.source["perplexity"], rel=1e-3)
    graph = onnx.load(tmp_path / "result" / "model.onnx", load_external_data=False)
    assert "GroupQueryAttention" in {node.op_type for node in graph.graph.node}
    assert contract.cache == Cache(2, 4 if architecture in ("gpt2", "opt") else 2, 16)
    built = (tmp_path / "work" / "builder").exists() and not (tmp_path / "work" / "tracing").exists()
    assert built == (architecture in ("llama", "qwen3"))


def test_perplexity_is_that_of_the_whole_text(decoders: Models, texts: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(decoders("llama")).eval()
    loss = tokens = 0.0
    for row in TEXTS:
        ids = torch.tensor([[int(word[1:]) for word in row["text"].split()]])
        with torch.no_grad():
            loss += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    done, _ = exported(order(decoders("llama"), texts, tmp_path))
    assert done.metrics["perplexity"] == pytest.approx(np.exp(loss / tokens), rel=1e-3)


@pytest.mark.parametrize(
    ("architecture", "precision", "share"), [("llama", "int8", 0.5), ("llama", "int4", 0.5), ("gpt2", "int4", 0.6)]
)
def test_fewer_bits_stay_near_and_never_depend_on_company(
    architecture: str, precision: str, share: float, decoders: Models, texts: Path, tmp_path: Path
) -> None:
    whole, _ = exported(order(decoders(architecture), texts, tmp_path / "fp32"))
    small, contract = exported(order(decoders(architecture), texts, tmp_path / precision, precision))
    assert contract.precision == small.precision == precision
    assert small.size < whole.size and small.parity["agreement"] > share
    assert small.parity["company_diff"] == 0.0
    assert small.metrics["perplexity"] == pytest.approx(whole.metrics["perplexity"], rel=0.3)


def test_half_precision_for_a_gpu_keeps_a_half_cache(decoders: Models, texts: Path, tmp_path: Path) -> None:
    done, contract = exported(order(decoders("llama"), texts, tmp_path, "fp16", "cuda"))
    assert contract.cache == Cache(2, 2, 16, dtype="float16") and contract.target == "cuda"
    assert done.parity["agreement"] > 0.95


def test_auto_measures_every_candidate_and_keeps_one(decoders: Models, texts: Path, tmp_path: Path) -> None:
    done, contract = exported(order(decoders("llama"), texts, tmp_path, "auto", "edge"))
    assert [one.precision for one in done.candidates] == ["fp32", "int8", "int4"]
    assert {"perplexity", "latency_ms_p50", "size_bytes"} <= set(done.candidates[0].metrics)
    chosen = min(done.candidates, key=lambda one: one.metrics["size_bytes"]).precision
    assert [one.precision for one in done.candidates if one.chosen] == [chosen] == [contract.precision]


def test_the_artifact_says_how_it_writes(decoders: Models, texts: Path, tmp_path: Path) -> None:
    _, contract = exported(order(decoders("llama"), texts, tmp_path))
    assert contract.generation is not None
    assert (contract.generation.eos_token_ids, contract.generation.bos_token_id) == ([2], 0)
    assert (contract.generation.temperature, contract.generation.top_p) == (0.7, 0.9)
    assert contract.chat_template.startswith("{% for message in messages %}")
    assert contract.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    assert (contract.max_length, contract.vocab_size, contract.architecture) == (128, 72, "llama")
    assert sorted(path.name for path in (tmp_path / "result").iterdir()) == [
        "llmos.json", "model.onnx", "tokenizer.json",
    ]  # fmt: skip


def test_attention_that_cannot_be_exchanged_is_refused(decoders: Models, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="a bloom model's attention can't be exchanged"):
        exported(order(decoders("bloom"), texts, tmp_path))


def test_rows_of_one_token_foretell_nothing(decoders: Models, rows_in: Any, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="no row to measure"):
        open_source(order(decoders("llama"), rows_in([{"text": "w5"}]), tmp_path)).rows("test")
