"""Merkle trees of transparency logs: RFC 6962 hashes and proofs, and the tiles in which C2SP tlog-tiles stores them.

Pure: it hashes and computes paths, and reads nothing itself. Whoever has the tiles hands in a function that reads them.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

from llmos.errors import Rejected

HASH_SIZE = 32
TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
EMPTY_ROOT = sha256(b"").digest()

# (height, index) → the hash of the perfect subtree over the entries [index << height, (index + 1) << height).
HashReader = Callable[[int, int], bytes]
# (level, index, width) → the tile's `width` hashes, concatenated.
TileReader = Callable[[int, int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    """RFC 6962, 2.1: the hash of one entry."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962, 2.1: the hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: the roots of its perfect subtrees, the largest first; O(log n) memory."""

    __slots__ = ("_nodes", "size")

    def __init__(self, size: int = 0, read: HashReader | None = None) -> None:
        """Start from a tree of `size` entries, whose hashes `read` gives; an empty one needs none."""
        self.size = size
        self._nodes: list[bytes] = []
        start = 0
        for height in range(size.bit_length() - 1, -1, -1):
            if size >> height & 1 and read:
                self._nodes.append(read(height, start >> height))
                start += 1 << height

    def append(self, leaf: bytes) -> list[bytes]:
        """Add a leaf's hash. Returns the roots of the perfect subtrees that it completes, of height 1, 2, …."""
        node, size, completed = leaf, self.size, []
        while size & 1:
            node = node_hash(self._nodes.pop(), node)
            completed.append(node)
            size >>= 1
        self._nodes.append(node)
        self.size += 1
        return completed

    def root(self) -> bytes:
        """The root hash of the tree as it is."""
        if not self._nodes:
            return EMPTY_ROOT
        node = self._nodes[-1]
        for left in self._nodes[-2::-1]:
            node = node_hash(left, node)
        return node


def split(size: int) -> int:
    """The largest power of two smaller than `size` (≥ 2): where RFC 6962 splits a tree."""
    return 1 << (size - 1).bit_length() - 1


def range_hash(start: int, end: int, read: HashReader) -> bytes:
    """MTH(D[start:end]) for a range that is a node's: `start` is a multiple of the next power of two ≥ its length."""
    size = end - start
    if size == 0:
        return EMPTY_ROOT
    if size & (size - 1) == 0:
        height = size.bit_length() - 1
        return read(height, start >> height)
    middle = start + split(size)
    return node_hash(range_hash(start, middle, read), range_hash(middle, end, read))


def inclusion_proof(index: int, size: int, read: HashReader) -> list[bytes]:
    """RFC 6962, 2.1.1: PATH(index, D[0:size]), from the leaf to the root. Raises `Rejected` outside the tree."""
    if not 0 <= index < size:
        raise Rejected(f"entry {index} is not in a log of {size} entries", param="index")
    start, end, path = 0, size, []
    while end - start > 1:
        middle = start + split(end - start)
        if index < middle:
            path.append(range_hash(middle, end, read))
            end = middle
        else:
            path.append(range_hash(start, middle, read))
            start = middle
    return path[::-1]


def consistency_proof(old: int, new: int, read: HashReader) -> list[bytes]:
    """RFC 6962, 2.1.2: PROOF(old, D[0:new]); empty when `old` is 0 or `new`. Raises `Rejected` if old > new."""
    if not 0 <= old <= new:
        raise Rejected(f"a log of {new} entries can't be consistent with one of {old}", param="old")
    if old in (0, new):
        return []
    start, end, path = 0, new, []
    while old != end:
        middle = start + split(end - start)
        if old <= middle:
            path.append(range_hash(middle, end, read))
            end = middle
        else:
            path.append(range_hash(start, middle, read))
            start = middle
    if start:  # the old tree ends in a node that the verifier can't know
        path.append(range_hash(start, end, read))
    return path[::-1]


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes | None:
    """The root that an inclusion proof leads to (RFC 9162, 2.1.3.2); `None` if the proof has not the right form."""
    if not 0 <= index < size:
        return None
    node, last = leaf, size - 1
    for other in proof:
        if last == 0:
            return None
        if index & 1 or index == last:
            node = node_hash(other, node)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = node_hash(node, other)
        index, last = index >> 1, last >> 1
    return node if last == 0 else None


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the proof shows that the entry with this leaf hash stands at `index` of the tree with this root."""
    return root_from_inclusion(index, size, leaf, proof) == root


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that the new tree begins with the whole old one (RFC 9162, 2.1.4.2)."""
    if not 0 <= old <= new:
        return False
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    if old == new:
        return not proof and old_root == new_root
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    if not path:
        return False
    index, last = old - 1, new - 1
    while index & 1:
        index, last = index >> 1, last >> 1
    first = second = path[0]
    for other in path[1:]:
        if last == 0:
            return False
        if index & 1 or index == last:
            first, second = node_hash(other, first), node_hash(other, second)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            second = node_hash(second, other)
        index, last = index >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root


