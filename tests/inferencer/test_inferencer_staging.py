"""Staged artifacts: proven before each load, brought anew if damaged, removed for room; and whose signature counts."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from llmos.artifacts import ArtifactStore, Damaged, open_store, put_tree
from llmos.bus import Bus
from llmos.contracts.keys import TrustAnswered, TrustRequested
from llmos.contracts.models import ModelVersion, Signature, Statement
from llmos.errors import Busy, LlmosError, NotFound, Rejected
from llmos.sealing import StreamingCipher, new_streaming_keyset
from llmos.signing import SigningKey, encode_trusted, write_trusted
from llmos_inferencer.staging import Staging
from llmos_inferencer.trust import Trust

LOG: Any = structlog.get_logger()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture
def staging(store: ArtifactStore, tmp_path: Path) -> Staging:
    return Staging(store, tmp_path / "models", budget=1 << 30, log=LOG)


async def no_cipher(sealed_by: str) -> Any:
    raise AssertionError(f"nothing is sealed, and {sealed_by} was asked for")


async def stage(staging: Staging, address: str) -> dict[str, bytes]:
    async with staging.staged(address, no_cipher) as root:
        return {path.name: path.read_bytes() for path in root.iterdir()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def kept(tmp_path: Path, address: str) -> Path:
    return tmp_path / "models" / address.removeprefix("sha256:")


@pytest.fixture
async def address(store: ArtifactStore, artifact: Callable[..., Path]) -> str:
    return await put_tree(store, artifact(), kind="onnx")


async def test_a_staged_artifact_serves_again_without_its_store(
    staging: Staging, address: str, artifact: Callable[..., Path], tmp_path: Path
) -> None:
    files = await stage(staging, address)
    assert files == {path.name: path.read_bytes() for path in artifact("again").iterdir()}
    shutil.rmtree(tmp_path / "store")
    assert await stage(staging, address) == files


async def test_a_byte_flipped_in_the_store_is_refused(staging: Staging, address: str, tmp_path: Path) -> None:
    largest = max((tmp_path / "store" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    flip(largest)
    with pytest.raises(Damaged):
        await stage(staging, address)
    assert not kept(tmp_path, address).exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add", "link", "symlink"])
async def test_a_copy_that_was_changed_on_disk_is_never_loaded_but_brought_anew(
    staging: Staging, address: str, tmp_path: Path, damage: str
) -> None:
    files = await stage(staging, address)
    graph = kept(tmp_path, address) / "model.onnx"
    match damage:
        case "flip":
            flip(graph)
        case "truncate":
            graph.write_bytes(graph.read_bytes()[:-1])
        case "remove":
            graph.unlink()
        case "add":
            (graph.parent / "model.onnx.data").write_bytes(b"more")
        case "link":
            os.link(graph, tmp_path / "another-name")
        case "symlink":
            graph.rename(tmp_path / "elsewhere")
            graph.symlink_to(tmp_path / "elsewhere")
    assert await stage(staging, address) == files
    assert graph.lstat().st_nlink == 1
    assert not graph.is_symlink()


async def test_a_changed_copy_without_a_store_to_bring_it_from_is_refused(
    staging: Staging, address: str, tmp_path: Path
) -> None:
    await stage(staging, address)
    flip(kept(tmp_path, address) / "model.onnx")
    shutil.rmtree(tmp_path / "store" / "sha256")
    with pytest.raises(LlmosError):
        await stage(staging, address)


async def test_a_manifest_that_was_changed_on_disk_is_not_believed(
    staging: Staging, address: str, tmp_path: Path
) -> None:
    files = await stage(staging, address)
    flip(kept(tmp_path, address).with_suffix(".json"))
    assert await stage(staging, address) == files


async def test_only_an_onnx_artifact_is_staged(
    staging: Staging, store: ArtifactStore, artifact: Callable[..., Path]
) -> None:
    other = await put_tree(store, artifact(), kind="model")
    with pytest.raises(Rejected, match="kind 'model'"):
        await stage(staging, other)
    with pytest.raises(Rejected, match="a single file"):
        await stage(staging, await store.put_bytes(b"no tree"))
    with pytest.raises(NotFound):
        await stage(staging, f"sha256:{'0' * 64}")


async def test_a_sealed_artifact_leaves_no_plain_file_behind(
    staging: Staging, store: ArtifactStore, artifact: Callable[..., Path], tmp_path: Path
) -> None:
    cipher = StreamingCipher("acme/1", new_streaming_keyset())
    address = await put_tree(store, artifact(), kind="onnx", cipher=cipher)
    asked: list[str] = []

    async def unsealing(sealed_by: str) -> StreamingCipher:
        asked.append(sealed_by)
        return cipher

    for _ in range(2):
        async with staging.staged(address, unsealing) as root:
            assert (root / "model.onnx").read_bytes() == (tmp_path / "artifact" / "model.onnx").read_bytes()
        assert not root.exists()
    assert asked == ["acme/1", "acme/1"]
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".json"]


async def test_plain_files_that_a_killed_process_left_are_removed_at_the_next_start(
    store: ArtifactStore, tmp_path: Path
) -> None:
    left = tmp_path / "models" / "sealed-x" / "files"
    left.mkdir(parents=True)
    Staging(store, tmp_path / "models", budget=0, log=LOG)
    assert not left.parent.exists()


async def test_what_was_used_longest_ago_is_removed_for_room_and_what_is_deployed_never(
    store: ArtifactStore, artifact: Callable[..., Path], tmp_path: Path
) -> None:
    addresses = [await put_tree(store, artifact(f"v{at}", labels=(f"a{at}", f"b{at}")), kind="onnx") for at in range(4)]
    size = sum(path.stat().st_size for path in (tmp_path / "v0").iterdir())
    staging = Staging(store, tmp_path / "models", budget=int(size * 2.5), log=LOG)
    for at, address in enumerate(addresses):
        await stage(staging, address)
        os.utime(kept(tmp_path, address), (at, at))
    await staging.prune([addresses[0]])
    assert [kept(tmp_path, address).exists() for address in addresses] == [True, False, False, True]


# --- trust ---


class Vault:
    """The vault's answer to `trust`, counted."""

    def __init__(self, *keys: SigningKey) -> None:
        self.keys = {key.name: key.public for key in keys}
        self.asked = 0

    async def call(self, service: str, verb: str, request: TrustRequested, *, timeout: float = 5.0) -> TrustAnswered:
        assert (service, verb) == ("vault", "trust")
        self.asked += 1
        return encode_trusted(self.keys)


