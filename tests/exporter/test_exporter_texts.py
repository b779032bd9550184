"""Encoders beside the classifier: tags of words, answers in a context, vectors of texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer

from exporter_rows import TAGS, asked, paired, tagged
from llmos.errors import Rejected
from llmos_exporter.quality import Answers, Similarity, best_span, entities, overlap
from llmos_exporter.texts import Text, Window

CASES = {
    "token-classification": ("AutoModelForTokenClassification", tagged),
    "question-answering": ("AutoModelForQuestionAnswering", asked),
    "embeddings": ("AutoModel", paired),
}
HEADS = {"token-classification": "BertForTokenClassification", "question-answering": "BertForQuestionAnswering"}


@pytest.mark.parametrize("task", CASES)
def test_the_graph_is_the_model_and_no_answer_depends_on_its_neighbours(
    task: str, exported: Any, model_with: Any
) -> None:
    model = model_with("bert", HEADS.get(task, "BertModel"), TAGS)
    rows = CASES[task][1]()
    whole = exported(task, model, rows)
    assert whole.done.parity["max_abs_diff"] < 1e-4 and whole.done.parity["agreement"] > 0.999
    small = exported(task, model, rows, "int8")
    assert small.done.size < whole.done.size and small.done.parity["agreement"] > 0.75
    assert small.done.parity["company_diff"] <= 1e-6
    assert whole.contract.task == task and whole.contract.max_length == 40
    typed = ["token_type_ids"] if task == "question-answering" else []
    assert whole.contract.input_names == ["input_ids", "attention_mask", *typed]


def test_a_words_tag_is_that_of_its_first_token_and_entities_are_whole_or_wrong() -> None:
    assert entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-PER"]) == [
        ("PER", 0, 2), ("LOC", 3, 4), ("LOC", 4, 5), ("PER", 5, 6),
    ]  # fmt: skip
    assert entities([]) == []


def test_entity_f1_is_measured_on_what_the_artifact_says(exported: Any, model_with: Any) -> None:
    rows = tagged()
    made = exported("token-classification", model_with("bert", "BertForTokenClassification", TAGS), rows)
    graph = ort.InferenceSession(made.folder / "model.onnx")
    tokenizer = Tokenizer.from_file(str(made.folder / "tokenizer.json"))
    right = true = said = same = 0
    for row in rows:
        encoding = tokenizer.encode(" ".join(row["tokens"]))
        given = {"input_ids": [encoding.ids], "attention_mask": [[1] * len(encoding.ids)]}
        (logits,) = graph.run(["logits"], {name: np.array(value) for name, value in given.items()})
        found = [made.contract.labels[at] for at in logits[0].argmax(-1)[1:-1]]  # one token a word here
        same += sum(one == other for one, other in zip(found, row["tags"], strict=True))
        one, other = set(entities(row["tags"])), set(entities(found))
        right, true, said = right + len(one & other), true + len(one), said + len(other)
    assert made.done.metrics["f1"] == pytest.approx(2 * right / (true + said))
    assert made.done.metrics["accuracy"] == pytest.approx(same / sum(len(row["tags"]) for row in rows))


def test_an_unknown_tag_is_named(exported: Any, model_with: Any) -> None:
    model = model_with("bert", "BertForTokenClassification", TAGS)
    with pytest.raises(Rejected, match=r"jsonl:1: the model has no label 'B-ORG' \(it has O, B-PER"):
        exported("token-classification", model, [{"tokens": ["w1"], "tags": ["B-ORG"]}])


def test_a_long_context_is_read_in_windows_and_the_best_answer_wins() -> None:
    context = "zero one two three"
    spans: list[tuple[int, int] | None] = [None, (0, 4), (5, 8), (9, 12), (13, 18)]
    windows = [Window([0, 1, 2], [0, 1, 1], [None, *spans[1:3]]), Window([0, 3, 4], [0, 1, 1], [None, *spans[3:5]])]
    logits = np.array([[9, 9], [1, 0], [0, 1], [9, 9], [3, 0], [0, 3]], np.float32)
    assert best_span(windows, logits, context, 30) == "two three"
    assert best_span(windows, logits, context, 1) == "two", "an answer has at most so many tokens"
    answers = Answers(30)
    answers.add([Text((), windows, (context, ["The two, three!"])), Text((), windows, (context, []))], [logits] * 2)
    assert answers.numbers() == {"exact_match": 0.5, "f1": 0.5}
    assert overlap(["a", "b"], ["b", "c"]) == 0.5


def test_windows_of_a_long_context_are_what_the_tokenizer_file_gives(exported: Any, model_with: Any) -> None:
    rows = [{"question": "w1 w2", "context": " ".join(f"w{at % 60}" for at in range(90)), "answers": ["w7 w8"]}]
    made = exported("question-answering", model_with("bert", "BertForQuestionAnswering"), rows)
    assert (made.contract.stride, made.contract.max_answer) == (10, 30)
    assert made.done.metrics["f1"] == made.done.source["f1"]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_and_length_are_in_the_graph(pooling: str, exported: Any, model_with: Any) -> None:
    from transformers import AutoModel

    model = model_with("bert", "BertModel")
    told = {"pooling": pooling, "normalise": pooling != "max", "prefix": "w1 ", "max_length": 30}
    (Path(model) / "pooling.json").write_text(json.dumps(told))
    made = exported("embeddings", model, paired())
    graph = ort.InferenceSession(made.folder / "model.onnx")
    ids = np.array([[0, 10, 11, 2], [0, 12, 2, 1]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    (found,) = graph.run(["embedding"], {"input_ids": ids, "attention_mask": mask})
    import torch

    with torch.no_grad():
        given = {"input_ids": torch.tensor(ids[1:, :3]), "attention_mask": torch.tensor(mask[1:, :3])}
        tokens = AutoModel.from_pretrained(model).eval()(**given).last_hidden_state[0]
    vector = {"mean": tokens.mean(0), "cls": tokens[0], "max": tokens.max(0).values}[pooling].numpy()
    if pooling != "max":
        vector = vector / np.linalg.norm(vector)
    assert np.abs(found[1] - vector).max() < 1e-5
    assert (made.contract.pooling, made.contract.normalise) == (pooling, pooling != "max")
    assert (made.contract.prefix, made.contract.max_length) == ("w1 ", 30)
    assert (made.contract.dimensions, made.contract.output_name, found.shape) == (32, "embedding", (2, 32))


def test_similarity_is_a_rank_correlation_of_cosines() -> None:
    vectors = [np.array([[1, 0], [1, height]], np.float32) for height in (0.0, 0.5, 3.0)]
    similarity = Similarity()
    similarity.add([Text((), [], score) for score in (5.0, 4.0, 1.0)], vectors)
    assert similarity.numbers()["spearman"] == pytest.approx(1.0)
    flat = Similarity()
    flat.add([Text((), [], 1.0)] * 2, vectors[:2])
    assert flat.numbers() == {"spearman": 0.0, "pearson": 0.0}
