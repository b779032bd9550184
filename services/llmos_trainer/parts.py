"""What the rows of each task hold: a row's parts as the export reads them, or what is wrong with them."""

import base64
import binascii
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")
SOUNDS = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")
LARGEST_FILE = 64 << 20

Labels = Sequence[str]
Part = Callable[[Any, Labels, Path], Any]


class PartFault(ValueError):
    """A part of a row is wrong; the text says how."""


def clean(parts: dict[str, Any], labels: Labels, folder: Path) -> dict[str, Any]:
    """A row's parts, each in its one form. Raises `PartFault`.

    `labels` are the model's; `folder` is where files lie that a part names.
    """
    made = {role: _PARTS[role](value, labels, folder) for role, value in parts.items()}
    if "tokens" in made and len(made["tokens"]) != len(made["tags"]):
        raise PartFault(f"{len(made['tokens'])} tokens and {len(made['tags'])} tags")
    return made


def _text(value: Any, labels: Labels, folder: Path) -> str:
    if not isinstance(value, str):
        raise PartFault(f"{_kind(value)} is no text")
    if not value.strip():
        raise PartFault("a text is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PartFault("no valid UTF-8") from error
    return value


def _label(value: Any, labels: Labels, folder: Path) -> str:
    """The name of a label; a number that is no name stands for the label at that place."""
    name = str(value).lower() if isinstance(value, bool) else str(value)
    if name in labels:
        return name
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(labels):
        return labels[value]
    raise PartFault(f"the model has no label {name[:100]!r}; it has {', '.join(labels[:20])}")


def _words(value: Any, labels: Labels, folder: Path) -> list[str]:
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise PartFault("tokens must be a list of words")
    if odd := next((word for word in words if len(word.split()) != 1), None):
        raise PartFault(f"the token {odd[:50]!r} holds a space")
    return words


def _tags(value: Any, labels: Labels, folder: Path) -> list[str]:
    tags = value.split() if isinstance(value, str) else value
    if not isinstance(tags, list):
        raise PartFault("tags must be a list")
    return [_label(tag, labels, folder) for tag in tags]


def _answers(value: Any, labels: Labels, folder: Path) -> list[str]:
    """The right answers: one text, a list, or SQuAD's object; none for a question that has none."""
    answers = value.get("text") if isinstance(value, dict) else [value] if isinstance(value, str) else value
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise PartFault("answers must be a text, or a list of texts")
    return [answer for answer in answers if answer.strip()]


def _score(value: Any, labels: Labels, folder: Path) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError) as error:
        raise PartFault(f"{_kind(value)} is no score") from error
    if score != score or score in (float("inf"), float("-inf")):
        raise PartFault("a score must be finite")
    return score


def _file(value: Any, folder: Path, starts: Sequence[bytes], what: str) -> str:
    """A file as base64: given so, as bytes, as the object that Hugging Face's datasets hold, or by its name."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        near = (folder / value).resolve() if len(value) < 1024 and "\0" not in value else folder
        if near.is_relative_to(folder.resolve()) and near.is_file():
            value = near.read_bytes()
        else:
            try:
                value = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError) as error:
                raise PartFault(f"{value[:50]!r} is neither base64 nor a file beside the data") from error
    if not isinstance(value, bytes) or not value.startswith(tuple(starts)):
        raise PartFault(f"that is no {what} that can be read here")
    if len(value) > LARGEST_FILE:
        raise PartFault(f"the {what} has {len(value)} bytes; the limit is {LARGEST_FILE}")
    return base64.b64encode(value).decode()


_PARTS: dict[str, Part] = {
    "text": _text,
    "pair": _text,
    "question": _text,
    "context": _text,
    "source": _text,
    "target": _text,
    "label": _label,
    "tokens": _words,
    "tags": _tags,
    "answers": _answers,
    "score": _score,
    "image": lambda value, _, folder: _file(value, folder, PICTURES, "picture"),
    "audio": lambda value, _, folder: _file(value, folder, SOUNDS, "sound"),
}


def _kind(value: Any) -> str:
    return "null" if value is None else repr(value)[:50]
