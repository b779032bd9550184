"""The artifact: it is the model, at shapes never traced; it measures itself; equal input gives equal bytes."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from llmos.contracts.jobs import METRICS, Bound
from llmos.contracts.models import ServingContract
from llmos.errors import Rejected
from llmos_exporter import artifact, graphs
from llmos_exporter.measuring import apart as farthest
from llmos_exporter.orders import ExportOrder, Finished
from llmos_exporter.tasks import open_source
from llmos_exporter.texts import Text, Window

Models = Callable[[str], Path]


def order(model: Path, dataset: Path, room: Path, precision: str = "fp32") -> ExportOrder:
    return ExportOrder(
        task="text-classification",
        precision=precision,
        model=str(model),
        dataset=str(dataset),
        work=str(room / "work"),
        result=str(room / "result"),
        max_length=36,
        threads=1,
        gate={"accuracy": Bound(min=0.1)},
        source="sha256:source",
        base="sha256:base",
        dataset_address="sha256:dataset",
    )


def export(model: Path, dataset: Path, room: Path, precision: str = "fp32") -> Finished:
    asked = order(model, dataset, room, precision)
    return artifact.export(asked, open_source(asked), lambda *_: None)


def row(ids: list[int]) -> Text:
    return Text((), [Window(ids, [0] * len(ids), [None] * len(ids))], 0)


def apart(model: Path, artifact: Path, length: int, texts: int) -> float:
    """The largest difference of logits on random texts of up to `length` tokens."""
    draw = np.random.default_rng(length * 100 + texts)
    rows = [row(draw.integers(4, 64, draw.integers(1, length, endpoint=True)).tolist()) for _ in range(texts - 1)]
    rows.append(row(draw.integers(4, 64, length).tolist()))
    source = open_source(order(model, model, artifact))
    return farthest(source.trained(rows), source.exported({"model": artifact / "model.onnx"}, 1)(rows))


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "mpnet"])
def test_the_fp32_graph_is_the_model_at_shapes_that_the_trace_never_saw(
    architecture: str, models: Models, dataset: Path, tmp_path: Path
) -> None:
    done = export(models(architecture), dataset, tmp_path)
    assert done.parity["max_abs_diff"] < 1e-4 and done.parity["agreement"] == 1.0
    assert done.parity["rows"] > 90
    for length, texts in ((1, 1), (1, 5), (2, 3), (17, 1), (38, 11)):
        assert apart(models(architecture), tmp_path / "result", length, texts) < 1e-4


def test_the_artifact_holds_what_serving_needs_and_nothing_else(models: Models, dataset: Path, tmp_path: Path) -> None:
    done = export(models("roberta"), dataset, tmp_path)
    result = tmp_path / "result"
    assert sorted(path.name for path in result.iterdir()) == ["llmos.json", "model.onnx", "tokenizer.json"]
    contract = msgspec.json.decode((result / "llmos.json").read_bytes(), type=ServingContract)
    assert (contract.labels, contract.max_length) == (["blue", "green", "red"], 36)
    assert (contract.pad_token_id, contract.pad_token) == (1, "<pad>")
    assert contract.input_names == ["input_ids", "attention_mask"] and contract.opset == graphs.OPSET
    assert (contract.source, contract.base, contract.dataset) == ("sha256:source", "sha256:base", "sha256:dataset")
    assert contract.gate == {"accuracy": Bound(min=0.1)}
    assert contract.metrics["accuracy"] == pytest.approx(done.metrics["accuracy"], abs=1e-4)
    assert set(contract.versions) == {"llmos", "onnx", "onnxruntime", "torch", "transformers"}
    assert done.size == sum(path.stat().st_size for path in result.iterdir()) == done.metrics["size_bytes"]
    padding = json.loads((result / "tokenizer.json").read_text())["padding"]
    assert (padding["pad_id"], padding["pad_token"], padding["direction"]) == (1, "<pad>", "Right")


def test_what_is_measured_is_the_artifact_on_the_test_split(models: Models, dataset: Path, tmp_path: Path) -> None:
    from sklearn.metrics import accuracy_score, f1_score, log_loss
    from tokenizers import Tokenizer

    done = export(models("bert"), dataset, tmp_path, "int8")
    tokenizer = Tokenizer.from_file(str(tmp_path / "result" / "tokenizer.json"))
    asked = order(models("bert"), dataset, tmp_path)
    answers = open_source(asked).exported({"model": tmp_path / "result" / "model.onnx"}, 1)
    rows = [json.loads(line) for line in (dataset / "test.jsonl").read_text().splitlines()]
    tokenizer.no_padding()
    logits = np.stack([answers([row(tokenizer.encode(one["text"]).ids)])[0] for one in rows])  # each alone
    truth = [["blue", "green", "red"].index(one["label"]) for one in rows]
    exact = np.exp(logits.astype(np.float64))
    assert done.metrics["accuracy"] == pytest.approx(accuracy_score(truth, logits.argmax(1)))
    assert done.metrics["f1"] == pytest.approx(f1_score(truth, logits.argmax(1), average="macro"))
    assert done.metrics["loss"] == pytest.approx(log_loss(truth, exact / exact.sum(1, keepdims=True)))
    assert done.metrics["latency_ms_p50"] > 0
    measured = {*done.metrics, *done.parity}
    assert measured - {"rows", "company_diff"} <= set(METRICS), "a gate may bound any of these"
    assert done.source != done.metrics and set(done.source) == {"accuracy", "f1", "loss"}


def test_int8_is_smaller_near_and_says_how_near(models: Models, dataset: Path, tmp_path: Path) -> None:
    whole = export(models("bert"), dataset, tmp_path / "fp32")
    small = export(models("bert"), dataset, tmp_path / "int8", "int8")
    assert small.size < whole.size
    assert whole.parity["max_abs_diff"] < 1e-4 < small.parity["max_abs_diff"] < 1.0
    assert small.parity["agreement"] > 0.9
    assert small.parity["company_diff"] <= 1e-6 and whole.parity["company_diff"] <= 1e-5
    assert '"precision": "int8"' in (tmp_path / "int8" / "result" / "llmos.json").read_text()


def test_a_graph_that_is_not_the_model_is_no_artifact(
    models: Models, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(module: graphs.Module, *rest: Any) -> None:
        """A route that loses the mask, as a trace with a mask of ones does."""

        def unmasked(input_ids: Any, attention_mask: Any) -> Any:
            return module.model(input_ids=input_ids, attention_mask=(attention_mask + 1).clamp(max=1)).logits

        graphs.by_tracing(graphs.Module(module.model, unmasked, rest[1]), *rest)

    monkeypatch.setattr(graphs, "ROUTES", {"wrong": wrong})
    with pytest.raises(Rejected, match=r"wrong: its logits differ by up to .* \(limit 0.001\)") as refused:
        export(models("bert"), dataset, tmp_path)
    assert refused.value.problem.code == "unfaithful"
    assert not (tmp_path / "result").exists()


def test_a_route_that_fails_is_followed_by_the_next(
    models: Models, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("unsupported operator aten::nothing")

    monkeypatch.setattr(graphs, "ROUTES", {"broken": broken, "dynamo": graphs.by_dynamo})
    done = export(models("mpnet"), dataset, tmp_path)
    assert done.parity["max_abs_diff"] < 1e-4
    assert apart(models("mpnet"), tmp_path / "result", 38, 7) < 1e-4
    text = (tmp_path / "result" / "model.onnx").read_bytes()
    assert b"site-packages" not in text and b".py" not in text and str(tmp_path).encode() not in text


def test_every_route_that_failed_is_named_when_none_is_left(
    models: Models, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("unsupported operator aten::nothing")

    monkeypatch.setattr(graphs, "ROUTES", {"one": broken, "two": broken})
    with pytest.raises(Rejected, match="one: RuntimeError: unsupported operator aten::nothing; two: RuntimeError"):
        export(models("bert"), dataset, tmp_path)


def test_equal_input_gives_equal_bytes_in_another_process_and_folder(
    models: Models, dataset: Path, tmp_path: Path
) -> None:
    script = (
        "import sys, msgspec; from llmos_exporter.exporting import export\n"
        "from llmos_exporter.orders import ExportOrder\n"
        "for order in sys.argv[1:]: export(msgspec.json.decode(order, type=ExportOrder), lambda *_: None)"
    )
    elsewhere = tmp_path / "a folder elsewhere"
    orders = [order(models("bert"), dataset, elsewhere / precision, precision) for precision in ("fp32", "int8")]
    there = [msgspec.json.encode(order).decode() for order in orders]
    subprocess.run([sys.executable, "-c", script, *there], check=True)
    for precision in ("fp32", "int8"):
        export(models("bert"), dataset, tmp_path / precision, precision)
        digests = [
            {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in (room / precision / "result").iterdir()
            }
            for room in (tmp_path, elsewhere)
        ]
        assert digests[0] == digests[1] and len(digests[0]) == 3


def test_a_graph_of_many_weights_keeps_them_beside_it(
    models: Models, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "LARGEST_WITHIN", 10_000)
    for precision in ("fp32", "int8"):
        export(models("bert"), dataset, tmp_path / precision, precision)
        result = tmp_path / precision / "result"
        assert (result / "model.onnx.data").stat().st_size > 10_000
        assert len(list(result.iterdir())) == 4
        assert apart(models("bert"), result, 20, 3) < (1e-4 if precision == "fp32" else 1.0)


def test_rows_that_the_model_has_no_label_for_are_named(models: Models, dataset: Path, tmp_path: Path) -> None:
    other = tmp_path / "dataset"
    other.mkdir()
    (other / "test.jsonl").write_text('{"text": "w1", "label": "red"}\n{"text": "w2", "label": "pink"}\n')
    with pytest.raises(Rejected, match=r"test\.jsonl:2: the model has no label 'pink'"):
        export(models("bert"), other, tmp_path)
    (other / "test.jsonl").write_text("")
    with pytest.raises(Rejected, match="no row to measure"):
        export(models("bert"), other, tmp_path)


def test_a_model_that_cannot_be_read_is_no_reason_to_try_again(models: Models, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(Rejected, match="can't be loaded"):
        export(tmp_path / "model", dataset, tmp_path)
    torn = tmp_path / "torn"
    shutil.copytree(models("bert"), torn)
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:999])
    with pytest.raises(Rejected, match="can't be loaded"):
        export(torn, dataset, tmp_path)
    weights = load_file(models("bert") / "model.safetensors")
    headless = {name: weight for name, weight in weights.items() if not name.startswith("classifier")}
    save_file(headless, torn / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Rejected, match=r"lacks 2 weights, classifier\.bias first"):
        export(torn, dataset, tmp_path)
