"""References: what a job spec may name, how it is read, and that fetching brings a private, whole copy or nothing."""

import asyncio
import io
import os
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.artifacts import Cipher, open_store, put_tree
from llmos.artifacts_directory import DirectoryStore
from llmos.artifacts_s3 import connect
from llmos.contracts.references import Reference, parse
from llmos.errors import Busy, NotFound, Rejected
from llmos.ids import new_id
from llmos.references import fetch
from llmos.sealing import StreamingCipher, new_streaming_keyset
from llmos.testing.s3 import S3Server

DIGEST = "0123456789abcdef" * 4

# --- reading ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file:///data/train.jsonl", Reference("file", "/data/train.jsonl")),
        ("file:///a%20b/%C3%BC", Reference("file", "/a b/ü")),
        ("file:///a b?#", Reference("file", "/a b?#")),
        ("file://localhost/data", Reference("file", "/data")),
        ("s3://bucket/a/b.jsonl", Reference("s3", "bucket", key="a/b.jsonl")),
        ("s3://my.bucket-1/dir/", Reference("s3", "my.bucket-1", key="dir/")),
        (f"artifact:sha256:{DIGEST}", Reference("artifact", f"sha256:{DIGEST}")),
        ("hf:org/name@v1.0", Reference("hf", "org/name", revision="v1.0")),
        ("hf:org/name@refs/pr/1", Reference("hf", "org/name", revision="refs/pr/1")),
        ("hf:org/name", Reference("hf", "org/name", revision="main")),
        ("hf:bert-base-uncased", Reference("hf", "bert-base-uncased", revision="main")),
        ("model:reviews", Reference("model", "reviews")),
        ("model:reviews@12", Reference("model", "reviews", version=12)),
    ],
)
def test_a_reference_is_read_and_written_back(text: str, expected: Reference) -> None:
    assert parse(text) == expected
    assert parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("/data/train.jsonl", "file:///data/train.jsonl"),
        ("/a b", "file:///a%20b"),
        ("./data/train.jsonl", "file:///…/data/train.jsonl"),
        ("train.csv", "file:///…/train.csv"),
        ("file:data/train.csv", "file:///data/train.csv"),
        ("file://data/train.csv", "file:///data/train.csv"),
        ("file:/data/train.csv", "file:///data/train.csv"),
        ("s3:bucket/key", "s3://bucket/key"),
        ("s3:/bucket/key", "s3://bucket/key"),
        ("s3://bucket", "s3://bucket/key"),
        ("org/name", "hf:org/name"),
        ("hf://org/name", "hf:org/name"),
        ("https://huggingface.co/org/name/tree/main", "hf:org/name"),
        ("huggingface:org/name", "hf:org/name"),
        (DIGEST, f"artifact:sha256:{DIGEST}"),
        (f"sha256:{DIGEST}", f"artifact:sha256:{DIGEST}"),
        (f"artifact:{DIGEST}", f"artifact:sha256:{DIGEST}"),
        (f"artifact://sha256:{DIGEST.upper()}", f"artifact:sha256:{DIGEST}"),
        (f"artefact:sha256:{DIGEST}", f"artifact:sha256:{DIGEST}"),
        ("model:reviews:3", "model:reviews@3"),
        ("model://reviews@v3", "model:reviews@3"),
        ("models:reviews@3", "model:reviews@3"),
        ("FILE:///data", "file:///data"),
    ],
)
def test_a_near_miss_is_rejected_with_what_was_probably_meant(text: str, meant: str) -> None:
    with pytest.raises(Rejected, match="is no reference") as caught:
        parse(text)
    assert meant in caught.value.problem.remedy
    assert "…" in meant or parse(meant)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", " file:///a", "file:///a\n", "file:///a%00b", "file:////a", "ftp://host/file", "http://host/file",
        "s3://UPPER/key", "s3://a..b/key", "s3:///key", "s3://bucket/../key", "s3://bucket/.", "hf:", "hf:a/b/c",
        "hf:../x", "hf:org/na..me", "hf:org/name@", "hf:org/name@a..b", "hf:org/name@-x", "model:", "model:a.b",
        "model:a@0", "model:a@-1", "model:a@", "model:a@1e3", "artifact:", "artifact:sha256:123", "{}", "fiel:x",
        "pickle:x",
    ],
)  # fmt: skip
def test_anything_else_is_rejected_with_a_form_that_works(text: str) -> None:
    with pytest.raises(Rejected, match="is no reference") as caught:
        parse(text)
    assert any(
        form in caught.value.problem.remedy for form in ("file:///", "s3://", "hf:", "model:", "artifact:", "out of")
    )
    assert not text or f"mean {text}?" not in caught.value.problem.remedy


