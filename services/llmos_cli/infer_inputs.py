"""What `llmos infer` asks about: texts of the command line, lines of a file, a picture, a recording, or JSON inputs."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from llmos.contracts.inference import Input
from llmos.errors import NotFound, Rejected

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
RECORDINGS = {".wav", ".flac", ".ogg", ".mp3"}


def read_inputs(texts: Sequence[str], files: Sequence[str], context: str | None) -> list[str | Input]:
    """The inputs in order. `-` is stdin, one text a line; a `.jsonl` file has a string or an `Input` a line.

    With `context`, texts are questions about it. Raises `NotFound` and `Rejected`, by file and line.
    """
    inputs: list[str | Input] = [*texts]
    for file in files:
        inputs += _read(file)
    if context is not None:
        text = Path(context[1:]).read_text(encoding="utf-8") if context.startswith("@") else context
        inputs = [Input(text=each, pair=text) if isinstance(each, str) else each for each in inputs]
    return inputs


def _read(file: str) -> list[str | Input]:
    kind = Path(file).suffix.lower()
    if kind in PICTURES:
        return [Input(image=_bytes(file))]
    if kind in RECORDINGS:
        return [Input(audio=_bytes(file))]
    try:
        text = sys.stdin.read() if file == "-" else _bytes(file).decode()
    except UnicodeDecodeError as error:
        raise Rejected(f"{file}: not UTF-8 at byte {error.start}", remedy="Save the file as UTF-8 text.") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if kind != ".jsonl":
        return [line for _, line in lines]
    return [_decode(file, number, line) for number, line in lines]


def _decode(file: str, number: int, line: str) -> str | Input:
    try:
        return msgspec.json.decode(line, type=str | Input)
    except msgspec.DecodeError as error:
        raise Rejected(f"{file} line {number}: {error}", remedy='Write a string or {"text": …} a line.') from error


def _bytes(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}", remedy="Correct the path.") from None
    except OSError as error:
        raise Rejected(f"{file} can't be read: {error.strerror}", remedy="Give a file.") from error


def shown(given: str | Input) -> str:
    """An input in one cell of a table."""
    if isinstance(given, str):
        return given
    if given.image or given.audio:
        return f"({len(given.image or given.audio)} bytes)"
    return given.text or given.artifact or (given.messages[-1].content if given.messages else f"{given.token_ids}")
