"""The audit service on a real nats-server: everything said is in the log, once, in order, and can be proved."""

import asyncio
import os
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from llmos import service
from llmos.auditfiles import log_directory, verifier_key_file
from llmos.auditlog import Report, read_entries, verify_log, verify_proof
from llmos.bus import Bus
from llmos.contracts.audit import GAP, REMADE, CheckpointRequested, EntriesRequested, LogEntry, ProofRequested
from llmos.contracts.jobs import JobCancelled, JobFailed, JobSucceeded
from llmos.contracts.models import ModelExported, ModelVersion
from llmos.errors import Fatal, NotFound, Problem, Rejected
from llmos.natsserver import NatsServer
from llmos.note import VerifierKey, open_checkpoint
from llmos_audit import hearing
from llmos_audit.config import AuditConfig
from llmos_audit.service import serve


@pytest.fixture
def config(nats_url: str, tmp_path: Path) -> AuditConfig:
    return AuditConfig(nats_url=nats_url, node="n1", data_dir=tmp_path / "data", batch_s=0.02)


def entries(config: AuditConfig) -> list[LogEntry]:
    return [view.entry for view in read_entries(log_directory(config.data_dir), 0, 100_000)]


def verified(config: AuditConfig) -> Report:
    return verify_log(log_directory(config.data_dir), verifier_key_file(config.data_dir).read_text())


async def until(condition: Callable[[], bool], within: float = 15.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.02)


def size(config: AuditConfig) -> int:
    try:
        return len(entries(config))
    except NotFound:
        return 0


async def say(bus: Bus, first: int, last: int) -> None:
    for number in range(first, last + 1):
        await bus.emit(JobCancelled(job=f"j{number}", tenant="acme"), id=f"e{number}")


async def test_every_event_is_logged_once_in_order_with_its_envelope_and_body(config: AuditConfig, bus: Bus) -> None:
    await say(bus, 1, 3)
    async with service.running("audit", config, serve):
        await say(bus, 4, 7)
        await until(lambda: size(config) == 7)
    logged = entries(config)
    assert [entry.headers["ce-id"] for entry in logged] == [f"e{number}" for number in range(1, 8)]
    assert logged[0].subject == "llmos.evt.job.cancelled.acme.j1"
    assert logged[0].data == '{"job":"j1","tenant":"acme"}'
    report = verified(config)
    assert report.ok
    assert report.size == 7


async def test_a_restart_in_the_middle_of_the_stream_logs_nothing_twice_and_misses_nothing(
    config: AuditConfig, bus: Bus
) -> None:
    said = 0
    for _round in range(3):
        async with service.running("audit", config, serve):
            await say(bus, said + 1, said + 150)
            said += 150
        await say(bus, said + 1, said + 20)
        said += 20
    async with service.running("audit", config, serve):
        await until(lambda: size(config) == said)
    assert [entry.sequence for entry in entries(config)] == list(range(1, said + 1))
    assert verified(config).ok


async def test_an_event_that_a_job_is_about_is_found_by_the_jobs_id(config: AuditConfig, bus: Bus) -> None:
    version = ModelVersion("m", 1, "acme", "text-classification", "sha256:0", "j1", 0.0)
    async with service.running("audit", config, serve):
        await bus.emit(ModelExported(version))
        await say(bus, 2, 4)
        await bus.emit(JobSucceeded("j1", "acme", "m", 1))
        await until(lambda: size(config) == 5)
        got = await bus.call("audit", "entries", EntriesRequested(job="j1"))
        assert got.size == 5
        assert [view.index for view in got.entries] == [0, 4]
        assert [view.index for view in (await bus.call("audit", "entries", EntriesRequested(start=3))).entries] == [
            3,
            4,
        ]
        assert (await bus.call("audit", "entries", EntriesRequested(job="other"))).entries == []


async def test_a_proof_asked_for_by_event_verifies_against_the_signed_checkpoint(config: AuditConfig, bus: Bus) -> None:
    async with service.running("audit", config, serve):
        await say(bus, 1, 40)
        await until(lambda: size(config) == 40)
        key = verifier_key_file(config.data_dir).read_text()
        answer = await bus.call("audit", "checkpoint", CheckpointRequested())
        assert VerifierKey.parse(answer.verifier_key) == VerifierKey.parse(key)
        assert open_checkpoint(answer.checkpoint, VerifierKey.parse(key)).origin == "llmos/n1"
        proof = await bus.call("audit", "prove", ProofRequested(event="e17"))
        assert proof.index == 16
        assert verify_proof(proof, key).size == 40
        assert (await bus.call("audit", "prove", ProofRequested(index=16))).hashes == proof.hashes
        with pytest.raises(NotFound, match="no event e41"):
            await bus.call("audit", "prove", ProofRequested(event="e41"))
        with pytest.raises(Rejected, match="entry 40"):
            await bus.call("audit", "prove", ProofRequested(index=40))
        with pytest.raises(Rejected, match="by index or by event"):
            await bus.call("audit", "prove", ProofRequested())


