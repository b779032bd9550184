"""The keys and values of every slot: one address range a layer, of which only the pages that were written take memory.

A slot has room for the model's whole context, so nothing is ever laid out anew; what a short request did not touch
costs nothing, and what a row no longer needs is given back to the system when the budget is exceeded.
"""

import math
import mmap
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import DTypeLike, NDArray

PAGE = mmap.PAGESIZE
Saved = list[NDArray[np.generic]]  # of one row: an array [heads, length, width] for each layer's keys and values


class Plane(Struct, frozen=True):
    """One of a layer's two caches: `[rows, heads, context, width]`."""

    past: str
    present: str
    heads: int
    width: int
    dtype: str


class Cache:
    """The planes of all layers. Rows are slots; `length` says how many tokens of a row count."""

    def __init__(self, planes: Sequence[Plane], rows: int, context: int) -> None:
        self.planes = list(planes)
        self.rows = rows
        unit = max(PAGE // math.gcd(PAGE, plane.width * _size(plane.dtype)) for plane in planes)
        self.pitch = -(-context // unit) * unit  # rows begin at page borders
        self._maps: list[mmap.mmap] = []
        self._row_bytes: list[int] = []
        self.arrays: list[NDArray[np.generic]] = []
        self.written = [0] * rows  # tokens up to which a row's pages may be resident
        for plane in planes:
            row = plane.heads * self.pitch * plane.width * _size(plane.dtype)
            pages = mmap.mmap(-1, rows * row, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pages.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page would take memory for rows that nobody wrote
            shape = (rows, plane.heads, self.pitch, plane.width)
            self.arrays.append(np.frombuffer(pages, dtype=plane.dtype).reshape(shape))
            self._maps.append(pages)
            self._row_bytes.append(row)
        self.token_bytes = sum(plane.heads * plane.width * _size(plane.dtype) for plane in planes)

    @property
    def resident(self) -> int:
        """About how many bytes the rows take."""
        return sum(self.written) * self.token_bytes

    def touch(self, row: int, length: int) -> None:
        """A row is about to hold so many tokens."""
        self.written[row] = max(self.written[row], length)

    def copy(self, source: int, target: int, length: int) -> None:
        """Write the first `length` tokens of one row into another."""
        self.touch(target, length)
        for array in self.arrays:
            array[target, :, :length] = array[source, :, :length]

    def save(self, row: int, length: int) -> Saved:
        """A copy of a row's first `length` tokens."""
        return [array[row, :, :length].copy() for array in self.arrays]

    def load(self, row: int, saved: Saved, length: int) -> None:
        """Write the first `length` tokens of what `save` gave into a row."""
        self.touch(row, length)
        for array, part in zip(self.arrays, saved, strict=True):
            array[row, :, :length] = part[:, :length]

    def drop(self, row: int) -> None:
        """Give a row's memory back to the system; it reads as zeros afterwards."""
        if self.written[row]:
            for pages, size in zip(self._maps, self._row_bytes, strict=True):
                pages.madvise(mmap.MADV_DONTNEED, row * size, size)
            self.written[row] = 0


def _size(dtype: DTypeLike) -> int:
    return np.dtype(dtype).itemsize
