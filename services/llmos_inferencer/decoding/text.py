"""From token ids to text, piece by piece: never a broken character, never part of a stop text."""

from collections.abc import Sequence
from typing import Protocol

BROKEN = "\ufffd"
LONGEST = 3  # marks of a broken character that more tokens may still complete: a decoder gives one or one a byte
WINDOW = 64  # tokens looked back at while text stays broken


class Decodes(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: list[int]) -> str: ...


class Detokenizer:
    """The pieces of one output; joined they are a beginning of the text of all its tokens.

    A few tokens before are decoded along, because many tokenizers write a token differently at the beginning.
    """

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._read = 0  # ids up to here are in `_told`
        self._told = ""

    def feed(self, token: int) -> str:
        """The text that this token completes; empty while a character is in the middle."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        whole = text.rstrip(BROKEN) if len(text) - len(text.rstrip(BROKEN)) <= LONGEST else text[:-LONGEST]
        piece = ""
        if whole.startswith(self._told):
            piece = whole[len(self._told) :]
            self._told = whole
        if whole == text or len(self._ids) > WINDOW:
            self._ids = self._ids[self._read :]
            self._told = self._tokenizer.decode(self._ids)
            self._read = len(self._ids)
        return piece


class StopTexts:
    """Holds back what may become a stop text, and ends the output before one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """The text that can be told now, and whether a stop text was met (then nothing comes after it)."""
        if not self._stops:
            return piece, False
        text = self._held + piece
        met = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if met:
            self._held = ""
            return text[: min(met)], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, when the output ends otherwise."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
