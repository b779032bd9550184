"""The vault on a real nats-server: what it answers over the bus, and what the history holds afterwards."""

import asyncio
import base64
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import IO, Any

import pytest
from msgspec import Struct
from tink.proto import aes_gcm_hkdf_streaming_pb2, tink_pb2

from llmos import keyring
from llmos.bus import Bus, Heard
from llmos.clock import SystemClock
from llmos.contracts import subjects
from llmos.contracts.deployments import ReplicaAssigned
from llmos.contracts.keys import (
    KeyCreated,
    KeyDenied,
    KeyReleased,
    KeyRequested,
    ManifestSigned,
    RotateAnswered,
    RotateRequested,
    SignAnswered,
    SignRequested,
    TrustAnswered,
    TrustRequested,
)
from llmos.contracts.models import ModelRecord, ModelVersion, Statement
from llmos.contracts.tasks import Kind, TaskPlaced, TaskSucceeded
from llmos.errors import Busy, Fatal, NotFound, Rejected
from llmos.keyring import KeyRing
from llmos.natsserver import NatsServer
from llmos.sealing import Recipient, RootKey
from llmos.service import Context, running
from llmos.signing import read_trusted, verify
from llmos_vault.config import VaultConfig
from llmos_vault.history import History
from llmos_vault.keystore import KeyStore
from llmos_vault.rootkey import read_root
from llmos_vault.service import serve
from llmos_vault.state import State

ARTIFACT = "sha256:" + "0" * 64
Vault = Callable[[], AbstractAsyncContextManager[Context[VaultConfig]]]


@pytest.fixture
def config(nats_url: str, tmp_path: Path) -> VaultConfig:
    return VaultConfig(nats_url=nats_url, node="v1", data_dir=tmp_path / "data")


@pytest.fixture
def vault(config: VaultConfig) -> Vault:
    return lambda: running("vault", config, serve)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "CALL_TIMEOUT_S", 2.0)


async def place(bus: Bus, kind: Kind, *, tenant: str = "acme", node: str = "n1", job: str = "job") -> str:
    await bus.emit(TaskPlaced(f"{job}-{kind}", job, tenant, kind, 1, 1, node))
    return f"{job}-{kind}"


async def assign(bus: Bus, *, node: str = "n1", deployment: str = "tickets", private: bool = True) -> None:
    version = ModelVersion("tickets", 1, "acme", "text-classification", ARTIFACT, "job", 0.0, private=private)
    replica = ReplicaAssigned(deployment, node, 1, "present", version, "job", "acme")
    await bus.publish(subjects.deploy(node, deployment), replica, type="llmos.replica.assigned.v1")


async def stored(bus: Bus, stream: str) -> list[Heard]:
    """Every message of a stream."""
    found: list[Heard] = []
    if await bus.last_sequence(stream, ">"):
        async for heard in bus.follow(stream):
            found.append(heard)
            if heard.pending == 0:
                break
    return found


async def history(bus: Bus, *kinds: type[Struct]) -> list[Struct]:
    events = [heard.event() for heard in await stored(bus, "EVENTS")]
    return [event for event in events if isinstance(event, kinds)]


async def test_a_trainer_seals_and_an_exporter_unseals_what_the_history_assigns_to_them(
    vault: Vault, bus: Bus, tmp_path: Path
) -> None:
    train, export = await place(bus, "train"), await place(bus, "export", node="n2")
    (tmp_path / "plain").write_bytes(b"weights" * 100)
    async with vault():
        sealing = await KeyRing(bus, "trainer/n1").encrypting("acme", train)
        sealing.seal(tmp_path / "plain", tmp_path / "sealed", b"model.safetensors")
        opening = await KeyRing(bus, "exporter/n2").decrypting(sealing.name, export)
        opening.unseal(tmp_path / "sealed", tmp_path / "again", b"model.safetensors")
    assert sealing.name == "acme/1"
    assert (tmp_path / "again").read_bytes() == b"weights" * 100
    assert await history(bus, KeyCreated, KeyReleased, KeyDenied) == [
        KeyCreated("acme", 1),
        KeyReleased("acme", 1, "trainer/n1", "encrypt", train),
        KeyReleased("acme", 1, "exporter/n2", "decrypt", export),
    ]


