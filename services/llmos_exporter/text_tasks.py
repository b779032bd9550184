"""The tasks of text encoders: what a line of the dataset holds, what the head gives, and how it is scored."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmos.errors import Rejected
from llmos_exporter.measuring import same_label
from llmos_exporter.quality import Answers, Classes, Similarity, Tags
from llmos_exporter.sources import Numbers
from llmos_exporter.texts import Encoder, Kind, Text, window

STRIDE = 64  # tokens by which two windows of a long context overlap, or a quarter of what a window holds
MAX_ANSWER = 30  # tokens
POOLING = "pooling.json"


# --- text-classification ---


def _labelled(encoder: Encoder, line: dict[str, Any], place: str) -> Text:
    return Text((line["text"],), [encoder.encode(line["text"])], label_number(encoder.labels, line["label"], place))


def label_number(labels: list[str], label: str, place: str) -> int:
    """The number of a label. Raises `Rejected` for one that the model does not have."""
    if label not in labels:
        raise Rejected(
            f"{place}: the model has no label {label!r} (it has {', '.join(labels)})",
            remedy="Train on the dataset that the model is exported with.",
        )
    return labels.index(label)


TEXT_CLASSIFICATION = Kind(
    auto="AutoModelForSequenceClassification",
    head=lambda encoder, given: encoder.model(**given).logits,
    row=_labelled,
    quality=lambda _: Classes(),
    agreement=same_label,
)


# --- token-classification ---


def _tagged(encoder: Encoder, line: dict[str, Any], place: str) -> Text:
    """Words are joined by spaces, and read as serving reads a text."""
    words, tags = line["tokens"], line["tags"]
    for tag in tags:
        label_number(encoder.labels, tag, place)
    text = " ".join(words)
    return Text((text,), [encoder.encode(text)], (words, tags))


TOKEN_CLASSIFICATION = Kind(
    auto="AutoModelForTokenClassification",
    head=lambda encoder, given: encoder.model(**given).logits,
    row=_tagged,
    quality=lambda encoder: Tags(encoder.labels),
    agreement=same_label,
    by_token=True,
)


# --- question-answering ---


def _stride(encoder: Encoder) -> int:
    return min(STRIDE, encoder.max_length // 4)


def _asked(encoder: Encoder, line: dict[str, Any], place: str) -> Text:
    """A question with its context, in as many windows as it needs; the tokenizer's file does the same in serving."""
    question, context = line["question"], line["context"]
    asked = len(encoder.tokenizer.encode(question).ids)
    if asked > encoder.max_length // 2:
        raise Rejected(f"{place}: the question has {asked} tokens, and the model reads {encoder.max_length}")
    encoder.tokenizer.enable_truncation(encoder.max_length, stride=_stride(encoder), strategy="only_second")
    first = encoder.tokenizer.encode(question, context)
    windows = [window(one) for one in (first, *first.overflowing)]
    return Text((question, context), windows, (context, line["answers"]))


def _ends(encoder: Encoder, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found = encoder.model(**given)
    return torch.stack((found.start_logits, found.end_logits), dim=-1)


def _same_ends(wanted: Numbers, got: Numbers) -> float:
    return float((wanted.argmax(0) == got.argmax(0)).mean())


QUESTION_ANSWERING = Kind(
    auto="AutoModelForQuestionAnswering",
    head=_ends,
    row=_asked,
    quality=lambda _: Answers(MAX_ANSWER),
    agreement=_same_ends,
    join=np.concatenate,
    by_token=True,
    typed=True,
    contract=lambda encoder: {"stride": _stride(encoder), "max_answer": MAX_ANSWER},
)


# --- embeddings ---


def _pooling(folder: Path) -> dict[str, Any]:
    """How tokens become one vector: as the model's folder says, else their mean, of length 1."""
    path = folder / POOLING
    known: dict[str, Any] = {"pooling": "mean", "normalise": True, "prefix": ""}
    return known | (json.loads(path.read_bytes()) if path.exists() else {})


def _pooled(encoder: Encoder, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    tokens = encoder.model(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(-1).to(tokens.dtype)
    how = encoder.told
    if how["pooling"] == "cls":
        vector = tokens[:, 0]
    elif how["pooling"] == "max":
        vector = (tokens + (1 - mask) * -1e9).max(dim=1).values
    else:
        vector = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(vector, dim=-1) if how["normalise"] else vector


def _pair(encoder: Encoder, line: dict[str, Any], place: str) -> Text:
    prefix = encoder.told["prefix"]
    texts = (prefix + line["text"], prefix + line["pair"])
    return Text(texts[:1], [encoder.encode(text) for text in texts], float(line["score"]))


def _cosine(wanted: Numbers, got: Numbers) -> float:
    """The mean cosine of two answers' vectors."""
    lengths = np.linalg.norm(wanted, axis=-1) * np.linalg.norm(got, axis=-1)
    return float(((wanted * got).sum(-1) / np.maximum(lengths, 1e-12)).mean().clip(0, 1))


EMBEDDINGS = Kind(
    auto="AutoModel",
    head=_pooled,
    row=_pair,
    quality=lambda _: Similarity(),
    agreement=_cosine,
    join=np.stack,
    output="embedding",
    told=_pooling,
    contract=lambda encoder: {"dimensions": int(encoder.config.hidden_size)},
    may_miss=lambda name: "pooler." in name,
)
