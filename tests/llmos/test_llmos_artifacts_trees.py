"""Trees: what was put comes back whole, and what a hostile or damaged manifest asks for is refused."""

import asyncio
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.artifacts import (
    Damaged,
    FileEntry,
    Manifest,
    decode_manifest,
    get_manifest,
    get_tree,
    open_store,
    put_tree,
    remove_tree,
)
from llmos.artifacts_content import address_of, check_path, check_paths, chunks_of
from llmos.artifacts_directory import DirectoryStore
from llmos.errors import NotFound, Rejected, from_problem
from llmos.sealing import StreamingCipher, new_streaming_keyset
from llmos.testing.s3 import S3Server

TREE = {
    "config.json": b"{}",
    "model.safetensors": os.urandom(1000),
    "sub/dir/tokenizer.json": b"",
    "sub/ü.txt": b"\xff",
}


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture(scope="module")
def cipher() -> StreamingCipher:
    return StreamingCipher("acme/3", new_streaming_keyset())


def write(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir(parents=True)
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def read(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def test_a_tree_comes_back_with_its_kind_and_meta(store: DirectoryStore, tmp_path: Path) -> None:
    address = await put_tree(store, write(tmp_path / "in", TREE), kind="model", meta={"task": "text-classification"})
    manifest = await get_tree(store, address, tmp_path / "out")
    assert read(tmp_path / "out") == TREE
    assert manifest == await get_manifest(store, address)
    assert (manifest.kind, manifest.meta, manifest.sealed_by) == ("model", {"task": "text-classification"}, "")
    assert [entry.path for entry in manifest.files] == sorted(TREE)
    for entry in manifest.files:
        status = (tmp_path / "out" / entry.path).lstat()
        assert stat.S_ISREG(status.st_mode)
        assert status.st_nlink == 1
        assert (entry.size, entry.digest) == (len(TREE[entry.path]), address_of(TREE[entry.path]))


async def test_a_tree_comes_back_from_s3(s3_server: S3Server, cipher: StreamingCipher, tmp_path: Path) -> None:
    store = open_store("s3://trees/a/b", env=s3_server.env)
    root = write(tmp_path / "in", TREE)
    for number, sealed_with in enumerate((None, cipher)):
        address = await put_tree(store, root, kind="model", cipher=sealed_with)
        await get_tree(store, address, tmp_path / str(number), cipher=sealed_with)
        assert read(tmp_path / str(number)) == TREE


names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20
)
paths = st.lists(names.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map("/".join)
trees = st.dictionaries(paths, st.binary(max_size=50), max_size=6)


@settings(max_examples=40, deadline=None)
@given(trees)
def test_any_tree_of_plain_paths_comes_back(files: dict[str, bytes]) -> None:
    try:
        check_paths(list(files))
    except Rejected:
        return  # two of the paths collide
    with tempfile.TemporaryDirectory() as folder:

        async def there_and_back() -> None:
            store = DirectoryStore(Path(folder) / "store")
            address = await put_tree(store, write(Path(folder) / "in", files), kind="any")
            await get_tree(store, address, Path(folder) / "out")

        asyncio.run(there_and_back())
        assert read(Path(folder) / "out") == files


@given(st.text(st.sampled_from("ab./\\\0\n~"), max_size=12))
def test_no_path_that_is_let_through_leaves_the_tree(path: str) -> None:
    try:
        check_path(path)
    except Rejected:
        return
    root = Path("/root/of/the/tree")
    inside = Path(os.path.normpath(root / path))
    assert inside.is_relative_to(root)
    assert inside != root
    assert inside.relative_to(root).as_posix() == path


async def test_a_tree_is_removed_but_for_what_others_that_stay_hold(store: DirectoryStore, tmp_path: Path) -> None:
    old = await put_tree(store, write(tmp_path / "old", {"a": b"only here", "b": b"in both"}), kind="model")
    new = await put_tree(store, write(tmp_path / "new", {"b": b"in both", "c": b"only there"}), kind="model")
    for _ in range(2):
        await remove_tree(store, old, keep=[new])
    assert [await store.has(address_of(data)) for data in (b"only here", b"in both", b"only there")] == [
        False,
        True,
        True,
    ]
    with pytest.raises(NotFound):
        await get_manifest(store, old)
    await get_tree(store, new, tmp_path / "out")


async def test_equal_trees_have_one_address_however_they_were_made(store: DirectoryStore, tmp_path: Path) -> None:
    one = await put_tree(store, write(tmp_path / "one", TREE), kind="x", meta={"a": "1", "b": "2"})
    reverse = write(tmp_path / "two", dict(reversed(TREE.items())))
    (reverse / "empty").mkdir()
    assert await put_tree(store, reverse, kind="x", meta={"b": "2", "a": "1"}) == one
    assert await put_tree(store, reverse, kind="y", meta={"b": "2", "a": "1"}) != one


async def test_the_manifest_has_this_form_for_ever(store: DirectoryStore, tmp_path: Path) -> None:
    address = await put_tree(store, write(tmp_path / "in", {"b": b"hi", "a": b""}), kind="k", meta={"m": "v"})
    assert await store.get_bytes(address) == (
        b'{"type":"llmos.manifest.v1","kind":"k","files":['
        b'{"path":"a","size":0,"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},'
        b'{"path":"b","size":2,"digest":"sha256:8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"}],'
        b'"meta":{"m":"v"}}'
    )


def test_a_manifest_of_a_later_version_with_more_fields_is_still_read() -> None:
    assert decode_manifest(b'{"type":"llmos.manifest.v1","kind":"k","new":[1]}') == Manifest("k")


# --- putting ---


class CrashingStore(DirectoryStore):
    """Loses its process at the put with this number, before or after the object is persisted."""

    def __init__(self, root: Path, crash_at: int, *, happens: bool) -> None:
        super().__init__(root)
        self.left = crash_at
        self.happens = happens

    async def put_file(self, path: Path) -> str:
        return await self._count(await super().put_file(path) if self.left > 1 or self.happens else "")

    async def put_bytes(self, data: bytes) -> str:
        return await self._count(await super().put_bytes(data) if self.left > 1 or self.happens else "")

    async def _count(self, address: str) -> str:
        self.left -= 1
        if self.left == 0:
            raise ConnectionError("gone")
        return address


@pytest.mark.parametrize("happens", [False, True], ids=["lost", "happened"])
@pytest.mark.parametrize("crash_at", [1, len(TREE), len(TREE) + 1], ids=["first file", "last file", "manifest"])
async def test_a_crash_leaves_no_manifest_without_its_files_and_putting_again_heals(
    tmp_path: Path, crash_at: int, happens: bool
) -> None:
    root = write(tmp_path / "in", TREE)
    crashing = CrashingStore(tmp_path / "store", crash_at, happens=happens)
    with pytest.raises(ConnectionError):
        await put_tree(crashing, root, kind="model")
    store = DirectoryStore(tmp_path / "store")
    manifests = [
        manifest
        for path in (tmp_path / "store" / "sha256").iterdir()
        if (manifest := decode_manifest(path.read_bytes())) is not None
    ]
    assert bool(manifests) is (happens and crash_at == len(TREE) + 1)
    for manifest in manifests:
        assert [await store.has(entry.digest) for entry in manifest.files] == [True] * len(TREE)
    address = await put_tree(store, root, kind="model")
    await get_tree(store, address, tmp_path / "out")
    assert read(tmp_path / "out") == TREE


@pytest.mark.parametrize("odd", ["link to a file", "link to a directory", "pipe"])
async def test_links_and_special_files_are_not_stored(store: DirectoryStore, tmp_path: Path, odd: str) -> None:
    root = write(tmp_path / "in", {"a": b"1"})
    if odd == "pipe":
        os.mkfifo(root / "odd")
    else:
        (root / "odd").symlink_to("/etc/passwd" if odd == "link to a file" else "/etc")
    with pytest.raises(Rejected, match="odd is no regular file"):
        await put_tree(store, root, kind="x")


@pytest.mark.parametrize("names", [("A", "a"), ("é", "e\u0301"), ("ß", "SS")], ids=["case", "composition", "folding"])
async def test_paths_that_some_file_system_takes_for_one_are_not_stored(
    store: DirectoryStore, tmp_path: Path, names: tuple[str, str]
) -> None:
    root = write(tmp_path / "in", dict.fromkeys(names, b""))
    if len(list(root.iterdir())) < 2:
        pytest.skip("this file system takes them for one")
    with pytest.raises(Rejected, match="one path"):
        await put_tree(store, root, kind="x")


async def test_what_is_no_directory_is_not_found(store: DirectoryStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is no directory"):
        await put_tree(store, tmp_path / "absent", kind="x")


# --- getting ---


async def put_manifest(store: DirectoryStore, *entries: FileEntry, sealed_by: str = "") -> str:
    return await store.put_bytes(msgspec.json.encode(Manifest("evil", list(entries), sealed_by=sealed_by)))


HOSTILE = [
    "", ".", "..", "../x", "a/../x", "a/../../x", "/etc/x", "//x", "a//b", "a/", "./a", "a/.", "a\\..\\x", "a\0b",
    "a\nb", "\x7f", "\ud800", "x" * 256, "ü" * 128, "/".join(["d" * 200] * 6),
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
async def test_a_path_that_could_leave_the_tree_is_refused(store: DirectoryStore, tmp_path: Path, path: str) -> None:
    with pytest.raises(Rejected, match="can't be a path"):
        check_path(path)
    if "\ud800" in path:
        return  # JSON can't hold it
    digest = await store.put_bytes(b"evil")
    address = await put_manifest(store, FileEntry(path, 4, digest))
    with pytest.raises(Rejected, match="can't be a path"):
        await get_tree(store, address, tmp_path / "out" / "deep")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["store"]


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "A"), ("a", "a/b"), ("A/b", "a"), ("x/y", "x/y/z")])
async def test_a_path_that_comes_twice_or_is_also_a_directory_is_refused(
    store: DirectoryStore, tmp_path: Path, paths: tuple[str, str]
) -> None:
    digest = await store.put_bytes(b"evil")
    address = await put_manifest(store, *(FileEntry(path, 4, digest) for path in paths))
    with pytest.raises(Rejected, match=r"one path|both a file and a directory"):
        await get_tree(store, address, tmp_path / "out")


@pytest.mark.parametrize("size", [0, 3, 5, 1 << 60])
async def test_a_wrong_size_is_refused(store: DirectoryStore, tmp_path: Path, size: int) -> None:
    address = await put_manifest(store, FileEntry("a", size, await store.put_bytes(b"1234")))
    with pytest.raises(Damaged, match="has 4 bytes instead of"):
        await get_tree(store, address, tmp_path / "out")


async def test_a_negative_size_is_refused(store: DirectoryStore) -> None:
    address = await put_manifest(store, FileEntry("a", -1, await store.put_bytes(b"1234")))
    with pytest.raises(Rejected, match="negative"):
        await get_manifest(store, address)


async def test_a_missing_file_is_named(store: DirectoryStore, tmp_path: Path) -> None:
    address = await put_manifest(store, FileEntry("sub/a", 4, address_of(b"never stored")))
    with pytest.raises(Damaged, match=r"sub/a .* is not in the store"):
        await get_tree(store, address, tmp_path / "out")


@pytest.mark.parametrize("digest", ["../../../etc/passwd", "", "sha256:xyz"])
async def test_a_digest_that_is_none_is_refused(store: DirectoryStore, tmp_path: Path, digest: str) -> None:
    address = await put_manifest(store, FileEntry("a", 4, digest))
    with pytest.raises(Rejected, match="no artifact address"):
        await get_tree(store, address, tmp_path / "out")


@pytest.mark.parametrize("part", ["model.safetensors", "manifest"])
async def test_a_flipped_bit_anywhere_is_found_and_leaves_no_tree(
    store: DirectoryStore, tmp_path: Path, part: str
) -> None:
    address = await put_tree(store, write(tmp_path / "in", TREE), kind="model")
    broken = address if part == "manifest" else address_of(TREE[part])
    at = tmp_path / "store" / broken.replace(":", "/")
    data = bytearray(at.read_bytes())
    data[len(data) // 2] ^= 1
    at.write_bytes(data)
    with pytest.raises(Damaged, match=f"hashes to.*{broken}"):
        await get_tree(store, address, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "store"]


async def test_a_destination_that_exists_is_left_alone(store: DirectoryStore, tmp_path: Path) -> None:
    address = await put_tree(store, write(tmp_path / "in", TREE), kind="model")
    (tmp_path / "link").symlink_to("nowhere")
    for dest in (write(tmp_path / "full", {"mine": b"1"}), write(tmp_path / "empty", {}), tmp_path / "link"):
        with pytest.raises(Rejected, match="exists"):
            await get_tree(store, address, dest)
    assert read(tmp_path / "full") == {"mine": b"1"}


async def test_a_single_object_is_no_tree(store: DirectoryStore) -> None:
    for data in (b"", b"text", b'{"kind":"x"}', b'{"type":"other","kind":"x"}'):
        address = await store.put_bytes(data)
        with pytest.raises(Rejected, match="no tree but a single file"):
            await get_manifest(store, address)


DEEP = b'"kind":"x","new":' + b"[" * 100_000


@pytest.mark.parametrize("rest", [b"}", b'"kind":1}', b'"kind":"x","files":[{"path":"a"}]}', b'"kind":"x"', DEEP])
async def test_a_broken_manifest_is_rejected(store: DirectoryStore, rest: bytes) -> None:
    address = await store.put_bytes(b'{"type":"llmos.manifest.v1",' + rest)
    with pytest.raises(Rejected, match="the manifest has a fault"):
        await get_manifest(store, address)


async def test_a_cancelled_get_leaves_no_tree_however_often_it_is_cancelled(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = await put_tree(store, write(tmp_path / "in", {"a": b"1"}), kind="x")
    blocked, go_on = threading.Event(), threading.Event()

    def block_then_read(source: BinaryIO, stopped: threading.Event) -> Iterator[bytes]:
        blocked.set()
        assert go_on.wait(10)
        return chunks_of(source, stopped)

    monkeypatch.setattr("llmos.artifacts_directory.chunks_of", block_then_read)
    task = asyncio.create_task(get_tree(store, address, tmp_path / "out"))
    assert await asyncio.to_thread(blocked.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done(), "its thread is still at work"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "store"]


def test_damage_is_still_damage_when_a_peer_reports_it() -> None:
    error = from_problem(Damaged("broken", remedy="Store it again.").problem)
    assert (type(error), error.problem.remedy) == (Damaged, "Store it again.")


# --- sealed trees ---


async def test_a_sealed_tree_shows_nothing_and_opens_with_its_cipher(
    store: DirectoryStore, cipher: StreamingCipher, tmp_path: Path
) -> None:
    secret = {"secret.txt": b"the plain text of it " * 100, "sub/other": b"x"}
    address = await put_tree(store, write(tmp_path / "in", secret), kind="dataset", cipher=cipher)
    assert (await get_manifest(store, address)).sealed_by == "acme/3"
    for stored in (tmp_path / "store" / "sha256").iterdir():
        assert b"the plain text" not in stored.read_bytes()
    await get_tree(store, address, tmp_path / "out", cipher=cipher)
    assert read(tmp_path / "out") == secret
    assert len(list((tmp_path / "out").rglob("*"))) == 3, "no sealed file stays beside the plain ones"


async def test_a_tree_opens_only_with_the_cipher_that_its_manifest_names(
    store: DirectoryStore, cipher: StreamingCipher, tmp_path: Path
) -> None:
    root = write(tmp_path / "in", TREE)
    sealed = await put_tree(store, root, kind="x", cipher=cipher)
    plain = await put_tree(store, root, kind="x")
    other = StreamingCipher("evil/3", new_streaming_keyset())
    for address, given_cipher in ((sealed, None), (sealed, other), (plain, cipher)):
        with pytest.raises(Rejected, match="is sealed by"):
            await get_tree(store, address, tmp_path / "out", cipher=given_cipher)
    impostor = StreamingCipher("acme/3", new_streaming_keyset())
    with pytest.raises(Rejected, match="can't be unsealed"):
        await get_tree(store, sealed, tmp_path / "out", cipher=impostor)
    assert not (tmp_path / "out").exists()


async def test_a_sealed_file_can_not_be_passed_off_as_another(
    store: DirectoryStore, cipher: StreamingCipher, tmp_path: Path
) -> None:
    address = await put_tree(store, write(tmp_path / "in", {"a": b"1", "b": b"2"}), kind="x", cipher=cipher)
    a, b = (await get_manifest(store, address)).files
    swapped = await put_manifest(
        store, FileEntry("a", b.size, b.digest), FileEntry("b", a.size, a.digest), sealed_by="acme/3"
    )
    with pytest.raises(Rejected, match="can't be unsealed"):
        await get_tree(store, swapped, tmp_path / "out", cipher=cipher)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "store"]
