"""An encoder and a decoder that looks at what the encoder found (T5, Marian, BART, Whisper), as a `Graph` of slots.

The decoder's cache grows by concatenation and knows no row lengths, so only rows that hold equally many tokens, of
sources of one (padded) length, can share a run: those that were begun in the same step. They stay together until they
end. A source is padded by its own length alone, so a text is the same in any company.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from llmos.contracts.models import Cache as Layout
from llmos.errors import Rejected
from llmos_inferencer.decoding.graph import Floats, planes_of

PAD = 32  # sources are padded to a multiple of so many positions


class Shared(Struct, eq=False):
    """Rows that share a run: their caches `[rows, heads, length, size]`, what the encoder found, and its mask."""

    rows: list[int]
    length: int
    past: list[NDArray[Any]]
    cross: list[NDArray[Any]]
    mask: NDArray[np.int64]

    def part(self, at: list[int]) -> "Shared":
        """Some of the rows, by their places."""
        return Shared(
            [self.rows[place] for place in at],
            self.length,
            [array[at] for array in self.past],
            [array[at] for array in self.cross],
            self.mask[at],
        )


class CrossedGraph:
    """`Graph` over two sessions. `source` is a text's token ids, or a recording's samples."""

    together = True

    def __init__(self, encoder: Any, decoder: Any, layout: Layout, *, rows: int, context: int) -> None:
        self._encoder = encoder
        self._decoder = decoder
        self.rows = rows
        self.context = context
        self._planes = planes_of(layout)
        layers = range(layout.layers)
        self._cross = [name % layer for layer in layers for name in (layout.cross_key, layout.cross_value)]
        self._layout = layout
        takes = {given.name for given in decoder.get_inputs()}
        wanted = {"input_ids", *(plane.past for plane in self._planes), *self._cross}
        if takes - {"encoder_attention_mask"} != wanted:
            raise Rejected(
                f"the decoder takes {sorted(takes)}; llmos.json says {sorted(wanted)}", remedy="Export the model again."
            )
        self._masked = "encoder_attention_mask" in takes
        self._audio = "audio" in {given.name for given in encoder.get_inputs()}
        logits = next(given for given in decoder.get_outputs() if given.name == "logits")
        self.vocabulary = int(logits.shape[-1])
        self.token_bytes = sum(plane.heads * plane.width for plane in self._planes) * np.dtype(layout.dtype).itemsize
        self._groups: list[Shared] = []

    def prefill(self, row: int, ids: Sequence[int], start: int, source: Any) -> Floats:
        if start:
            raise Rejected("a decoder's first tokens are computed at once", code="unanswerable")
        self.leave(row)
        cross, mask = self._encode(source)
        shape = (1, self._layout.heads, 0, self._layout.size)
        past = [np.zeros(shape, self._layout.dtype) for _ in self._planes]
        group = Shared([row], 0, past, cross, mask)
        logits = self._step(group, np.array([ids], np.int64))
        self._groups.append(group)
        return np.asarray(logits[0], np.float32)

    def decode(self, tokens: Sequence[int], lengths: Sequence[int], first: int = 0) -> Floats:
        found = np.full((len(tokens), self.vocabulary), np.nan, np.float32)
        self._regroup(range(first, first + len(tokens)))
        for group in [group for group in self._groups if first <= group.rows[0] < first + len(tokens)]:
            for part in self._run(group, [tokens[row - first] for row in group.rows]):
                found[[row - first for row in part[0]]] = part[1]
        return found

    def copy(self, source: int, target: int, length: int) -> None:
        group = next(group for group in self._groups if source in group.rows)
        copied = group.part([group.rows.index(source)])
        copied.rows = [target]
        self.leave(target)
        self._groups.append(copied)

    def save(self, row: int, length: int) -> None:
        return None

    def load(self, row: int, saved: Any, length: int) -> None:
        raise AssertionError("nothing is ever saved")

    def leave(self, row: int) -> None:
        for group in self._groups:
            if row in group.rows:
                self._groups.remove(group)
                rest = [place for place, other in enumerate(group.rows) if other != row]
                if rest:
                    self._groups.append(group.part(rest))
                return

    def _run(self, group: Shared, tokens: list[int]) -> list[tuple[list[int], Floats]]:
        """A token for each row; a run that fails is done row by row, and a row that fails alone gets no logits."""
        try:
            return [(group.rows, self._step(group, np.array(tokens, np.int64)[:, None]))]
        except Exception:  # noqa: BLE001 - about one of these rows: its request fails for want of numbers
            if len(group.rows) == 1:
                return []
        self._groups.remove(group)
        alone = [group.part([place]) for place in range(len(group.rows))]
        self._groups += alone
        return [done for one, token in zip(alone, tokens, strict=True) for done in self._run(one, [token])]

    def _regroup(self, wanted: range) -> None:
        """Rows of one length come together; those that aren't wanted now stand apart."""
        alike: dict[Any, list[Shared]] = {}
        apart: list[Shared] = []
        for group in self._groups:
            inside = [place for place, row in enumerate(group.rows) if row in wanted]
            if len(inside) < len(group.rows):
                apart.append(group.part([place for place in range(len(group.rows)) if place not in inside]))
                group = group.part(inside)
            if inside:
                alike.setdefault((group.length, group.mask.shape[1]), []).append(group)
        self._groups = [*apart, *(_joined(groups) for groups in alike.values())]

    def _step(self, group: Shared, ids: NDArray[np.int64]) -> Floats:
        feeds: dict[str, Any] = {"input_ids": ids}
        feeds |= dict(zip((plane.past for plane in self._planes), group.past, strict=True))
        feeds |= dict(zip(self._cross, group.cross, strict=True))
        if self._masked:
            feeds["encoder_attention_mask"] = group.mask
        names = ["logits", *(plane.present for plane in self._planes)]
        logits, *group.past = self._decoder.run(names, feeds)
        group.length += ids.shape[1]
        found: Floats = logits[:, -1]
        return found

    def _encode(self, source: Any) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
        if self._audio:
            cross = self._encoder.run(self._cross, {"audio": np.asarray(source, np.float32)[None]})
            return cross, np.ones((1, cross[0].shape[2]), np.int64)
        ids = np.array([source], np.int64)
        mask = np.ones_like(ids)
        cross = self._encoder.run(self._cross, {"input_ids": ids, "attention_mask": mask})
        more = -ids.shape[1] % PAD if self._masked else 0
        wide = ((0, 0), (0, 0), (0, more), (0, 0))
        return [np.pad(array, wide) for array in cross], np.pad(mask, ((0, 0), (0, more)))


def _joined(groups: list[Shared]) -> Shared:
    if len(groups) == 1:
        return groups[0]
    return Shared(
        [row for group in groups for row in group.rows],
        groups[0].length,
        [np.concatenate(arrays) for arrays in zip(*(group.past for group in groups), strict=True)],
        [np.concatenate(arrays) for arrays in zip(*(group.cross for group in groups), strict=True)],
        np.concatenate([group.mask for group in groups]),
    )
