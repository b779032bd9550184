"""RFC 6962 trees: known roots, and every proof of small trees against a second implementation straight from the RFC."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos import tlog
from llmos.errors import Rejected

# The leaves and roots of the test vectors of Certificate Transparency (trillian, certificate-transparency-go).
CT_LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\0" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\1" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962, 2.1.1, word for word."""
    if len(leaves) <= 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """RFC 6962, 2.1.2, word for word."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def numbered(size: int) -> list[bytes]:
    return [str(number).encode() for number in range(size)]


def reader(leaves: list[bytes]) -> tlog.HashReader:
    return lambda height, index: mth(leaves[index << height : (index + 1) << height])


def test_the_roots_are_those_of_the_known_vectors() -> None:
    tree = tlog.Frontier()
    assert tree.root().hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for leaf, root in zip(CT_LEAVES, CT_ROOTS, strict=True):
        tree.append(tlog.leaf_hash(leaf))
        assert tree.root().hex() == root


def test_every_inclusion_proof_of_every_small_tree_is_the_rfcs_and_verifies() -> None:
    leaves = numbered(33)
    for size in range(1, len(leaves) + 1):
        root = mth(leaves[:size])
        for index in range(size):
            proof = tlog.inclusion_proof(index, size, reader(leaves[:size]))
            assert proof == path(index, leaves[:size])
            assert tlog.verify_inclusion(index, size, tlog.leaf_hash(leaves[index]), proof, root)


def test_every_consistency_proof_of_every_small_tree_is_the_rfcs_and_verifies() -> None:
    leaves = numbered(33)
    for new in range(1, len(leaves) + 1):
        for old in range(1, new + 1):
            proof = tlog.consistency_proof(old, new, reader(leaves[:new]))
            assert proof == subproof(old, leaves[:new], True)
            assert tlog.verify_consistency(old, new, mth(leaves[:old]), mth(leaves[:new]), proof)


@given(st.integers(1, 300), st.data())
def test_a_proof_is_refused_for_any_other_entry_place_size_root_or_path(size: int, data: st.DataObject) -> None:
    leaves = numbered(size)
    index = data.draw(st.integers(0, size - 1))
    root, leaf = mth(leaves), tlog.leaf_hash(leaves[index])
    proof = tlog.inclusion_proof(index, size, reader(leaves))
    assert tlog.verify_inclusion(index, size, leaf, proof, root)
    assert not tlog.verify_inclusion(index, size, tlog.leaf_hash(b"other"), proof, root)
    assert not tlog.verify_inclusion(index, size, leaf, proof, tlog.leaf_hash(b"other"))
    assert not tlog.verify_inclusion(index, size, leaf, [*proof, root], root)
    assert not tlog.verify_inclusion(size, size, leaf, proof, root)
    other = data.draw(st.integers(0, size - 1).filter(lambda number: number != index)) if size > 1 else size
    assert not tlog.verify_inclusion(other, size, leaf, proof, root)
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        assert not tlog.verify_inclusion(index, size, leaf, proof[:at] + proof[at + 1 :], root)
        assert not tlog.verify_inclusion(index, size, leaf, [*proof[:at], root, *proof[at + 1 :]], root)


@given(st.integers(1, 200), st.integers(0, 200), st.data())
def test_no_consistency_proof_joins_two_different_histories(old: int, more: int, data: st.DataObject) -> None:
    leaves = numbered(old + more)
    forked = list(leaves)
    forked[data.draw(st.integers(0, old - 1))] = b"rewritten"
    proof = tlog.consistency_proof(old, old + more, reader(forked))
    assert tlog.verify_consistency(old, old + more, mth(forked[:old]), mth(forked), proof)
    assert not tlog.verify_consistency(old, old + more, mth(leaves[:old]), mth(forked), proof)


@given(st.integers(0, 700), st.integers(0, 40))
def test_a_frontier_read_from_hashes_goes_on_like_one_that_was_never_stopped(size: int, more: int) -> None:
    leaves = numbered(size + more)
    tree = tlog.Frontier(size, reader(leaves))
    for leaf in leaves[size:]:
        tree.append(tlog.leaf_hash(leaf))
    assert tree.root() == mth(leaves)


def test_tile_paths_are_those_of_the_specification() -> None:
    assert tlog.tile_path(0, 1234067) == "tile/0/x001/x234/067"
    assert tlog.tile_path("entries", 5, 17) == "tile/entries/005.p/17"
    assert tlog.tile_path(2, 1000) == "tile/2/x001/000"


def test_a_tree_of_70000_has_the_tiles_that_the_specification_lists() -> None:
    assert [tlog.tile_width(0, index, 70_000) for index in (0, 272, 273, 274)] == [256, 256, 112, 0]
    assert [tlog.tile_width(1, index, 70_000) for index in (0, 1, 2)] == [256, 17, 0]
    assert [tlog.tile_width(2, index, 70_000) for index in (0, 1)] == [1, 0]
    assert [tlog.tile_width(level, 0, 256) for level in (0, 1)] == [256, 1]


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(0, 40))
def test_a_cut_bundle_yields_its_whole_entries_and_no_other(entries: list[bytes], cut: int) -> None:
    data = tlog.join_bundle(entries)
    assert tlog.split_bundle(data) == entries
    assert (
        tlog.split_bundle(data[: max(0, len(data) - cut)])
        == entries[: len(tlog.split_bundle(data[: max(0, len(data) - cut)]))]
    )
    assert tlog.split_bundle(data[:-1] if data else b"") == entries[:-1]


def test_a_proof_outside_the_tree_is_refused() -> None:
    with pytest.raises(Rejected, match="entry 3 is not in a log of 3 entries"):
        tlog.inclusion_proof(3, 3, reader(numbered(3)))
    with pytest.raises(Rejected):
        tlog.consistency_proof(4, 3, reader(numbered(3)))
