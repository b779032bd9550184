"""Prompts that were computed, kept so that one that begins the same is not computed again: a shared system prompt, an
earlier turn. Bounded by bytes, the least recently used goes first.

Only what prefill wrote is kept, never what decoding wrote: then an answer is the same to the last bit with and without
the cache.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

BLOCK = 32  # tokens: shorter common beginnings are computed faster than looked up


class Entry(Struct):
    """A prompt's token ids and what `Cache.save` gave for them."""

    ids: NDArray[np.int64]
    saved: Any
    size: int


class Prefixes:
    """`find` the longest beginning that is known, `keep` what was computed."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.size = 0
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()  # by all its ids
        self._blocks: dict[bytes, bytes] = {}  # the ids of a number of whole blocks -> an entry that begins so

    def find(self, prompt: Sequence[int]) -> tuple[int, Any]:
        """How many tokens from the beginning are known, and where they are saved; `(0, None)` if less than a block.

        At least two tokens are left to compute.
        """
        if not self._entries:
            return 0, None
        ids = np.asarray(prompt, np.int64)
        for end in range((len(ids) - 2) // BLOCK * BLOCK, 0, -BLOCK):
            key = self._blocks.get(ids[:end].tobytes())
            if key is None:
                continue
            entry = self._entries[key]
            self._entries.move_to_end(key)
            longest = min(len(ids) - 2, len(entry.ids))
            differs = np.flatnonzero(ids[end:longest] != entry.ids[end:longest])
            return (end + int(differs[0]) if len(differs) else longest), entry.saved
        return 0, None

    def worth(self, prompt: Sequence[int], known: int) -> bool:
        """Whether a computed prompt, of which `known` tokens were found, should be kept: a block more than is known."""
        return self.budget > 0 and len(prompt) >= known + BLOCK

    def keep(self, prompt: Sequence[int], saved: Any, size: int) -> None:
        """Keep a prompt of `size` bytes; others go for it. One that alone exceeds the budget is not kept."""
        ids = np.asarray(prompt, np.int64)
        key = ids.tobytes()
        if size > self.budget or key in self._entries:
            return
        while self.size + size > self.budget:
            self._forget(next(iter(self._entries)))
        self._entries[key] = Entry(ids, saved, size)
        self.size += size
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            self._blocks[ids[:end].tobytes()] = key

    def _forget(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        self.size -= entry.size
        for end in range(BLOCK, len(entry.ids) + 1, BLOCK):
            block = entry.ids[:end].tobytes()
            if self._blocks.get(block) == key:
                del self._blocks[block]