async def test_an_answer_of_large_entries_ends_early_and_can_be_continued(config: AuditConfig, bus: Bus) -> None:
    async with service.running("audit", config, serve):
        for number in range(12):
            await bus.emit(JobFailed(f"j{number}", "acme", Problem("error", "x" * 50_000)))
        await until(lambda: size(config) == 12)
        got = [view.index for view in (await bus.call("audit", "entries", EntriesRequested())).entries]
        assert 1 <= len(got) < 12
        got += [v.index for v in (await bus.call("audit", "entries", EntriesRequested(start=got[-1] + 1))).entries]
        assert got == list(range(12))


async def test_a_body_that_does_not_fit_is_logged_by_its_digest_and_size(config: AuditConfig, bus: Bus) -> None:
    event = JobFailed("j1", "acme", Problem("error", "x" * 100_000))
    async with service.running("audit", config, serve):
        await bus.emit(event, id="e1")
        await until(lambda: size(config) == 1)
        proof = await bus.call("audit", "prove", ProofRequested(event="e1"))
        assert [v.index for v in (await bus.call("audit", "entries", EntriesRequested(job="j1"))).entries] == [0]
    body = msgspec.json.encode(event)
    assert (proof.entry.data, proof.entry.size) == ("", len(body))
    assert proof.entry.digest == f"sha256:{sha256(body).hexdigest()}"


async def test_messages_that_left_the_stream_unheard_are_a_gap_in_the_log(
    config: AuditConfig, nats_server: NatsServer, bus: Bus
) -> None:
    await say(bus, 1, 2)
    async with service.running("audit", config, serve):
        await until(lambda: size(config) == 2)
    await say(bus, 3, 6)
    await bus.purge("EVENTS", "llmos.evt.job.cancelled.acme.j3")
    await bus.purge("EVENTS", "llmos.evt.job.cancelled.acme.j4")
    async with service.running("audit", config, serve):
        await until(lambda: size(config) == 5)
    gap = entries(config)[2]
    assert (gap.subject, gap.data, gap.sequence) == (GAP, '{"first":3,"last":4}', 4)
    assert verified(config).ok


@pytest.mark.parametrize("said_anew", [1, 5, 9])
async def test_a_stream_made_anew_while_the_service_was_down_is_heard_from_its_beginning(
    said_anew: int, config: AuditConfig, nats_server: NatsServer, bus: Bus
) -> None:
    await say(bus, 1, 5)
    async with service.running("audit", config, serve):
        await until(lambda: size(config) == 5)
    await remake(bus)
    await say(bus, 101, 100 + said_anew)
    async with service.running("audit", config, serve):
        await until(lambda: size(config) == 6 + said_anew)
    logged = entries(config)
    assert logged[5].subject == REMADE
    assert [entry.headers["ce-id"] for entry in logged[6:]] == [f"e{100 + n}" for n in range(1, said_anew + 1)]
    assert verified(config).ok


@pytest.mark.parametrize("said_anew", [2, 9])
async def test_a_stream_made_anew_while_the_service_runs_is_heard_from_its_beginning(
    said_anew: int, config: AuditConfig, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "CHECK_S", 0.1)
    await say(bus, 1, 5)
    async with service.running("audit", config, serve):
        await until(lambda: size(config) == 5)
        await remake(bus)
        await say(bus, 101, 100 + said_anew)
        await until(lambda: entries(config)[-1].headers.get("ce-id") == f"e{100 + said_anew}")
    logged = entries(config)
    anew = [entry.subject for entry in logged].index(REMADE, 5)
    assert [entry.sequence for entry in logged[anew + 1 :]] == list(range(1, said_anew + 1))
    assert verified(config).ok


async def remake(bus: Bus) -> None:
    from llmos.bus import api

    await api.request(bus._nc, "STREAM.DELETE.EVENTS")
    await api.ensure(bus._nc)


