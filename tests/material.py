"""A tiny base model and data that it can learn, made on the spot."""

import json
import random
from pathlib import Path

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
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    digits = [f"{mark}{digit}" for mark in ("", "##") for digit in range(10)]
    words = [*special, *digits, *sorted({"the", "is", "and", *GOOD, *BAD, *THINGS})]
    # Written out, not trained: the trainer breaks ties differently in every process.
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
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
