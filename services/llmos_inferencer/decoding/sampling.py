"""From logits to a token: penalties, temperature, top-k, min-p, top-p, and log-probabilities. Pure: the random number
is a function of seed, output and position.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmos_inferencer.decoding.request import Chosen, Sampling

Floats = NDArray[np.float32]
_MASK = (1 << 64) - 1


def uniform(seed: int, output: int, position: int) -> float:
    """A number in [0, 1) for the token at `position` of an output: splitmix64 (Steele et al., 2014) over all three."""
    state = seed & _MASK
    for part in (output, position):
        state = (state + 0x9E3779B97F4A7C15 * (part + 1)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return (state >> 11) / (1 << 53)


def choose(
    logits: Floats,
    sampling: Sampling,
    draw: float,
    *,
    seen: NDArray[np.intp] | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> int:
    """The token for logits `[vocabulary]`, which are left as they are. `seen` are the ids that the repetition penalty
    touches (Keskar et al., 2019), `allowed` masks what a grammar permits.

    Temperature comes before top-k, min-p and top-p, as in transformers.
    """
    if sampling.repetition_penalty != 1.0 and seen is not None and len(seen):
        logits = logits.copy()
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
    if allowed is not None:
        logits = np.where(allowed, logits, np.float32(-np.inf))
    if sampling.temperature <= 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / sampling.temperature
    ids: NDArray[np.intp] | None = None
    if 0 < sampling.top_k < len(scaled):
        ids = np.flatnonzero(scaled >= np.partition(scaled, -sampling.top_k)[-sampling.top_k])
        scaled = scaled[ids]
    weights = np.exp(scaled - scaled.max())
    if sampling.min_p > 0:
        kept = np.flatnonzero(weights >= sampling.min_p)
        ids = kept if ids is None else ids[kept]
        weights = weights[kept]
    if sampling.top_p < 1.0:
        order = _nucleus(weights, sampling.top_p)
        ids = order if ids is None else ids[order]
        weights = weights[order]
    sums = np.cumsum(weights)
    at = min(int(np.searchsorted(sums, draw * sums[-1], side="right")), len(sums) - 1)
    return at if ids is None else int(ids[at])


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """The fewest likeliest entries whose weight reaches `top_p` of all, likeliest first. Sorts few, seldom all."""
    wanted = top_p * weights.sum()
    size = 128
    while True:
        if size < len(weights):
            top = np.argpartition(weights, -size)[-size:]
            top.sort()  # ties in the order of the vocabulary, however they were partitioned
        else:
            top = np.arange(len(weights))
        order = top[np.argsort(-weights[top], kind="stable")]
        enough = int(np.searchsorted(np.cumsum(weights[order]), wanted)) + 1
        if enough < len(order) or size >= len(weights):
            return order[:enough]
        size *= 8


def logprobs(logits: Floats, token: int, top: int) -> Chosen:
    """Log-probabilities of the chosen token and the `top` likeliest, as the model gave them (before temperature and
    masks).
    """
    highest = float(logits.max())
    total = highest + math.log(float(np.exp(logits - highest, dtype=np.float64).sum()))
    best = np.argpartition(-logits, min(top, len(logits)) - 1)[:top]
    best = best[np.lexsort((best, -logits[best]))]
    return Chosen(token, float(logits[token]) - total, [(int(id), float(logits[id]) - total) for id in best])
