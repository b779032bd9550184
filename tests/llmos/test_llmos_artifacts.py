"""The contract of the artifact store: one suite, run against every backend."""

import asyncio
import contextlib
import hashlib
import io
import os
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmos.artifacts import ArtifactStore, Damaged, open_store
from llmos.errors import Busy, Fatal, NotFound, Rejected
from llmos.ids import new_id
from llmos.testing import s3

MIB = 1 << 20
ABSENT = f"sha256:{'0' * 64}"


@dataclass
class Backend:
    """A store, the URL and variables that open it again, and a way to overwrite an object behind its back."""

    store: ArtifactStore
    url: str
    env: dict[str, str]
    damage: Callable[[str, bytes], None]


@pytest.fixture(scope="session")
def container() -> Iterator[s3.S3Server]:
    if reason := s3.missing_container():
        pytest.skip(reason)
    with s3.s3_container() as server:
        yield server


@pytest.fixture(params=["directory", "s3", pytest.param("container", marks=pytest.mark.docker)])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "directory":
        url = f"file://{tmp_path}/store"

        def overwrite(address: str, data: bytes) -> None:
            (tmp_path / "store" / address.replace(":", "/")).write_bytes(data)

        return Backend(open_store(url), url, {}, overwrite)
    server: s3.S3Server = request.getfixturevalue("s3_server" if request.param == "s3" else "container")
    return s3_backend(server)


def s3_backend(server: s3.S3Server) -> Backend:
    prefix = new_id("contract")
    url = f"s3://contract/{prefix}"

    def overwrite(address: str, data: bytes) -> None:
        from llmos.artifacts_s3 import connect

        key = f"{prefix}/{address.replace(':', '/')}"
        connect(server.env).put_object("contract", key, io.BytesIO(data), len(data))

    return Backend(open_store(url, env=server.env), url, server.env, overwrite)


@pytest.fixture
def store(backend: Backend) -> ArtifactStore:
    return backend.store


@pytest.mark.parametrize("data", [b"", b"x", b"\x00\xff" * 1000], ids=["empty", "a byte", "binary"])
async def test_bytes_come_back_under_their_sha256(store: ArtifactStore, tmp_path: Path, data: bytes) -> None:
    address = await store.put_bytes(data)
    assert address == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert await store.has(address)
    assert await store.size(address) == len(data)
    assert await store.get_bytes(address) == data
    await store.get_file(address, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("size", [0, 5, MIB, 20 * MIB + 3], ids=["empty", "small", "a chunk", "three parts"])
async def test_a_file_comes_back_under_the_address_of_its_bytes(
    store: ArtifactStore, tmp_path: Path, size: int
) -> None:
    data = os.urandom(size)
    (tmp_path / "in").write_bytes(data)
    address = await store.put_file(tmp_path / "in")
    assert address == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert await store.size(address) == size
    (tmp_path / "out").write_text("what was there before")
    await store.get_file(address, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "out").stat().st_nlink == 1
    assert (tmp_path / "in").read_bytes() == data


async def test_what_was_put_is_there_for_whoever_opens_the_store_next(backend: Backend) -> None:
    address = await backend.store.put_bytes(b"kept")
    assert await open_store(backend.url, env=backend.env).get_bytes(address) == b"kept"


async def test_putting_at_once_and_again_gives_one_address(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"same")
    addresses = await asyncio.gather(*(store.put_bytes(b"same") for _ in range(8)), store.put_file(tmp_path / "in"))
    assert len(set(addresses)) == 1
    assert await store.get_bytes(addresses[0]) == b"same"


async def test_an_address_without_an_object_is_not_found(store: ArtifactStore, tmp_path: Path) -> None:
    assert not await store.has(ABSENT)
    for asked in (store.size(ABSENT), store.get_bytes(ABSENT), store.get_file(ABSENT, tmp_path / "out")):
        with pytest.raises(NotFound, match=ABSENT.removeprefix("sha256:")):
            await asked
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:../../etc/passwd", f"SHA256:{'0' * 64}", f"{ABSENT}\n", "0" * 64]
)
async def test_text_that_is_no_address_is_rejected(store: ArtifactStore, tmp_path: Path, text: str) -> None:
    for asked in (
        store.has(text),
        store.size(text),
        store.get_bytes(text),
        store.get_file(text, tmp_path / "out"),
        store.remove(text),
    ):
        with pytest.raises(Rejected, match="no artifact address"):
            await asked


async def test_what_is_removed_is_gone_and_can_be_put_again(store: ArtifactStore) -> None:
    address, other = await store.put_bytes(b"removed"), await store.put_bytes(b"kept")
    for _ in range(2):
        await store.remove(address)
        assert not await store.has(address)
    assert await store.has(other)
    assert await store.put_bytes(b"removed") == address
    assert await store.get_bytes(address) == b"removed"


async def test_an_object_above_the_limit_is_rejected(store: ArtifactStore) -> None:
    address = await store.put_bytes(b"12345")
    assert await store.get_bytes(address, limit=5) == b"12345"
    with pytest.raises(Rejected, match="more than 4 bytes"):
        await store.get_bytes(address, limit=4)


