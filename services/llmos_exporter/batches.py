"""Tokenised texts, and the padded batches in which they go through a model."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BATCH_TOKENS = 8192
BATCH_ROWS = 64

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


class Batch(NamedTuple):
    """Token ids and attention mask, each int64 `[texts, longest]`, padded on the right."""

    ids: Ids
    mask: Ids


class Rows(NamedTuple):
    """The texts of a split, their token ids, and the numbers of their labels."""

    texts: list[str]
    ids: list[list[int]]
    labels: list[int]


def pad(texts: Sequence[Sequence[int]], token: int) -> Batch:
    """One batch of token ids; a text without a token becomes one padding token that is attended to, as in training."""
    texts = [ids or [token] for ids in texts]
    shape = (len(texts), max(len(ids) for ids in texts))
    ids = np.full(shape, token, np.int64)
    mask = np.zeros(shape, np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return Batch(ids, mask)


def by_length(texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Row numbers in batches of at most 8192 padded tokens and 64 texts, longest first."""
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    while order:
        size = min(max(1, BATCH_TOKENS // max(1, len(texts[order[0]]))), BATCH_ROWS)
        yield order[:size]
        order = order[size:]


def sample(texts: Sequence[Sequence[int]], token: int) -> Batch:
    """The batch with which a graph is traced: two texts of different length, so that padding leaves its trace.

    Traced with a mask of ones, a graph may lose its mask.
    """
    longest = max(texts, key=len)
    return pad(
        [longest, longest[: max(1, len(longest) // 2)]] if len(longest) > 1 else [[token, token], [token]], token
    )


def probes(texts: Sequence[Sequence[int]], token: int, max_length: int) -> list[Batch]:
    """Real texts at shapes that the trace has not seen: alone, in threes and eights, cut short, and stretched."""
    order = sorted(range(len(texts)), key=lambda row: (len(texts[row]), row))
    some: list[Sequence[int]] = [texts[row] for row in order[:: max(1, len(order) // 24)]][
        :24
    ]  # evenly over the lengths
    short, middle, long = some[0], some[len(some) // 2], some[-1]
    mixed = [text for pair in zip(some, reversed(some), strict=True) for text in pair][: len(some)]  # short beside long
    cut = [text[: max(1, len(text) // 2)] for text in mixed]
    stretched = _stretch(long, max_length)
    batches: list[list[Sequence[int]]] = [[short], [middle], [long], [stretched], [stretched, short, long]]
    batches += [mixed[at : at + 3] for at in range(0, len(mixed), 3)]
    batches += [source[at : at + 8] for source in (mixed, cut) for at in range(0, len(source), 8)]
    return [pad(batch, token) for batch in batches]


def _stretch(text: Sequence[int], length: int) -> list[int]:
    """The text repeated to `length` tokens; its first and last token, most likely special ones, stay at the ends."""
    if len(text) < 3 or length < 3:
        return list(text)
    body = list(text[1:-1]) * -(-length // (len(text) - 2))
    return [text[0], *body[: length - 2], text[-1]]
