"""The engine: what a loaded artifact answers, and which artifacts are refused."""

from collections.abc import Callable
from math import exp
from pathlib import Path

import msgspec
import pytest

from llmos.errors import Rejected
from llmos_inferencer.encoding.labels import Classifier
from llmos_inferencer.engine import Means, load

Make = Callable[..., Path]


@pytest.fixture
def engine(artifact: Make) -> Classifier:
    loaded = load(artifact(), Means(1))
    assert isinstance(loaded, Classifier)
    return loaded


def softmax(score: float) -> float:
    return 1 / (1 + exp(-2 * score))


def test_an_answer_is_the_softmax_of_the_logits_with_the_best_label_first(engine: Classifier) -> None:
    up, down = engine.answer(["the service was good", "awful"])
    assert (up.label, up.score) == ("up", pytest.approx(softmax(2.0), abs=1e-6))
    assert (down.label, down.score) == ("down", pytest.approx(softmax(3.0), abs=1e-6))
    assert [score.label for score in down.scores] == ["down", "up"]
    assert sum(score.score for score in up.scores) == pytest.approx(1.0, abs=1e-5)


def test_an_answer_does_not_depend_on_its_neighbours(engine: Classifier) -> None:
    texts = ["good", "the service was bad and slow", "", "fine " * 12]
    assert engine.answer(texts) == [engine.answer([text])[0] for text in texts]


def test_a_long_text_is_truncated_as_in_training(engine: Classifier) -> None:
    cut = engine.contract.max_length - 1  # one place is for [CLS]
    assert engine.answer(["bad " * cut + "great " * 100]) == engine.answer(["bad " * cut])


def test_top_limits_the_labels_that_an_answer_lists(engine: Classifier) -> None:
    (answer,) = engine.answer(["good"], top=1)
    assert [score.label for score in answer.scores] == ["up"]


def test_no_text_no_answer(engine: Classifier) -> None:
    assert engine.answer([]) == []


def test_scores_that_are_no_numbers_are_an_error_and_not_an_answer(engine: Classifier) -> None:
    with pytest.raises(Rejected, match="no finite number"):
        engine.answer(["nan"])


def change(root: Path, **fields: object) -> None:
    contract = msgspec.json.decode((root / "llmos.json").read_bytes())
    (root / "llmos.json").write_bytes(msgspec.json.encode(contract | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "divination"}, "divination"),
        ({"labels": ["only", "three", "labels"]}, "labels"),
        ({"labels": []}, "0 labels"),
        ({"format": 2}, "Upgrade"),
        ({"input_names": ["input_ids"]}, "the graph takes"),
        ({"input_names": ["input_ids", "attention_mask", "pixels"]}, "the graph takes"),
        ({"output_name": "hidden"}, "no output 'hidden'"),
        ({"max_length": "long"}, "llmos.json can't be read"),
    ],
)
def test_a_contract_that_does_not_fit_its_graph_is_refused(
    artifact: Make, fields: dict[str, object], message: str
) -> None:
    root = artifact()
    change(root, **fields)
    with pytest.raises(Rejected, match=message):
        load(root, Means(1))


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", None])
def test_files_that_cannot_be_read_are_refused(artifact: Make, name: str, content: bytes | None) -> None:
    root = artifact()
    if content is None:
        (root / name).unlink()
    else:
        (root / name).write_bytes(content)
    with pytest.raises(Rejected, match="can't be loaded"):
        load(root, Means(1))
