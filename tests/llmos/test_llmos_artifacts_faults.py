"""The durability contract, broken both ways: a write that failed and was lost, and one that failed but happened."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

import pytest
import urllib3
from urllib3.exceptions import ProtocolError

from llmos import artifacts_directory
from llmos.artifacts_content import address_of
from llmos.artifacts_directory import DirectoryStore
from llmos.artifacts_s3 import S3Store, connect, part_size
from llmos.errors import Busy, Fatal
from llmos.ids import new_id
from llmos.testing.s3 import S3Server

MIB = 1 << 20
DATA = b"what must not be lost"
ADDRESS = address_of(DATA)

# --- a directory ---


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def objects(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "store" / "sha256").iterdir())


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


async def test_a_put_returns_after_file_and_directory_are_synced(
    directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sync_file, replace, sync = artifacts_directory._sync_file, Path.replace, artifacts_directory._sync

    def spy(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def spied(*args: Any) -> Any:
            seen.append(name)
            return real(*args)

        return spied

    monkeypatch.setattr(artifacts_directory, "_sync_file", spy("sync the file", sync_file))
    monkeypatch.setattr(Path, "replace", spy("rename", replace))
    monkeypatch.setattr(artifacts_directory, "_sync", spy("sync the directory", sync))
    await directory.put_bytes(DATA)
    assert seen == ["sync the file", "rename", "sync the directory"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_busy_and_leaves_nothing_behind(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    address = await directory.put_bytes(b"there before")

    def half(chunks: Iterator[bytes], sink: BinaryIO) -> str:
        sink.write(next(iter(chunks))[:5])
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(artifacts_directory, "write_chunks", half)
        with pytest.raises(Busy, match="no space is left"):
            await directory.put_bytes(DATA)
        with pytest.raises(Busy, match="no space is left"):
            await directory.get_file(address, tmp_path / "out")
    assert objects(tmp_path) == [address.removeprefix("sha256:")]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert await directory.put_bytes(DATA) == ADDRESS


async def test_a_write_that_failed_and_was_lost_leaves_no_object(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(artifacts_directory, "_sync_file", failing(errno.EIO))
        with pytest.raises(OSError, match="Input/output error"):
            await directory.put_bytes(DATA)
    assert objects(tmp_path) == []
    assert await directory.put_bytes(DATA) == ADDRESS
    assert await directory.get_bytes(ADDRESS) == DATA


async def test_a_write_that_failed_but_happened_leaves_the_whole_object(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(artifacts_directory, "_sync", failing(errno.EIO))
        with pytest.raises(OSError, match="Input/output error"):
            await directory.put_bytes(DATA)
    assert await directory.get_bytes(ADDRESS) == DATA
    assert await directory.put_bytes(DATA) == ADDRESS
    assert objects(tmp_path) == [ADDRESS.removeprefix("sha256:")]


PUT = """
import asyncio, sys
from pathlib import Path
from llmos.artifacts_directory import DirectoryStore
asyncio.run(DirectoryStore(Path(sys.argv[1])).put_file(Path(sys.argv[2])))
"""


def test_a_killed_put_leaves_no_object_and_its_rest_is_removed_a_day_later(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless")
    process = subprocess.Popen([sys.executable, "-c", PUT, str(tmp_path / "store"), str(tmp_path / "endless")])
    with (tmp_path / "endless").open("wb") as pipe:
        pipe.write(bytes(3 * MIB))
        pipe.flush()
        deadline = time.monotonic() + 30
        while not (parts := [*tmp_path.rglob("*.part")]) or parts[0].stat().st_size < MIB:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert objects(tmp_path) == [parts[0].name]
    DirectoryStore(tmp_path / "store")
    assert objects(tmp_path) == [parts[0].name], "another process may still be writing it"
    os.utime(parts[0], (0, time.time() - 25 * 3600))
    DirectoryStore(tmp_path / "store")
    assert objects(tmp_path) == []


# --- S3 ---


class FaultyHttp(urllib3.PoolManager):
    """Connections to a real server. `fault` sees each request first: `lost` drops it, `happened` drops its answer."""

    def __init__(self) -> None:
        super().__init__(retries=False)
        self.fault: Callable[[str, str], str] = lambda method, url: ""
        self.breaks = 0  # so many downloads break off after their first chunk
        self.ranges = True

    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> Any:  # type: ignore[override]
        fault = self.fault(method, url)
        if fault == "lost":
            raise ProtocolError("cut before the request")
        response: Any = super().urlopen(method, url, redirect, **options)
        if fault == "happened":
            response.drain_conn()
            raise ProtocolError("cut before the answer")
        if method == "GET":
            if self.breaks:
                self.breaks -= 1
                response.stream = self._breaking(response.stream)
            if response.status == 206 and not self.ranges:
                response.status = 200
        return response

    def _breaking(self, stream: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
        def broken(*args: Any, **options: Any) -> Iterator[bytes]:
            yield next(stream(*args, **options))
            raise ProtocolError("cut in the middle")

        return broken


@pytest.fixture
def http() -> FaultyHttp:
    return FaultyHttp()


@pytest.fixture
def bucket(s3_server: S3Server, http: FaultyHttp) -> S3Store:
    return S3Store(connect(s3_server.env, http=http), "faults", prefix=new_id("faults"))


def once(fault: str, *, method: str, part: str = "", after: int = 0) -> Callable[[str, str], str]:
    """A fault for one request of this method whose URL holds `part`, after `after` others of the kind."""
    left = [after + 1]

    def decide(got: str, url: str) -> str:
        if got != method or part not in url:
            return ""
        left[0] -= 1
        return fault if left[0] == 0 else ""

    return decide


@pytest.mark.parametrize(("fault", "there"), [("lost", False), ("happened", True)])
async def test_an_upload_whose_request_or_answer_is_lost_can_be_repeated(
    bucket: S3Store, http: FaultyHttp, fault: str, there: bool
) -> None:
    http.fault = once(fault, method="PUT")
    with pytest.raises(Busy, match="can't be reached"):
        await bucket.put_bytes(DATA)
    assert await bucket.has(ADDRESS) is there
    assert await bucket.put_bytes(DATA) == ADDRESS
    assert await bucket.get_bytes(ADDRESS) == DATA


@pytest.mark.parametrize(
    ("fault", "there"),
    [
        (once("lost", method="POST", part="uploads"), False),
        (once("lost", method="PUT", part="partNumber", after=1), False),
        (once("happened", method="PUT", part="partNumber", after=2), False),
        (once("lost", method="POST", part="uploadId"), False),
        (once("happened", method="POST", part="uploadId"), True),
    ],
    ids=["start lost", "part lost", "part happened", "end lost", "end happened"],
)
async def test_an_upload_in_parts_shows_the_whole_object_or_none(
    bucket: S3Store, http: FaultyHttp, tmp_path: Path, fault: Callable[[str, str], str], there: bool
) -> None:
    data = os.urandom(17 * MIB)
    (tmp_path / "in").write_bytes(data)
    http.fault = fault
    with pytest.raises(Busy):
        await bucket.put_file(tmp_path / "in")
    assert await bucket.has(address_of(data)) is there
    assert await bucket.put_file(tmp_path / "in") == address_of(data)
    await bucket.get_file(address_of(data), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data


async def test_a_large_object_that_is_there_is_not_sent_again(
    bucket: S3Store, http: FaultyHttp, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(bytes(9 * MIB))
    address = await bucket.put_file(tmp_path / "in")
    http.fault = lambda method, url: "lost" if method in ("PUT", "POST") else ""
    assert await bucket.put_file(tmp_path / "in") == address


@pytest.mark.parametrize("size", [MIB, 17 * MIB])
async def test_a_file_that_changes_while_it_is_stored_is_not_stored_under_a_wrong_address(
    bucket: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = tmp_path / "in"
    path.write_bytes(bytes(size))
    address = address_of(bytes(size))
    real = bucket._put

    def change_then_put(*args: Any) -> None:
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"x")
        real(*args)

    monkeypatch.setattr(bucket, "_put", change_then_put)
    with pytest.raises(Busy, match="changed while it was being stored"):
        await bucket.put_file(path)
    assert not await bucket.has(address)


async def test_a_download_that_breaks_off_goes_on_where_it_was(
    bucket: S3Store, http: FaultyHttp, tmp_path: Path
) -> None:
    data = os.urandom(5 * MIB)
    address = await bucket.put_bytes(data)
    http.breaks = 3
    await bucket.get_file(address, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    http.breaks = 3
    assert await bucket.get_bytes(address) == data


async def test_a_download_that_keeps_breaking_off_is_busy_and_leaves_nothing(
    bucket: S3Store, http: FaultyHttp, tmp_path: Path
) -> None:
    address = await bucket.put_bytes(os.urandom(6 * MIB))
    http.breaks = 4
    with pytest.raises(Busy):
        await bucket.get_file(address, tmp_path / "out")
    http.breaks, http.ranges = 1, False
    with pytest.raises(Busy, match="can't be resumed"):
        await bucket.get_file(address, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


async def test_a_full_disk_during_a_download_is_busy_and_leaves_nothing(
    bucket: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = await bucket.put_bytes(DATA)
    monkeypatch.setattr("llmos.artifacts_s3.write_chunks", failing(errno.ENOSPC))
    with pytest.raises(Busy, match="no space is left"):
        await bucket.get_file(address, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, 80_000 * MIB, 80_000 * MIB + 1, 5 << 40])
def test_no_object_needs_more_than_ten_thousand_parts(size: int) -> None:
    assert part_size(size) * 10_000 >= size
    assert 8 * MIB <= part_size(size) <= max(8 * MIB, size // 10_000 + MIB)


def test_a_server_that_speaks_no_s3_is_fatal_with_the_remedy() -> None:
    class Web(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>no such page</html>")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Web) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(Fatal, match=r"no S3 server.*LLMOS_S3_URL"):
            S3Store(connect(S3Server(f"http://127.0.0.1:{server.server_port}").env), "bucket")
        server.shutdown()