@pytest.mark.parametrize("damaged", [b"", b"the conten", b"the cantent", b"the content and more"])
async def test_a_changed_object_is_found_out_and_repaired_by_putting_it_again(
    backend: Backend, tmp_path: Path, damaged: bytes
) -> None:
    address = await backend.store.put_bytes(b"the content")
    backend.damage(address, damaged)
    (tmp_path / "out").write_text("before")
    with pytest.raises(Damaged, match="hashes to"):
        await backend.store.get_bytes(address)
    with pytest.raises(Damaged, match="hashes to"):
        await backend.store.get_file(address, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "store"}
    assert await backend.store.put_bytes(b"the content") == address
    assert await backend.store.get_bytes(address) == b"the content"


async def test_a_put_or_get_that_is_cancelled_leaves_nothing_in_part(backend: Backend, tmp_path: Path) -> None:
    data = os.urandom(24 * MIB)
    (tmp_path / "in").write_bytes(data)
    address = f"sha256:{hashlib.sha256(data).hexdigest()}"
    for delay in (0.0, 0.02):
        task = asyncio.create_task(backend.store.put_file(tmp_path / "in"))
        await asyncio.sleep(delay)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    if await backend.store.has(address):
        assert await backend.store.size(address) == len(data)
    assert await backend.store.put_file(tmp_path / "in") == address
    getting = asyncio.create_task(backend.store.get_file(address, tmp_path / "out"))
    await asyncio.sleep(0.01)
    getting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await getting
    assert not list(tmp_path.rglob("*.part"))
    await backend.store.get_file(address, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data


async def test_what_is_no_file_is_not_found(store: ArtifactStore, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(NotFound, match="is no file"):
            await store.put_file(path)


@pytest.mark.parametrize("backend", ["directory", "s3"], indirect=True)
async def test_memory_stays_bounded_whatever_the_size(store: ArtifactStore, tmp_path: Path) -> None:
    with (tmp_path / "in").open("wb") as file:
        file.truncate(128 * MIB)
    tracemalloc.start()
    try:
        address = await store.put_file(tmp_path / "in")
        await store.get_file(address, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out").stat().st_size == 128 * MIB


# --- opening a store ---


@pytest.mark.parametrize("url", ["", "/data/artifacts", "file://relative/dir", "s3://", "http://127.0.0.1:9000/llmos"])
def test_a_url_that_names_no_store_is_rejected_with_the_forms(url: str) -> None:
    with pytest.raises(Rejected, match=r"file:///absolute/directory or s3://bucket/prefix"):
        open_store(url)


def test_a_directory_is_made_and_its_name_may_hold_spaces(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}/a%20b/c")
    assert (tmp_path / "a b" / "c" / "sha256").is_dir()


def test_a_directory_that_is_a_file_is_fatal_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(Fatal, match="LLMOS_ARTIFACTS"):
        open_store(f"file://{tmp_path}/taken")


@pytest.mark.parametrize("name", ["LLMOS_S3_URL", "LLMOS_S3_ACCESS_KEY", "LLMOS_S3_SECRET_KEY"])
def test_a_missing_variable_is_named(name: str) -> None:
    env = {**s3.S3Server("http://127.0.0.1:1").env, name: ""}
    with pytest.raises(Rejected, match=f"{name} is not set"):
        open_store("s3://bucket", env=env)


@pytest.mark.parametrize("url", ["127.0.0.1:9000", "s3://bucket", "http://", "http://127.0.0.1:9000/path"])
def test_a_server_url_of_the_wrong_form_is_rejected(url: str) -> None:
    with pytest.raises(Rejected, match="LLMOS_S3_URL is"):
        open_store("s3://bucket", env=s3.S3Server(url).env)


@pytest.mark.parametrize("bucket", ["ab", "Upper", "under_score", "two..dots", "127.0.0.1"])
def test_a_name_that_no_bucket_may_have_is_rejected(bucket: str) -> None:
    with pytest.raises(Rejected, match="can't be a bucket"):
        open_store(f"s3://{bucket}", env=s3.S3Server("http://127.0.0.1:1").env)


@pytest.mark.parametrize("name", ["LLMOS_S3_ACCESS_KEY", "LLMOS_S3_SECRET_KEY"])
def test_wrong_credentials_are_fatal_and_not_quoted(s3_server: s3.S3Server, name: str) -> None:
    with pytest.raises(Fatal, match=r"LLMOS_S3_ACCESS_KEY, LLMOS_S3_SECRET_KEY") as caught:
        open_store("s3://contract", env={**s3_server.env, name: "not-the-one"})
    assert s3.SECRET_KEY not in str(caught.value)


def test_the_bucket_is_made_when_it_is_absent(s3_server: s3.S3Server) -> None:
    from llmos.artifacts_s3 import connect

    client, bucket = connect(s3_server.env), new_id("made")
    assert not client.bucket_exists(bucket)
    open_store(f"s3://{bucket}", env=s3_server.env)
    assert client.bucket_exists(bucket)


def test_a_server_that_does_not_answer_is_busy() -> None:
    import urllib3

    from llmos.artifacts_s3 import S3Store, connect

    client = connect(s3.S3Server("http://127.0.0.1:9").env, http=urllib3.PoolManager(retries=False))
    with pytest.raises(Busy, match="LLMOS_S3_URL"):
        S3Store(client, "bucket")
