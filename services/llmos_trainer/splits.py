"""Which rows train, which validate and which test: a pure function of the rows' content.

A text belongs to one of ten tenths by the hash of its characters, so that it falls on the same side every time, also
after the file has grown, and equal texts never fall on two sides.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from llmos_trainer.rows import Row

SPLITS = ("train", "validation", "test")
_TENTHS = {"validation": 0, "test": 1}


def content_hash(text: str) -> int:
    """64 bits of BLAKE2b over the text's UTF-8."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def split_off(rows: Sequence[Row], missing: Sequence[str]) -> dict[str, list[Row]]:
    """Split a tenth of `rows` off for each of the `missing` splits; the rest is `train`. Order is kept.

    A label whose texts would all be split off keeps them in `train`, and a split that would be empty gets one text,
    as long as its labels are known without it. What still stays empty is for the caller to report.
    """
    places = {_TENTHS[name]: name for name in missing}
    hashes = {row.text: content_hash(row.text) for row in rows}
    side = {text: places.get(value % 10, "train") for text, value in hashes.items()}
    ordered = sorted(hashes, key=lambda text: (hashes[text], text))
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row.text, set()).add(row.label)
    texts_of = Counter(label for text in ordered if side[text] == "train" for label in labels[text])
    for text in ordered:
        if side[text] != "train" and any(not texts_of[label] for label in labels[text]):
            side[text] = "train"
            texts_of.update(labels[text])
    for name in missing:
        if name in side.values():
            continue
        for text in ordered:
            if side[text] == "train" and all(texts_of[label] > 1 for label in labels[text]):
                side[text] = name
                texts_of.subtract(labels[text])
                break
    sides: dict[str, list[Row]] = {name: [] for name in ("train", *missing)}
    for row in rows:
        sides[side[row.text]].append(row)
    return sides


def leaked(train: Iterable[Row], test: Iterable[Row]) -> int:
    """How many test rows have a text that is trained on."""
    known = {row.text for row in train}
    return sum(row.text in known for row in test)
