"""Another runtime for encoders: taken only if it gives the same, faster."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos_inferencer.encoding.labels import Classifier
from llmos_inferencer.engine import Means, load
from llmos_inferencer.openvino import OpenVinoSession, is_better, open_openvino


class Fake:
    """A session that gives `value` after `spins` of work."""

    def __init__(self, value: float, spins: int) -> None:
        self.value = value
        self.spins = spins


def run(session: Fake) -> Any:
    total = 0.0
    for at in range(session.spins):
        total += at
    if session.value < 0:
        raise RuntimeError("no such operator")
    return np.full(3, session.value)


def test_what_gives_the_same_faster_is_taken_and_nothing_else() -> None:
    now = Fake(1.0, 200_000)
    assert is_better(run, now, Fake(1.0, 1000))
    assert not is_better(run, now, Fake(1.0, 400_000))
    assert not is_better(run, now, Fake(1.1, 1000))
    assert not is_better(run, now, Fake(-1.0, 1000))


def test_openvino_answers_as_onnxruntime_does(artifact: Callable[..., Path]) -> None:
    pytest.importorskip("openvino", reason="the extra llmos[openvino] is not installed")
    root = artifact()
    engine = load(root, Means(1))
    assert isinstance(engine, Classifier)
    other = open_openvino(root / "model.onnx", Means(1))
    assert isinstance(other, OpenVinoSession)
    texts = ["the service was good", "bad", "great and awful", "slow " * 12]
    before = engine.answer(texts)
    engine._session = other
    engine._check_graph()
    assert engine.answer(texts) == before
    assert [engine.answer([text])[0] for text in texts] == before


def test_a_graph_that_openvino_does_not_know_stays_with_onnxruntime(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    assert open_openvino(tmp_path / "model.onnx", Means(1)) is None
    assert open_openvino(tmp_path / "model.onnx", Means(1, "cuda:0")) is None