@given(st.text(max_size=40) | st.from_regex(r"(file|s3|hf|model|artifact):[ -~]{0,30}", fullmatch=True))
def test_whatever_is_read_survives_being_written_and_whatever_is_not_is_rejected(text: str) -> None:
    try:
        reference = parse(text)
    except Rejected as error:
        assert error.problem.remedy
        return
    assert parse(str(reference)) == reference
    assert msgspec.json.decode(msgspec.json.encode(reference), type=Reference) == reference


# --- fetching ---


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a file and a directory, and a secret beside it."""
    for path in ("root/train.jsonl", "root/base/config.json", "root/base/sub/x.txt", "outside/secret"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    return tmp_path / "root"


def read(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


async def test_a_file_beneath_a_root_is_copied(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    reference = parse(f"file://{root}/train.jsonl")
    got = await fetch(reference, tmp_path / "out", store=store, file_roots=[tmp_path / "other", root])
    assert got == tmp_path / "out" / "train.jsonl"
    assert got.read_text() == "root/train.jsonl"
    (root / "train.jsonl").write_text("changed later")
    assert got.read_text() == "root/train.jsonl"
    assert got.stat().st_nlink == 1


async def test_a_directory_beneath_a_root_is_copied(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    (root / "base" / "weights").symlink_to(root / "train.jsonl")
    got = await fetch(parse(f"file://{root}/base"), tmp_path / "out", store=store, file_roots=[root])
    assert got == tmp_path / "out"
    assert read(got) == {
        "config.json": "root/base/config.json",
        "sub/x.txt": "root/base/sub/x.txt",
        "weights": "root/train.jsonl",
    }
    assert not any(path.is_symlink() for path in got.rglob("*"))


@pytest.mark.parametrize(
    "path", ["../outside/secret", "base/../../outside", "way-out/secret", "link", "../absent", "../rootless"]
)
async def test_a_file_outside_every_root_is_refused_however_it_is_named(
    store: DirectoryStore, root: Path, tmp_path: Path, path: str
) -> None:
    (root / "way-out").symlink_to(tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside" / "secret")
    (tmp_path / "rootless").write_text("a root's name is a prefix of its own")
    for roots in ([root], []):
        with pytest.raises(Rejected, match="LLMOS_FILE_ROOTS") as caught:
            await fetch(parse(f"file://{root}/{path}"), tmp_path / "out", store=store, file_roots=roots)
        assert not isinstance(caught.value, NotFound), "whether it exists is not told"
    assert not (tmp_path / "out").exists()


async def test_a_link_that_leads_out_of_a_directory_is_refused(
    store: DirectoryStore, root: Path, tmp_path: Path
) -> None:
    (root / "base" / "stolen").symlink_to(tmp_path / "outside" / "secret")
    with pytest.raises(Rejected, match="LLMOS_FILE_ROOTS"):
        await fetch(parse(f"file://{root}/base"), tmp_path / "out", store=store, file_roots=[root])
    (root / "base" / "stolen").unlink()
    (root / "base" / "stolen").symlink_to(root, target_is_directory=True)
    with pytest.raises(Rejected, match="links to a directory"):
        await fetch(parse(f"file://{root}/base"), tmp_path / "out", store=store, file_roots=[root])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "root", "store"]


async def test_a_pipe_is_refused_rather_than_waited_for(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "pipe")
    async with asyncio.timeout(10):
        with pytest.raises(Rejected, match="no regular file"):
            await fetch(parse(f"file://{root}/pipe"), tmp_path / "out", store=store, file_roots=[root])


async def test_a_file_that_is_absent_is_not_found(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file"):
        await fetch(parse(f"file://{root}/absent"), tmp_path / "out", store=store, file_roots=[root])


async def test_a_destination_that_exists_is_left_alone(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(Rejected, match="exists"):
        await fetch(parse(f"file://{root}/base"), tmp_path / "out", store=store, file_roots=[root])


async def test_an_artifact_is_a_tree_or_a_single_object(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    tree = await put_tree(store, root, kind="any")
    got = await fetch(parse(f"artifact:{tree}"), tmp_path / "tree", store=store, file_roots=[])
    assert (got, read(got)) == (tmp_path / "tree", read(root))
    for number, data in enumerate((b"rows", bytes(17 << 20))):  # the second is larger than any manifest
        address = await store.put_bytes(data)
        got = await fetch(parse(f"artifact:{address}"), tmp_path / str(number), store=store, file_roots=[])
        assert got == tmp_path / str(number) / address.removeprefix("sha256:")
        assert got.read_bytes() == data


async def test_an_artifact_that_is_absent_is_not_found(store: DirectoryStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=DIGEST):
        await fetch(parse(f"artifact:sha256:{DIGEST}"), tmp_path / "out", store=store, file_roots=[])


async def test_a_model_is_looked_up_by_name_and_version(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    tree = await put_tree(store, root, kind="model")
    asked = []

    async def models(name: str, version: int | None) -> str:
        asked.append((name, version))
        return tree

    for text in ("model:reviews", "model:reviews@2"):
        await fetch(parse(text), tmp_path / text, store=store, file_roots=[], models=models)
        assert read(tmp_path / text) == read(root)
    assert asked == [("reviews", None), ("reviews", 2)]
    with pytest.raises(Rejected, match="can't be used here"):
        await fetch(parse("model:reviews"), tmp_path / "out", store=store, file_roots=[])


async def test_a_sealed_artifact_needs_its_cipher(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    cipher = StreamingCipher("acme/1", new_streaming_keyset())
    tree = await put_tree(store, root, kind="any", cipher=cipher)

    async def ciphers(sealed_by: str) -> Cipher:
        assert sealed_by == "acme/1"
        return cipher

    with pytest.raises(Rejected, match="is sealed by acme/1"):
        await fetch(parse(f"artifact:{tree}"), tmp_path / "out", store=store, file_roots=[])
    got = await fetch(parse(f"artifact:{tree}"), tmp_path / "out", store=store, file_roots=[], ciphers=ciphers)
    assert read(got) == read(root)


# --- s3 ---


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    name = new_id("data")
    client = connect(s3_server.env)
    client.make_bucket(name)
    for key in ("train.jsonl", "base/config.json", "base/sub/x.txt"):
        client.put_object(name, key, io.BytesIO(key.encode()), len(key))
    return name


async def test_an_object_or_all_below_a_prefix_are_brought_from_s3(
    s3_server: S3Server, bucket: str, store: DirectoryStore, tmp_path: Path
) -> None:
    for text, expected in (
        ("train.jsonl", {"train.jsonl": "train.jsonl"}),
        ("base/config.json", {"config.json": "base/config.json"}),
        ("base", {"config.json": "base/config.json", "sub/x.txt": "base/sub/x.txt"}),
        ("base/", {"config.json": "base/config.json", "sub/x.txt": "base/sub/x.txt"}),
    ):
        dest = tmp_path / new_id()
        got = await fetch(parse(f"s3://{bucket}/{text}"), dest, store=store, file_roots=[], env=s3_server.env)
        assert read(dest) == expected
        assert got == (dest if text.startswith("base") and "json" not in text else dest / Path(text).name)


@pytest.mark.parametrize("key", ["absent", "absent/", "train.jso", "bas"])
async def test_an_object_that_is_absent_is_not_found(
    s3_server: S3Server, bucket: str, store: DirectoryStore, tmp_path: Path, key: str
) -> None:
    with pytest.raises(NotFound, match="there is no object"):
        await fetch(parse(f"s3://{bucket}/{key}"), tmp_path / "out", store=store, file_roots=[], env=s3_server.env)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


async def test_what_the_credentials_may_not_read_is_the_senders_fault(
    s3_server: S3Server, bucket: str, store: DirectoryStore, tmp_path: Path
) -> None:
    env = {**s3_server.env, "LLMOS_S3_SECRET_KEY": "wrong"}
    for name, variables in ((bucket, env), ("no-such-bucket", s3_server.env)):
        with pytest.raises(Rejected):
            await fetch(parse(f"s3://{name}/x"), tmp_path / "out", store=store, file_roots=[], env=variables)
    with pytest.raises(Rejected, match="LLMOS_S3_URL is not set"):
        await fetch(parse(f"s3://{bucket}/x"), tmp_path / "out", store=store, file_roots=[], env={})


async def test_the_artifact_stores_own_objects_are_not_read_as_s3(s3_server: S3Server, tmp_path: Path) -> None:
    bucket = new_id("own")
    store = open_store(f"s3://{bucket}/all/artifacts", env=s3_server.env)
    client = connect(s3_server.env)
    client.put_object(bucket, "all/data/train.csv", io.BytesIO(b"a,b"), 3)
    address = await store.put_bytes(b"somebody's")
    for key in ("all/", "all", "all/artifacts/sha256/", f"all/artifacts/{address.replace(':', '/')}"):
        with pytest.raises(Rejected, match="belongs to the artifact store"):
            await fetch(parse(f"s3://{bucket}/{key}"), tmp_path / "out", store=store, file_roots=[], env=s3_server.env)
    reference = parse(f"s3://{bucket}/all/data/train.csv")
    got = await fetch(reference, tmp_path / "out", store=store, file_roots=[], env=s3_server.env)
    assert got.read_text() == "a,b"


# --- the hub ---

COMMIT = "c" * 40
REPOSITORY = {
    "config.json": b"{}",
    "model.safetensors": os.urandom(3 << 20),
    "vocab.txt": b"[PAD]",
    "spiece.model": b"x",
    "pytorch_model.bin": b"\x80\x04",
    "modeling_evil.py": b"import os",
    "onnx/config.json": b"{}",
}


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub's HTTP interface as a download needs."""

    asked: ClassVar[list[str]] = []
    streaming: ClassVar[Event] = Event()
    hung_up: ClassVar[Event] = Event()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path == "/api/models/org/gated/revision/main":
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif path in ("/api/models/org/name/revision/main", "/api/models/org/endless/revision/main"):
            self._answer(200, msgspec.json.encode({"id": "org/name", "sha": COMMIT, "siblings": []}))
        elif path == f"/api/models/org/endless/tree/{COMMIT}":
            file = {"type": "file", "path": "model.safetensors", "size": 1 << 32, "oid": "endless"}
            self._answer(200, msgspec.json.encode([file]))
        elif path == f"/org/endless/resolve/{COMMIT}/model.safetensors" and not self.streaming.is_set():
            headers = {"ETag": '"endless"', "X-Repo-Commit": COMMIT, "Content-Length": str(1 << 32)}
            self._answer(200, bytes(1 << 20), headers)
            deadline = time.monotonic() + 15  # so that a download that can't be stopped fails the test and ends
            try:
                while self.command == "GET" and time.monotonic() < deadline:
                    self.wfile.write(bytes(1 << 16))
                    self.streaming.set()
                    time.sleep(0.01)
            except ConnectionError:
                self.hung_up.set()
        elif path == f"/api/models/org/name/tree/{COMMIT}":
            files = [{"type": "file", "path": name, "size": len(REPOSITORY[name]), "oid": name} for name in REPOSITORY]
            self._answer(200, msgspec.json.encode(files))
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
            self._answer(200, REPOSITORY[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
        else:
            code = "RevisionNotFound" if path.startswith("/api/models/org/name/") else "RepoNotFound"
            self._answer(404, b"", {"X-Error-Code": code})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables that lead to a hub on this machine, with an empty cache."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_CACHE": str(tmp_path / "cache")}
        server.shutdown()


async def test_only_what_no_program_runs_from_is_brought_from_the_hub(
    hub: dict[str, str], store: DirectoryStore, tmp_path: Path
) -> None:
    Hub.asked.clear()
    got = await fetch(parse("hf:org/name"), tmp_path / "out", store=store, file_roots=[], env=hub)
    assert got == tmp_path / "out"
    assert {path.name: path.read_bytes() for path in got.iterdir()} == {
        name: REPOSITORY[name] for name in ("config.json", "model.safetensors", "vocab.txt", "spiece.model")
    }
    for path in got.iterdir():
        assert not path.is_symlink()
        assert path.stat().st_nlink == 1
    assert not any("pytorch_model.bin" in path or "evil" in path for path in Hub.asked)


async def test_what_is_in_the_cache_is_brought_without_the_hub_but_nothing_else_of_it(
    hub: dict[str, str], store: DirectoryStore, tmp_path: Path
) -> None:
    await fetch(parse("hf:org/name"), tmp_path / "one", store=store, file_roots=[], env=hub)
    (tmp_path / "cache" / "models--org--name" / "snapshots" / COMMIT / "pytorch_model.bin").write_bytes(b"\x80\x04")
    away = {**hub, "HF_ENDPOINT": "http://127.0.0.1:9"}
    await fetch(parse("hf:org/name"), tmp_path / "two", store=store, file_roots=[], env=away)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "config.json", "model.safetensors", "spiece.model", "vocab.txt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error", "remedy"),
    [
        ("hf:org/absent", NotFound, "HF_TOKEN"),
        ("hf:org/name@absent", NotFound, "revision"),
        ("hf:org/gated", Rejected, "Accept its terms"),
        ("hf:org/two--dashes", Rejected, "can.t be downloaded"),
    ],
)
async def test_what_the_hub_does_not_give_is_said_with_the_remedy(
    hub: dict[str, str], store: DirectoryStore, tmp_path: Path, text: str, error: type[Rejected], remedy: str
) -> None:
    with pytest.raises(error, match=remedy):
        await fetch(parse(text), tmp_path / "out", store=store, file_roots=[], env=hub)
    assert not (tmp_path / "out").exists()


async def test_without_a_hub_the_remedy_names_other_ways(store: DirectoryStore, tmp_path: Path) -> None:
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path / "cache")}
    with pytest.raises(Busy, match=r"HF_ENDPOINT, or download the model and name it as file:// or s3://"):
        await fetch(parse("hf:org/name"), tmp_path / "out", store=store, file_roots=[], env=env)
    assert not (tmp_path / "out").exists()


async def test_a_download_from_the_hub_stops_when_it_is_cancelled(
    hub: dict[str, str], store: DirectoryStore, tmp_path: Path
) -> None:
    Hub.streaming.clear()
    Hub.hung_up.clear()
    task = asyncio.create_task(fetch(parse("hf:org/endless"), tmp_path / "out", store=store, file_roots=[], env=hub))
    assert await asyncio.to_thread(Hub.streaming.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(Hub.hung_up.wait, 5), "it downloaded on until the hub ended it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "store"]
