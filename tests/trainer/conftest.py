"""What the trainer's tests share: a tiny real model with its tokenizer, rows to learn, and a child's channel."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from llmos_trainer.orders import Report, decode_report

TOPICS = {
    "billing": ("invoice", "refund", "charge", "card"),
    "shipping": ("parcel", "courier", "delivery", "box"),
    "technical": ("crash", "error", "install", "screen"),
}
FILLERS = ("the", "a", "my", "your", "please", "help", "with", "about", "today", "now", "why", "is", "was", "not", "it")


def labelled_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Short texts whose label can be told from one of their words."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        label = generator.choice(sorted(TOPICS))
        words = generator.choices(FILLERS, k=generator.randint(3, 12))
        words.insert(generator.randrange(len(words)), generator.choice(TOPICS[label]))
        rows.append({"text": " ".join(words), "label": label})
    return rows


def build_model(folder: Path, *, family: str = "bert", dropout: float = 0.1, **settings: object) -> Path:
    """A two-layer encoder with random weights and a word-level tokenizer, as `save_pretrained` writes it."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel

    # Written out, not trained: the trainer breaks ties differently in every process.
    known = sorted({*FILLERS, *(word for words in TOPICS.values() for word in words)})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *known]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {
        "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                 "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout},
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64,
                       "dropout": dropout, "attention_dropout": dropout, "seq_classif_dropout": dropout},
    }[family]  # fmt: skip
    config = AutoConfig.for_model(
        family, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=64, pad_token_id=0, **names | settings
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": 64})
    )
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def model_builder() -> Callable[..., Path]:
    return build_model


@pytest.fixture(scope="session")
def rows_of() -> Callable[..., list[dict[str, str]]]:
    return labelled_rows


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[str, int], Path]:
    """Write so many rows as JSONL; the file."""

    def write(name: str, count: int, seed: int = 0) -> Path:
        path = tmp_path / name
        path.write_bytes(msgspec.json.Encoder().encode_lines(labelled_rows(count, seed)))
        return path

    return write


class Tape:
    """A child's channel that records what is said, and plays back commands: `after(n)` reports, one message."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.commands: list[bytes] = []
        self.when: Callable[[Report], bytes | None] = lambda report: None

    def send(self, message: bytes) -> None:
        report = decode_report(message)
        self.reports.append(report)
        if (command := self.when(report)) is not None:
            self.commands.append(command)

    def received(self) -> list[bytes]:
        commands, self.commands = self.commands, []
        return commands

    @property
    def last(self) -> Report:
        return self.reports[-1]


@pytest.fixture
def tape() -> Tape:
    return Tape()