# --- tiles (C2SP tlog-tiles) ---


def tile_path(level: int | str, index: int, width: int = TILE_WIDTH) -> str:
    """`tile/<level>/<index>[.p/<width>]`; level `entries` for an entry bundle. 1234067 is `x001/x234/067`."""
    parts = [f"{index % 1000:03d}"]
    while index := index // 1000:
        parts.insert(0, f"x{index % 1000:03d}")
    suffix = "" if width == TILE_WIDTH else f".p/{width}"
    return f"tile/{level}/{'/'.join(parts)}{suffix}"


def tile_width(level: int, index: int, size: int) -> int:
    """How many hashes the tile has in a tree of `size` entries: 256, or fewer at the right edge; 0 if it has none."""
    return max(0, min(TILE_WIDTH, (size >> TILE_HEIGHT * level) - index * TILE_WIDTH))


def split_tile(data: bytes) -> list[bytes]:
    """The hashes of a tile."""
    return [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]


def tile_hashes(size: int, read_tile: TileReader) -> HashReader:
    """Read any perfect subtree's hash of a tree of `size` entries out of its tiles."""

    def read(height: int, index: int) -> bytes:
        level, rest = divmod(height, TILE_HEIGHT)
        tile, offset = divmod(index << rest, TILE_WIDTH)
        hashes = split_tile(read_tile(level, tile, tile_width(level, tile, size)))[offset : offset + (1 << rest)]
        while len(hashes) > 1:
            hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
        return hashes[0]

    return read


class Tile(NamedTuple):
    """The tile of this number in its level, and its hashes: 256, or fewer at the right edge."""

    level: int
    number: int
    hashes: list[bytes]


class TiledTree:
    """A growing tree, and the tiles at its right edge that are not full yet."""

    def __init__(self, size: int = 0, read_tile: TileReader | None = None) -> None:
        """Start from a log of `size` entries, whose tiles `read_tile` gives; an empty one needs none."""
        self.frontier = Frontier(size, tile_hashes(size, read_tile) if read_tile else None)
        self._edge: list[list[bytes]] = [[]]
        for level in range((size.bit_length() + TILE_HEIGHT - 1) // TILE_HEIGHT if read_tile else 0):
            index, width = divmod(size >> TILE_HEIGHT * level, TILE_WIDTH)
            self._edge[level:] = [split_tile(read_tile(level, index, width)) if read_tile and width else []]

    @property
    def size(self) -> int:
        return self.frontier.size

    def append(self, leaf: bytes) -> list[Tile]:
        """Add a leaf's hash. Returns the tiles that it fills, the lowest level first."""
        completed = self.frontier.append(leaf)
        self._edge[0].append(leaf)
        filled = []
        for level, hashes in enumerate(self._edge):
            if len(hashes) < TILE_WIDTH:
                break
            above = TILE_HEIGHT * (level + 1)
            filled.append(Tile(level, (self.size >> above) - 1, hashes))
            self._edge[level] = []
            if len(self._edge) == level + 1:
                self._edge.append([])
            self._edge[level + 1].append(completed[above - 1])
        return filled

    def partial_tiles(self) -> list[Tile]:
        """The tiles of the right edge that hold something and are not full."""
        return [
            Tile(level, self.size >> TILE_HEIGHT * (level + 1), list(hashes))
            for level, hashes in enumerate(self._edge)
            if hashes
        ]


def join_bundle(entries: Sequence[bytes]) -> bytes:
    """An entry bundle: each entry after its length as a big-endian uint16."""
    return b"".join(len(entry).to_bytes(2) + entry for entry in entries)


def split_bundle(data: bytes) -> list[bytes]:
    """The whole entries of a bundle; what is cut off at its end is left out."""
    entries, at = [], 0
    while at + 2 <= len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2])
        if end > len(data):
            break
        entries.append(data[at + 2 : end])
        at = end
    return entries
