"""Measuring a model on labelled rows: loss, accuracy and macro F1; and the batches in which rows go through a model."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import f1_score

from llmos_trainer.gang import Gang

_BATCH_TOKENS = 8192


class Encoded(NamedTuple):
    """The rows of a split as token ids (int32) and label numbers; `pad` is the id of the padding token."""

    ids: list[npt.NDArray[np.int32]]
    labels: list[int]
    pad: int

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]


def collate(split: Encoded, rows: Sequence[int], device: torch.device) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs (`input_ids`, `attention_mask`: int64 [rows, longest], padded right) and label numbers (int64 [rows])."""
    longest = max(len(split.ids[row]) for row in rows)
    if device.type == "cuda":
        longest = -(-longest // 8) * 8  # tensor cores want multiples of 8
    ids = np.full((len(rows), longest), split.pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        length = len(split.ids[row])
        ids[at, :length] = split.ids[row]
        mask[at, :length] = 1
    labels = torch.tensor([split.labels[row] for row in rows])
    inputs = {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
    return inputs, labels.to(device)


@torch.no_grad()
def evaluate(
    model: Any,
    split: Encoded,
    device: torch.device,
    autocast: Callable[[], Any],
    tick: Callable[[float], None],
    gang: Gang | None = None,
) -> dict[str, float]:
    """`loss` (mean cross entropy), `accuracy` and `f1` (macro) of a split with at least one row.

    `tick` is called before every batch with the share that is done; what it raises ends the evaluation. The members of
    a gang take turns at the batches, call `tick` equally often, and get the same numbers.
    """
    model.eval()
    loss = 0.0
    found = [0] * len(split.labels)
    batches = _by_length(split)
    world, rank = (gang.world, gang.rank) if gang else (1, 0)
    for turn in range(0, len(batches), world):
        tick(turn / len(batches))
        if turn + rank >= len(batches):
            continue
        rows = batches[turn + rank]
        inputs, labels = collate(split, rows, device)
        with autocast():
            logits = model(**inputs).logits
        logits = logits.float()
        loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        for row, label in zip(rows, logits.argmax(dim=-1).tolist(), strict=True):
            found[row] = label
    if gang is not None:  # nobody else filled in a row of ours, and 0 changes no sum
        found = gang.total(torch.tensor(found)).tolist()
        loss = float(gang.total(torch.tensor(loss, dtype=torch.float64)))
    right = sum(a == b for a, b in zip(found, split.labels, strict=True))
    return {
        "loss": loss / len(found),
        "accuracy": right / len(found),
        "f1": float(f1_score(split.labels, found, average="macro")),
    }


def _by_length(split: Encoded) -> list[list[int]]:
    """Rows in batches of at most 8192 padded tokens, longest first."""
    order = sorted(range(len(split.ids)), key=lambda row: -len(split.ids[row]))
    batches = []
    while order:
        size = max(1, _BATCH_TOKENS // max(1, len(split.ids[order[0]])))
        batches.append(order[: min(size, 64)])
        order = order[min(size, 64) :]
    return batches