KEY = SigningKey("vault-1", SigningKey.new_secret())
OTHER = SigningKey("vault-1", SigningKey.new_secret())  # the same name, another key
STATEMENT = Statement("default", "mood", 1, f"sha256:{'1' * 64}")


def signed(signature: Signature | None, **changes: Any) -> ModelVersion:
    fields = {"tenant": "default", "model": "mood", "version": 1, "artifact": STATEMENT.artifact} | changes
    return ModelVersion(task="text-classification", job="j", created_at=0.0, signature=signature, **fields)


def trust(vault: Vault | Bus, tmp_path: Path, file: Path | None = None) -> Trust:
    return Trust(vault, file=file, pinned=tmp_path / "state" / "trusted_keys.json", log=LOG)  # type: ignore[arg-type]


async def test_what_a_trusted_key_signed_is_believed(tmp_path: Path) -> None:
    await trust(Vault(KEY), tmp_path).check(signed(KEY.sign(STATEMENT)))


@pytest.mark.parametrize(
    "changes", [{"tenant": "evil"}, {"model": "other"}, {"version": 2}, {"artifact": f"sha256:{'2' * 64}"}]
)
async def test_a_signature_holds_for_exactly_one_name_version_and_artifact(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(Rejected, match="does not verify"):
        await trust(Vault(KEY), tmp_path).check(signed(KEY.sign(STATEMENT), **changes))


async def test_a_version_without_a_signature_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="not signed"):
        await trust(Vault(KEY), tmp_path).check(signed(None))


async def test_the_vault_is_asked_once_and_its_keys_are_pinned(tmp_path: Path) -> None:
    vault = Vault(KEY)
    await trust(vault, tmp_path).check(signed(KEY.sign(STATEMENT)))
    await trust(vault, tmp_path).check(signed(KEY.sign(STATEMENT)))
    assert vault.asked == 1
    usurper = Vault(OTHER)
    with pytest.raises(Rejected, match="does not verify"):
        await trust(usurper, tmp_path).check(signed(OTHER.sign(STATEMENT)))
    assert usurper.asked == 0


async def test_with_a_trust_file_the_vault_is_never_asked(tmp_path: Path) -> None:
    file, vault = tmp_path / "trusted.json", Vault(OTHER)
    checks = trust(vault, tmp_path, file)
    with pytest.raises(Busy, match="not there"):  # the vault writes it when it starts
        await checks.check(signed(KEY.sign(STATEMENT)))
    write_trusted(file, {KEY.name: KEY.public})
    await checks.check(signed(KEY.sign(STATEMENT)))
    with pytest.raises(Rejected, match="does not verify"):
        await checks.check(signed(OTHER.sign(STATEMENT)))
    assert vault.asked == 0
    write_trusted(file, {OTHER.name: OTHER.public})  # the operator's change counts at once
    await checks.check(signed(OTHER.sign(STATEMENT)))
