"""Rows of every task for tests and benches of the exporter: small, random, the same each time."""

import base64
import random
from io import BytesIO
from typing import Any

import numpy as np
import soundfile
from PIL import Image

LABELS = ["blue", "green", "red"]


def pictures(count: int = 14) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    rows = []
    for at in range(count):
        noise = draw.integers(0, 256, (draw.integers(20, 60), draw.integers(20, 60), 3), np.uint8)
        file = BytesIO()
        Image.fromarray(noise).save(file, "PNG")
        rows.append({"image": base64.b64encode(file.getvalue()).decode(), "label": LABELS[at % 3]})
    return rows


def recordings(count: int = 10, **truth: Any) -> list[dict[str, Any]]:
    draw = np.random.default_rng(1)
    rows = []
    for at in range(count):
        file = BytesIO()
        soundfile.write(file, draw.normal(0, 0.1, draw.integers(1200, 9000)), 16_000, format="WAV")
        rows.append({"audio": base64.b64encode(file.getvalue()).decode()} | (truth or {"label": LABELS[at % 3]}))
    return rows


TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
dice = random.Random(0)


def words(least: int, most: int) -> list[str]:
    return [f"w{dice.randint(0, 59)}" for _ in range(dice.randint(least, most))]


def tagged(count: int = 30) -> list[dict[str, Any]]:
    rows = [words(1, 30) for _ in range(count)]
    return [{"tokens": row, "tags": [dice.choice(TAGS) for _ in row]} for row in rows]


def asked(count: int = 20) -> list[dict[str, Any]]:
    rows = [(words(1, 6), words(3, 60)) for _ in range(count)]
    return [
        {"question": " ".join(question), "context": " ".join(context), "answers": [" ".join(context[1:3])]}
        for question, context in rows
    ]


def paired(count: int = 20) -> list[dict[str, Any]]:
    return [
        {"text": " ".join(words(1, 30)), "pair": " ".join(words(1, 30)), "score": dice.random()} for _ in range(count)
    ]


def sentence(most: int) -> str:
    return " ".join(f"w{dice.randint(3, 71)}" for _ in range(dice.randint(1, most)))


PAIRS = [{"source": sentence(20), "target": sentence(8)} for _ in range(10)]


def spoken(count: int = 5) -> list[dict[str, Any]]:
    draw = np.random.default_rng(1)
    rows = []
    for at in range(count):
        file = BytesIO()
        loud = np.sin(np.arange(draw.integers(4000, 20000)) * (0.02 + 0.01 * at)) * 0.3
        soundfile.write(file, loud + draw.normal(0, 0.01, len(loud)), 16_000, format="WAV")
        rows.append({"audio": base64.b64encode(file.getvalue()).decode(), "text": "w5 w6"})
    return rows
