"""Encoders of text: one graph from token ids to a row of numbers for each text, or for each of its tokens.

What distinguishes their tasks is a `Kind`. A row is one or more windows: a question with a long context has several,
and a pair of texts to compare has two.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from llmos.errors import Rejected
from llmos_exporter.graphs import Feeds, Interface
from llmos_exporter.orders import ExportOrder
from llmos_exporter.single import Single
from llmos_exporter.sources import (
    Numbers,
    Quality,
    by_size,
    evenly,
    first_line,
    in_company,
    labels_of,
    load_model,
    read_lines,
)

TOKENIZER = "tokenizer.json"
GRAPH = "model.onnx"


class Window(NamedTuple):
    """Tokens that go through the model together: ids, types, and where each lies in the text it came from (or None)."""

    ids: list[int]
    types: list[int]
    spans: list[tuple[int, int] | None]


class Text(NamedTuple):
    """A row: what serving would be given, its windows, and what is true of it."""

    given: tuple[str, ...]
    windows: list[Window]
    truth: Any


class Kind(NamedTuple):
    """A task of encoders. `head` maps model and tensors to the graph's output, whose axes follow `batch`; `join` makes
    one answer of what a row's windows gave.
    """

    auto: str
    head: Callable[["Encoder", Mapping[str, torch.Tensor]], torch.Tensor]
    row: Callable[["Encoder", dict[str, Any], str], Text | None]
    quality: Callable[["Encoder"], Quality]
    agreement: Callable[[Numbers, Numbers], float]
    join: Callable[[list[Numbers]], Numbers] = lambda found: found[0]
    output: str = "logits"
    by_token: bool = False
    typed: bool = False  # token types tell question and context apart
    told: Callable[[Path], dict[str, Any]] = lambda _: {}  # of the contract, what the model's folder says
    contract: Callable[["Encoder"], dict[str, Any]] = lambda _: {}
    may_miss: Callable[[str], bool] = lambda _: False


class Encoder(Single):
    """A text encoder as a `Source`."""

    def __init__(self, order: ExportOrder, kind: Kind) -> None:
        import transformers

        self.kind = kind
        self.folder = Path(order.model)
        self._dataset = Path(order.dataset)
        self.model = load_model(self.folder, getattr(transformers, kind.auto), may_miss=kind.may_miss)
        self.config = self.model.config
        self.labels = labels_of(self.config) if "logits" in kind.output and not kind.typed else []
        self.pad = int(self.config.pad_token_id or 0)
        self.told = kind.told(self.folder)
        self.max_length = order.max_length or self.told.pop("max_length", 0) or positions(self.config) or 512
        self.tokenizer = read_tokenizer(self.folder)
        self.tokenizer.enable_truncation(self.max_length)
        typed = kind.typed and getattr(self.config, "type_vocab_size", 0) > 1
        self.inputs = ("input_ids", "attention_mask", *(["token_type_ids"] if typed else []))
        self.interface = Interface(
            takes=dict.fromkeys(self.inputs, ("batch", "length")),
            gives={kind.output: ("batch", "length", 0) if kind.by_token else ("batch", 0)},
        )

    def encode(self, text: str) -> Window:
        """One text as tokens, cut at `max_length`."""
        return window(self.tokenizer.encode(text))

    def rows(self, split: str) -> list[Any]:
        return read_lines(self._dataset, split, lambda line, place: self.kind.row(self, line, place))

    def batches(self, rows: Sequence[Text]) -> Iterator[list[int]]:
        return by_size([_size(row) for row in rows])

    def probes(self, rows: Sequence[Text]) -> list[list[Any]]:
        some = evenly(rows, _size)
        stretched = _mapped(some[-1], lambda ids: _stretch(ids, self.max_length))
        cut = [_mapped(row, lambda ids: ids[: max(1, len(ids) // 2)]) for row in some]
        return [
            *in_company(some, fixed=([stretched], [stretched, some[0], some[-1]])),
            *(cut[at : at + 8] for at in range(0, len(cut), 8)),
        ]

    def head(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The graph's output, float32."""
        return self.kind.head(self, given).float()

    def quality(self, exported: Any = None) -> Quality:
        return self.kind.quality(self)

    def agreement(self, wanted: Numbers, got: Numbers) -> float:
        return self.kind.agreement(wanted, got)

    def answer(self, exported: Callable[[Sequence[Any]], list[Numbers]], row: Text) -> None:
        exported([row._replace(windows=[self.encode(row.given[0])] if len(row.given) == 1 else row.windows)])

    def contract(self, precision: str) -> dict[str, Any]:
        return {
            "max_length": self.max_length,
            "pad_token_id": self.pad,
            "pad_token": self.tokenizer.id_to_token(self.pad) or "",
            "input_names": list(self.inputs),
            "output_name": self.kind.output,
            "architecture": self.config.model_type,
            **self.told,
        } | self.kind.contract(self)

    def save(self, folder: Path) -> None:
        """The tokenizer's file cuts and pads as serving does."""
        self.tokenizer.enable_padding(pad_id=self.pad, pad_token=self.tokenizer.id_to_token(self.pad) or "")
        self.tokenizer.save(str(folder / TOKENIZER))
        self.tokenizer.no_padding()

    def sample(self) -> Feeds:
        """Two texts of different length, so that padding leaves its trace: with a mask of ones a graph may lose it."""
        words = [token for token in range(5, 13) if token < self.config.vocab_size]
        long = Window(words, [0, 0, 0, 0, 1, 1, 1, 1][: len(words)], [None] * len(words))
        return self._feeds([long, _changed(long, lambda part: part[: len(words) // 2])])

    def feeds(self, rows: Sequence[Text]) -> Feeds:
        return self._feeds([window for row in rows for window in row.windows])

    def read(self, found: NDArray[Any], rows: Sequence[Text]) -> list[Numbers]:
        """Every row's answer, its windows joined, without padding."""
        answers, at = [], 0
        for row in rows:
            parts = [found[at + number] for number in range(len(row.windows))]
            if self.kind.by_token:
                parts = [part[: max(1, len(one.ids))] for part, one in zip(parts, row.windows, strict=True)]
            answers.append(self.kind.join(parts))
            at += len(row.windows)
        return answers

    def _feeds(self, windows: Sequence[Window]) -> Feeds:
        """A padded batch; a text without a token becomes one padding token that is attended to, as in training."""
        shape = (len(windows), max(1, *(len(one.ids) for one in windows)))
        ids, mask, types = np.full(shape, self.pad, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for at, one in enumerate(windows):
            ids[at, : len(one.ids)] = one.ids
            types[at, : len(one.ids)] = one.types
            mask[at, : max(1, len(one.ids))] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def window(encoding: Any) -> Window:
    """What the tokenizer gave. Tokens of the last text have spans: of the context, where there is a question."""
    last = max((number for number in encoding.sequence_ids if number is not None), default=0)
    spans = [
        span if number == last else None for span, number in zip(encoding.offsets, encoding.sequence_ids, strict=True)
    ]
    return Window(encoding.ids, encoding.type_ids, spans)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The model's tokenizer, without padding and cutting. Raises `Rejected`."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # tokenizers raises bare Exception for a file that is missing or wrong
        raise Rejected(f"{TOKENIZER} can't be read: {first_line(error)}", remedy="Train the model again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def positions(config: Any) -> int:
    """How many tokens the model can tell apart by position; 0 when nothing limits them."""
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(limit, int) or limit <= 0:
        return 0
    # The RoBERTa family counts positions from behind the padding index.
    shifted = "roberta" in config.model_type or config.model_type in {"camembert", "mpnet"}
    return limit - (int(config.pad_token_id or 0) + 1) if shifted else limit


def _size(row: Text) -> int:
    return len(row.windows) * max(len(one.ids) for one in row.windows)


def _mapped(row: Text, change: Callable[[list[Any]], list[Any]]) -> Text:
    return row._replace(windows=[_changed(one, change) for one in row.windows])


def _changed(one: Window, change: Callable[[list[Any]], list[Any]]) -> Window:
    return Window(change(one.ids), change(one.types), change(one.spans))


def _stretch(part: list[Any], length: int) -> list[Any]:
    """Repeated to `length` places; the first and last, most likely of special tokens, stay at the ends."""
    if len(part) < 3 or length < 3:
        return list(part)
    body = list(part[1:-1]) * -(-length // (len(part) - 2))
    return [part[0], *body[: length - 2], part[-1]]
