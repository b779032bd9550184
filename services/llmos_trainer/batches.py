"""The order of training as a pure function of seed, epoch and step: what makes a resumed run equal to an undisturbed
one.

Nothing here has a state, so a checkpoint needs to keep no random generator and no position but the step.
"""

import hashlib
import math
import random
from collections.abc import Sequence
from functools import lru_cache

from msgspec import Struct

from llmos.contracts.jobs import TrainSettings

DEFAULT_EPOCHS = 3
_POOL_BATCHES = 32  # rows of at most so many batches are sorted by length together
_POOLS = 4  # and of at most so large a share of the epoch, lest every epoch have the same batches


class Plan(Struct, frozen=True):
    """How many steps there are. An epoch is one pass over the rows; the last one may be cut short."""

    steps: int
    steps_per_epoch: int
    warmup_steps: int
    learning_rate: float

    def epoch_of(self, step: int) -> int:
        """The epoch in which step `step` (from 0) lies."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether after `step` steps it is time to evaluate."""
        return step > 0 and (step % self.steps_per_epoch == 0 or step == self.steps)

    def rate(self, step: int) -> float:
        """Learning rate of step `step` (from 0): linear up over the warm-up, then linear down to 0 after the last."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        return self.learning_rate * (self.steps - step) / max(1, self.steps - self.warmup_steps)


def plan(rows: int, settings: TrainSettings) -> Plan:
    """Lay out the training of `rows` rows."""
    per_epoch = math.ceil(rows / settings.batch_size)
    steps = settings.steps or per_epoch * (settings.epochs or DEFAULT_EPOCHS)
    warmup = settings.warmup
    return Plan(
        steps=steps,
        steps_per_epoch=per_epoch,
        warmup_steps=min(steps, math.ceil(warmup * steps) if warmup < 1 else int(warmup)),
        learning_rate=settings.learning_rate,
    )


def draw(seed: int, *purpose: object) -> int:
    """63 bits that depend on nothing but the arguments."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The rows of every batch of an epoch. Rows of like length come together; each row comes once.

    Rows are shuffled, pools of some batches are sorted by length and cut, and the batches are shuffled. The longest
    batch of all comes first, so that memory runs out at the start or never. (The pools are those of transformers'
    LengthGroupedSampler.)
    """
    generator = random.Random(draw(seed, "rows", epoch))
    order = _shuffled(len(lengths), generator)
    pool = batch_size * max(1, min(_POOL_BATCHES, len(order) // (batch_size * _POOLS)))
    batches = []
    for start in range(0, len(order), pool):
        ranked = sorted(order[start : start + pool], key=lambda row: -lengths[row])
        batches += [ranked[at : at + batch_size] for at in range(0, len(ranked), batch_size)]
    batches = [batches[at] for at in _shuffled(len(batches), generator)]
    if epoch == 0:
        longest = max(range(len(batches)), key=lambda at: lengths[batches[at][0]])
        batches[0], batches[longest] = batches[longest], batches[0]
    return batches


class BatchOrder:
    """`epoch_batches` by step, keeping the epoch at hand."""

    def __init__(self, lengths: Sequence[int], plan: Plan, settings: TrainSettings) -> None:
        self._plan = plan
        self._epoch = lru_cache(maxsize=1)(
            lambda epoch: epoch_batches(lengths, settings.batch_size, settings.seed, epoch)
        )

    def batch(self, step: int) -> list[int]:
        """The rows of step `step` (from 0)."""
        return self._epoch(self._plan.epoch_of(step))[step % self._plan.steps_per_epoch]


def _shuffled(count: int, generator: random.Random) -> list[int]:
    """A permutation; only `random()` keeps its sequence in every version of Python."""
    keys = [generator.random() for _ in range(count)]
    return sorted(range(count), key=keys.__getitem__)
