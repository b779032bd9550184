"""What the trainer's tests share: a tiny real model with its tokenizer, rows to learn, and a child's channel."""

import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from llmos.artifacts import get_manifest
from llmos.bus import Bus
from llmos.contracts.jobs import DataSource, JobSpec, ModelSource, TrainSettings
from llmos.contracts.tasks import TaskSucceeded
from llmos.natsserver import NatsServer
from llmos.service import running
from llmos_trainer.config import TrainerConfig
from llmos_trainer.orders import Report, decode_report
from llmos_trainer.service import serve
from trainers import Stack

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


# --- a stack on a bus, one a module ---


@pytest.fixture(scope="module")
def shared_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainer")


@pytest.fixture(scope="module")
def rows_file(shared_path: Path, rows_of: Any) -> Path:
    path = shared_path / "rows.jsonl"
    path.write_bytes(msgspec.json.Encoder().encode_lines(rows_of(240)))
    return path


@pytest.fixture(scope="module")
def spec(tiny_model: Path, rows_file: Path) -> JobSpec:
    train = TrainSettings(epochs=12, batch_size=8, learning_rate=1e-3, max_length=32)
    return JobSpec("topics", ModelSource(tiny_model.as_uri()), DataSource(rows_file.as_uri()), train=train)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(shared_path: Path, tiny_model: Path) -> AsyncIterator[Stack]:
    """A bus, and no trainer yet."""
    server = await NatsServer(shared_path / "nats").start()
    config = TrainerConfig(
        nats_url=server.url, node="n1", data_dir=shared_path / "data", artifacts=(shared_path / "artifacts").as_uri(),
        file_roots=[shared_path, tiny_model], checkpoint_every_s=0.2,
    )  # fmt: skip
    bus = await Bus.connect(server.url, source="test/node")
    yield Stack(bus, config)
    await bus.close()
    await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trainer(stack: Stack) -> AsyncIterator[Stack]:
    """The stack with a trainer on node n1."""
    async with running("trainer", stack.config, serve):
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inputs(trainer: Stack, spec: JobSpec) -> dict[str, str]:
    """A dataset and a base, made by a check."""
    await trainer.assign(spec, "check", "shared-check")
    [*_, last] = await trainer.facts("shared-check")
    assert isinstance(last, TaskSucceeded), last
    assert {role: (await get_manifest(trainer.store, at)).kind for role, at in last.outputs.items()} == {
        "dataset": "dataset",
        "base": "base",
    }
    return last.outputs


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(trainer: Stack, spec: JobSpec, inputs: dict[str, str]) -> list[Any]:
    """The facts of a training that nobody disturbs."""
    await trainer.assign(spec, "train", "undisturbed", inputs=inputs)
    facts = await trainer.facts("undisturbed")
    assert isinstance(facts[-1], TaskSucceeded), facts[-1]
    return facts