async def test_a_killed_bus_that_comes_back_leaves_no_hole(
    config: AuditConfig, nats_server: NatsServer, bus: Bus
) -> None:
    async with service.running("audit", config, serve):
        await say(bus, 1, 30)
        await nats_server.kill()
        await nats_server.start()
        await say(bus, 31, 60)
        await until(lambda: size(config) >= 60)
    assert verified(config).ok
    assert [e.headers["ce-id"] for e in entries(config) if e.subject not in (GAP, REMADE)][-30:] == [
        f"e{number}" for number in range(31, 61)
    ]


async def test_a_service_killed_at_any_moment_logs_nothing_twice_and_misses_nothing(
    config: AuditConfig, bus: Bus
) -> None:
    said = 0
    for heard_before_the_kill in (1, 90, 300):
        process = await start_process(config)
        target = said + heard_before_the_kill
        saying = asyncio.create_task(say(bus, said + 1, said + 400))
        try:
            await until(lambda target=target: size(config) >= target)
        finally:
            process.kill()
            await process.wait()
        await saying
        said += 400
    async with service.running("audit", config, serve):
        await until(lambda: size(config) == said)
    assert [entry.headers["ce-id"] for entry in entries(config)] == [f"e{number}" for number in range(1, said + 1)]
    assert verified(config).ok


async def start_process(config: AuditConfig) -> asyncio.subprocess.Process:
    settings = {"LLMOS_NATS_URL": config.nats_url, "LLMOS_NODE": config.node, "LLMOS_DATA_DIR": str(config.data_dir)}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llmos_audit", env=os.environ | settings, stderr=asyncio.subprocess.DEVNULL
    )


async def test_a_log_has_one_writer(config: AuditConfig, bus: Bus) -> None:
    async with service.running("audit", config, serve):
        await until(lambda: verifier_key_file(config.data_dir).exists())
        with pytest.raises(Fatal, match="another process writes the log"):
            async with service.running("audit", config, serve) as second:
                await asyncio.wait_for(second.stopping.wait(), 10)


async def test_a_disk_that_fails_ends_the_service_and_the_next_one_loses_nothing(
    config: AuditConfig, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Fatal, match="can't write the log"):
        async with service.running("audit", config, serve) as context:
            await until(lambda: verifier_key_file(config.data_dir).exists())
            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", _no_space)
                await say(bus, 1, 3)
                await asyncio.wait_for(context.stopping.wait(), 10)
    async with service.running("audit", config, serve):
        await until(lambda: size(config) == 3)
    assert verified(config).ok


def _no_space(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


async def test_the_key_is_its_owners_alone_and_the_log_does_not_go_on_without_it(config: AuditConfig, bus: Bus) -> None:
    async with service.running("audit", config, serve):
        await until(lambda: verifier_key_file(config.data_dir).exists())
    key = config.data_dir / "audit.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    with pytest.raises(Fatal, match="chmod 600"):
        await _start(config)
    key.unlink()
    with pytest.raises(Fatal, match=r"the key of the log .* is gone"):
        await _start(config)


async def test_a_log_that_vanished_is_not_begun_again_under_its_key(config: AuditConfig, bus: Bus) -> None:
    await say(bus, 1, 3)
    async with service.running("audit", config, serve):
        await until(lambda: size(config) == 3)
    (log_directory(config.data_dir) / "checkpoint").unlink()
    with pytest.raises(Fatal, match="is gone from"):
        await _start(config)


async def test_a_log_keeps_its_name(config: AuditConfig, bus: Bus, nats_url: str) -> None:
    async with service.running("audit", config, serve):
        await until(lambda: verifier_key_file(config.data_dir).exists())
    with pytest.raises(Fatal, match="LLMOS_ORIGIN=llmos/n1"):
        await _start(AuditConfig(nats_url=nats_url, node="other", data_dir=config.data_dir))


async def _start(config: AuditConfig) -> None:
    async with service.running("audit", config, serve) as context:
        await asyncio.wait_for(context.stopping.wait(), 10)


async def test_an_index_that_is_lost_or_damaged_is_made_again_from_the_log(config: AuditConfig, bus: Bus) -> None:
    async with service.running("audit", config, serve):
        await say(bus, 1, 5)
        await until(lambda: size(config) == 5)
    (config.data_dir / "audit-index.sqlite").write_bytes(b"nonsense" * 1000)
    async with service.running("audit", config, serve):
        assert (await bus.call("audit", "prove", ProofRequested(event="e4"))).index == 3
