"""The whole stack as separate processes, a tiny model and its data, and an outside system that speaks only NATS."""

import json
import os
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import pytest

from llmos import local
from llmos.testing.otlp import Receiver, otlp_receiver
from outsider import Outsider

GOOD = ["good", "great", "lovely", "superb", "excellent", "pleasant", "brilliant", "delightful"]
BAD = ["bad", "poor", "awful", "terrible", "dreadful", "nasty", "broken", "useless"]
THINGS = ["phone", "camera", "screen", "battery", "sound", "lens", "case", "remote", "menu", "cable"]


def write_rows(path: Path, rows: int, seed: int) -> Path:
    """Labelled sentences that a tiny model can learn in a few steps."""
    dice = random.Random(seed)
    with path.open("w") as file:
        for number in range(rows):
            label, words = ("positive", GOOD) if number % 2 else ("negative", BAD)
            text = f"the {dice.choice(THINGS)} {number} is {dice.choice(words)} and {dice.choice(words)}"
            file.write(json.dumps({"text": text, "label": label}) + "\n")
    return path


def write_base(path: Path) -> Path:
    """A two-layer BERT with random weights and a tokenizer of its own."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    words = [*GOOD, *BAD, *THINGS, "the is and 0123456789"]
    tokenizer.train_from_iterator([" ".join(words)] * 50, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(path)
    fast.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base/`, `train.jsonl`, `validation.jsonl` and `test.jsonl`."""
    folder = tmp_path_factory.mktemp("material")
    write_base(folder / "base")
    for name, rows, seed in (("train", 240, 1), ("validation", 60, 2), ("test", 60, 3)):
        write_rows(folder / f"{name}.jsonl", rows, seed)
    return folder


@pytest.fixture(scope="session")
def telescope() -> Iterator[Receiver]:
    """A real OTLP endpoint that the stack reports to."""
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, material: Path, telescope: Receiver) -> Iterator[local.StackInfo]:
    """Every service as a process of its own; ended at the end of the run."""
    data = tmp_path_factory.mktemp("stack")
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = telescope.url
    os.environ["OTEL_METRIC_EXPORT_INTERVAL"] = "2000"
    try:
        local.up(local.UpOptions(data_dir=data, file_roots=(material,), node="n1", detach=True))
    finally:
        del os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"], os.environ["OTEL_METRIC_EXPORT_INTERVAL"]
    yield local.status(data).stack
    local.down(data)


@pytest.fixture
async def outsider(stack: local.StackInfo, material: Path) -> AsyncIterator[Outsider]:
    """A plain NATS client on the running stack."""
    nc = await nats.connect(stack.nats_url, max_reconnect_attempts=-1, reconnect_time_wait=0.2)
    yield Outsider(nc, material)
    await nc.close()