async def test_no_decision_rests_on_a_history_that_is_read_late(
    vault: Vault, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = Bus.follow

    async def late(self: Bus, stream: str, *args: Any, **options: Any) -> AsyncIterator[Heard]:
        async for heard in follow(self, stream, *args, **options):
            await asyncio.sleep(0.2)
            yield heard

    monkeypatch.setattr(Bus, "follow", late)
    first = await place(bus, "train", job="first")
    async with vault():
        await KeyRing(bus, "trainer/n1").encrypting("acme", first)
        task = await place(bus, "train")
        await KeyRing(bus, "trainer/n1").encrypting("acme", task)
        await bus.emit(TaskSucceeded(task, "job", "acme", "train", 1, "n1"))
        with pytest.raises(Rejected, match="has ended"):
            await KeyRing(bus, "trainer/n1").encrypting("acme", task)
        await assign(bus)
        await KeyRing(bus, "inferencer/n1").decrypting("acme/1", "tickets")


async def test_a_history_that_is_not_read_in_time_is_busy_not_denied(bus: Bus) -> None:
    history = History(bus)
    assert await history.caught_up(patience=0.0) == State()
    await place(bus, "train")
    with pytest.raises(Busy, match="still reading"):
        await history.caught_up(patience=0.1)
    following = asyncio.create_task(history.follow("EVENTS"))
    assert (await history.caught_up()).placed.keys() == {"job-train"}
    following.cancel()


async def test_a_denial_is_a_fact_and_an_error_that_says_why(vault: Vault, bus: Bus) -> None:
    task = await place(bus, "train")
    async with vault():
        with pytest.raises(Rejected, match="not placed on trainer/n2"):
            await KeyRing(bus, "trainer/n2").encrypting("acme", task)
        await bus.emit(TaskSucceeded(task, "job", "acme", "train", 1, "n1"))
        with pytest.raises(Rejected, match="has ended"):
            await KeyRing(bus, "trainer/n1").encrypting("acme", task)
        with pytest.raises(Rejected, match="can't be part of a subject"):
            await KeyRing(bus, "trainer/n1").encrypting("ac.me", task)
    denied = await history(bus, KeyCreated, KeyReleased, KeyDenied)
    assert [(type(event), event.principal) for event in denied] == [  # type: ignore[attr-defined]
        (KeyDenied, "trainer/n2"),
        (KeyDenied, "trainer/n1"),
    ]


async def test_an_inferencer_gets_the_key_of_what_is_deployed_to_its_node(vault: Vault, bus: Bus) -> None:
    task = await place(bus, "train")
    async with vault():
        name = (await KeyRing(bus, "trainer/n1").encrypting("acme", task)).name
        with pytest.raises(Rejected, match="not assigned"):
            await KeyRing(bus, "inferencer/n1").decrypting(name, "tickets")
        await assign(bus)
        assert (await KeyRing(bus, "inferencer/n1").decrypting(name, "tickets")).name == name
        with pytest.raises(Rejected, match="not assigned"):
            await KeyRing(bus, "inferencer/n2").decrypting(name, "tickets")
        with pytest.raises(NotFound, match="no key version 7"):
            await KeyRing(bus, "inferencer/n1").decrypting("acme/7", "tickets")


async def test_an_assignment_that_names_another_place_than_its_subject_counts_for_none(vault: Vault, bus: Bus) -> None:
    version = ModelVersion("tickets", 1, "acme", "text-classification", ARTIFACT, "job", 0.0, private=True)
    forged = ReplicaAssigned("tickets", "n1", 1, "present", version, "job", "acme")
    await bus.publish(subjects.deploy("n9", "tickets"), forged, type="llmos.replica.assigned.v1")
    async with vault():
        for node in ("n1", "n9"):
            with pytest.raises(Rejected, match="not assigned"):
                await KeyRing(bus, f"inferencer/{node}").decrypting("acme/1", "tickets")


@pytest.mark.parametrize("body", [b"", b"[" * 100_000, b'{"task": "\xff"}', b'{"task": 1}'], ids=range(4))
async def test_a_message_that_can_not_be_read_stops_no_vault(vault: Vault, bus: Bus, body: bytes) -> None:
    for number, subject in enumerate(("llmos.evt.task.placed.acme.x", "llmos.deploy.n1.x")):
        await bus.store(subject, body, {"Nats-Msg-Id": str(number)})
    task = await place(bus, "train")
    async with vault():
        await KeyRing(bus, "trainer/n1").encrypting("acme", task)


async def test_no_key_leaves_before_its_release_is_in_the_history(
    vault: Vault, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await place(bus, "train")
    async with vault() as ctx:
        emit = ctx.bus.emit

        async def failing(event: Struct, **headers: Any) -> int:
            if isinstance(event, KeyReleased):
                raise Busy("the bus did not confirm")
            return await emit(event, **headers)

        monkeypatch.setattr(ctx.bus, "emit", failing)
        with pytest.raises(Busy, match="did not confirm"):
            await KeyRing(bus, "trainer/n1", patience=0.0).encrypting("acme", task)
        monkeypatch.undo()
        await KeyRing(bus, "trainer/n1").encrypting("acme", task)
    assert await history(bus, KeyReleased) == [KeyReleased("acme", 1, "trainer/n1", "encrypt", task)]


async def test_a_question_that_is_delivered_twice_states_one_release(vault: Vault, bus: Bus) -> None:
    task = await place(bus, "train")
    recipient = base64.b64encode(Recipient().public).decode()
    request = KeyRequested("trainer/n1", "acme", "encrypt", task, recipient)
    async with vault():
        first, second = [await bus.call("vault", "key", request) for _ in range(2)]
        assert first.version == second.version == 1
        await bus.call(
            "vault",
            "key",
            KeyRequested("trainer/n1", "acme", "encrypt", task, base64.b64encode(Recipient().public).decode()),
        )
    assert len(await history(bus, KeyReleased)) == 2


@pytest.mark.parametrize("recipient", ["", "?", base64.b64encode(b"rubbish").decode()])
async def test_a_key_is_never_sealed_to_what_is_no_recipient(vault: Vault, bus: Bus, recipient: str) -> None:
    task = await place(bus, "train")
    async with vault():
        with pytest.raises(Rejected):
            await bus.call("vault", "key", KeyRequested("trainer/n1", "acme", "encrypt", task, recipient))
    assert await history(bus, KeyReleased) == []


async def test_a_rotated_key_seals_what_is_new_and_the_old_one_still_reads(vault: Vault, bus: Bus) -> None:
    first, second = await place(bus, "train"), await place(bus, "train", job="later")
    async with vault():
        with pytest.raises(NotFound, match="has no key"):
            await bus.call("vault", "rotate", RotateRequested("acme"))
        old = await KeyRing(bus, "trainer/n1").encrypting("acme", first)
        assert await bus.call("vault", "rotate", RotateRequested("acme")) == RotateAnswered("acme", 2)
        new = await KeyRing(bus, "trainer/n1").encrypting("acme", second)
        assert (old.name, new.name) == ("acme/1", "acme/2")
        assert (await KeyRing(bus, "trainer/n1").decrypting("acme/1", second)).name == "acme/1"
    assert await history(bus, KeyCreated) == [KeyCreated("acme", 1), KeyCreated("acme", 2)]


async def test_a_rotation_that_is_repeated_makes_no_second_version(bus: Bus, config: VaultConfig, vault: Vault) -> None:
    async with vault():
        pass
    root = read_root(config.root_key)
    assert root is not None
    store = KeyStore(bus.bucket("state"), root, SystemClock())
    await store.create("acme", 1, "q1")
    assert [await store.rotate("acme", "q2"), await store.rotate("acme", "q2")] == [2, 2]
    assert await store.rotate("acme", "q3") == 3


async def test_an_exporter_has_its_model_signed_and_the_trust_file_verifies_it(
    vault: Vault, bus: Bus, config: VaultConfig
) -> None:
    await place(bus, "export")
    statement = Statement("acme", "tickets", 1, ARTIFACT)
    async with vault():
        answer: SignAnswered = await bus.call("vault", "sign", SignRequested("exporter/n1", statement))
        trust: TrustAnswered = await bus.call("vault", "trust", TrustRequested())
        with pytest.raises(Rejected, match="only an exporter"):
            await bus.call("vault", "sign", SignRequested("trainer/n1", statement))
        with pytest.raises(Rejected, match="no address"):
            await bus.call("vault", "sign", SignRequested("exporter/n1", Statement("acme", "tickets", 1, "x")))
        taken = ModelVersion("tickets", 1, "acme", "text-classification", "sha256:" + "1" * 64, "job", 0.0)
        await bus.bucket("models").put("tickets", ModelRecord("tickets", "acme", [taken]))
        with pytest.raises(Rejected, match="another artifact"):
            await bus.call("vault", "sign", SignRequested("exporter/n1", statement))
    trusted = read_trusted(config.trusted_keys)
    assert {name: base64.b64encode(key).decode() for name, key in trusted.items()} == trust.keys
    verify(statement, answer.signature, trusted)
    with pytest.raises(Rejected):
        verify(Statement("acme", "tickets", 2, ARTIFACT), answer.signature, trusted)
    assert await history(bus, ManifestSigned) == [ManifestSigned(statement, answer.signature, "exporter/n1")]
    assert [(event.purpose, event.subject) for event in await history(bus, KeyDenied)] == [  # type: ignore[attr-defined]
        ("sign", "tickets"),
        ("sign", "tickets"),
    ]


async def test_keys_and_signatures_survive_a_restart(vault: Vault, bus: Bus, config: VaultConfig) -> None:
    train = await place(bus, "train")
    async with vault():
        await KeyRing(bus, "trainer/n1").encrypting("acme", train)
        before = await bus.call("vault", "trust", TrustRequested())
    async with vault():
        assert (await KeyRing(bus, "trainer/n1").encrypting("acme", train)).name == "acme/1"
        assert await bus.call("vault", "trust", TrustRequested()) == before
    assert await history(bus, KeyCreated) == [KeyCreated("acme", 1)]


async def test_a_vault_goes_on_when_the_bus_was_killed(vault: Vault, bus: Bus, nats_server: NatsServer) -> None:
    first = await place(bus, "train")
    async with vault():
        await KeyRing(bus, "trainer/n1").encrypting("acme", first)
        await nats_server.kill()
        await nats_server.start()
        second = await place(bus, "train", job="second")
        assert (await KeyRing(bus, "trainer/n1").encrypting("acme", second)).name == "acme/1"
        assert (await KeyRing(bus, "trainer/n1").decrypting("acme/1", first)).name == "acme/1"


async def test_a_new_signing_key_is_made_and_the_old_one_stays_trusted(
    vault: Vault, bus: Bus, config: VaultConfig
) -> None:
    async with vault():
        old = (await bus.call("vault", "trust", TrustRequested())).keys
    renewed = VaultConfig(nats_url=config.nats_url, node="v1", data_dir=config.data_dir, signing_key="second")
    await place(bus, "export")
    async with running("vault", renewed, serve):
        keys = (await bus.call("vault", "trust", TrustRequested())).keys
        answer = await bus.call("vault", "sign", SignRequested("exporter/n1", Statement("acme", "m", 1, ARTIFACT)))
    assert keys.keys() == {"main", "second"}
    assert keys["main"] == old["main"]
    assert answer.signature.key == "second"
    assert read_trusted(config.trusted_keys).keys() == {"main", "second"}


async def test_a_vault_that_died_between_making_a_key_and_saying_so_says_so_at_its_next_start(
    vault: Vault, bus: Bus, config: VaultConfig
) -> None:
    async with vault():
        await bus.call("vault", "trust", TrustRequested())
    root = read_root(config.root_key)
    assert root is not None
    await KeyStore(bus.bucket("state"), root, SystemClock()).create("acme", 1, "q1")
    assert await history(bus, KeyCreated) == []
    for _ in range(2):
        async with vault():
            await bus.call("vault", "trust", TrustRequested())
    assert await history(bus, KeyCreated) == [KeyCreated("acme", 1)]


async def test_two_vaults_that_make_the_same_version_end_with_one_key(vault: Vault, bus: Bus) -> None:
    tasks = [await place(bus, "train", job=f"job{number}") for number in range(12)]
    async with vault(), vault():
        rings = [KeyRing(bus, "trainer/n1") for _ in tasks]
        ciphers = await asyncio.gather(
            *(ring.encrypting("acme", task) for ring, task in zip(rings, tasks, strict=True))
        )
    assert {cipher.name for cipher in ciphers} == {"acme/1"}
    assert await bus.bucket("state").keys("vault.key.") == ["vault.key.acme.1"]
    assert await history(bus, KeyCreated) == [KeyCreated("acme", 1)]
    assert len(await history(bus, KeyReleased)) == 12


async def test_the_wrong_root_key_stops_the_vault_and_overwrites_nothing(
    vault: Vault, bus: Bus, config: VaultConfig, tmp_path: Path
) -> None:
    task = await place(bus, "train")
    async with vault():
        await KeyRing(bus, "trainer/n1").encrypting("acme", task)
    before = [(heard.subject, heard.data) for heard in await stored(bus, "KV_state")]
    right = config.root_key.read_bytes()

    async def start(**settings: Any) -> None:
        stopped = VaultConfig(nats_url=config.nats_url, node="v1", data_dir=config.data_dir, **settings)
        async with running("vault", stopped, serve) as ctx:
            await ctx.stopping.wait()

    config.root_key.write_text(RootKey.new_text())
    for settings in ({}, {"signing_key": "second"}):
        with pytest.raises(Fatal, match="root key is not the one") as refused:
            await start(**settings)
        assert "LLMOS_ROOT_KEY_FILE" in refused.value.problem.remedy
    config.root_key.unlink()
    with pytest.raises(Fatal, match="there is no root key"):
        await start()
    assert not config.root_key.exists()
    assert [(heard.subject, heard.data) for heard in await stored(bus, "KV_state")] == before
    config.root_key.write_bytes(right)
    config.root_key.chmod(0o600)
    async with vault():
        assert (await KeyRing(bus, "trainer/n1").encrypting("acme", task)).name == "acme/1"


async def test_no_secret_is_logged_or_stored_in_the_clear(bus: Bus, config: VaultConfig, tmp_path: Path) -> None:
    train, _ = await place(bus, "train"), await place(bus, "export")
    with (tmp_path / "log").open("wb") as log:
        process = await start_process(config, log=log)
        await KeyRing(bus, "trainer/n1").encrypting("acme", train)
        await bus.call("vault", "rotate", RotateRequested("acme"))
        await bus.call("vault", "sign", SignRequested("exporter/n1", Statement("acme", "tickets", 1, ARTIFACT)))
        with pytest.raises(Rejected):
            await KeyRing(bus, "trainer/n2").encrypting("acme", train)
        process.terminate()
        await process.wait()
    root = read_root(config.root_key)
    assert root is not None
    store = KeyStore(bus.bucket("state"), root, SystemClock())
    secrets = [base64.b64decode(config.root_key.read_bytes())]
    for version in (1, 2):
        keyset = await store.keyset("acme", version)
        key = tink_pb2.Keyset.FromString(keyset).key[0].key_data.value
        secrets += [keyset, aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey.FromString(key).key_value]
    (signing,) = (await store.signing_keys("main")).values()
    secrets.append(signing._key.private_bytes_raw())

    output = (tmp_path / "log").read_bytes()
    assert b"KeyReleased" in output
    haystack = [output]
    for stream in [*subjects.STREAMS, *(f"KV_{name}" for name in subjects.BUCKETS)]:
        for heard in await stored(bus, stream):
            haystack += [heard.data, repr(heard.headers).encode(), heard.subject.encode()]
    haystack += [path.read_bytes() for path in config.data_dir.rglob("*") if path.is_file() and path != config.root_key]
    assert len(haystack) > 12
    for secret in secrets:
        assert len(secret) >= 32
        for form in (secret, secret.hex().encode(), base64.b64encode(secret)[:-4], repr(secret)[2:-1].encode()):
            assert not any(form in hay for hay in haystack)


async def start_process(config: VaultConfig, *, log: IO[bytes] | None = None) -> asyncio.subprocess.Process:
    settings = {
        "NATS_URL": config.nats_url,
        "NODE": config.node,
        "DATA_DIR": str(config.data_dir),
        "LOG_LEVEL": "debug",
    }
    env = os.environ | {f"LLMOS_{name}": value for name, value in settings.items()}
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "llmos_vault", env=env, stdout=log, stderr=log)


async def test_a_vault_that_is_killed_again_and_again_loses_and_doubles_no_key(config: VaultConfig, bus: Bus) -> None:
    """Eight tenants ask at once; the vault is killed the moment its 2nd, then its 9th fact is in the history."""
    tenants = [f"tenant{number}" for number in range(8)]
    for tenant in tenants:
        await place(bus, "train", tenant=tenant, job=tenant)
    heard = bus.follow("EVENTS", ["llmos.evt.key.>"])
    vaults = [await start_process(config)]

    async def kill_at(fact: int) -> None:
        for _ in range(fact):
            await anext(heard)
        vaults[-1].kill()
        await vaults[-1].wait()
        vaults.append(await start_process(config))

    async def kill() -> None:
        await kill_at(2)
        await kill_at(7)

    ring = KeyRing(bus, "trainer/n1")
    asking = [ring.encrypting(tenant, f"{tenant}-train") for tenant in tenants]
    ciphers, _ = await asyncio.gather(asyncio.gather(*asking), kill())
    for tenant in tenants:
        assert (await ring.decrypting(f"{tenant}/1", f"{tenant}-train")).name == f"{tenant}/1"
    vaults[-1].send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(vaults[-1].wait(), 10) == 0
    assert [cipher.name for cipher in ciphers] == [f"{tenant}/1" for tenant in tenants]
    assert await bus.bucket("state").keys("vault.key.") == sorted(f"vault.key.{tenant}.1" for tenant in tenants)
    created = await history(bus, KeyCreated)
    assert Counter(event.tenant for event in created) == Counter(tenants)  # type: ignore[attr-defined]
