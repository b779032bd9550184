"""The registry on a real nats-server, with a vault that signs what it is asked to, or not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from llmos.bus import Bus
from llmos.cancel import cancel
from llmos.contracts.envelope import Envelope
from llmos.contracts.keys import SignAnswered, SignRequested
from llmos.contracts.models import ModelRecord, ModelVersion, Signature, Statement
from llmos.errors import Busy, Rejected
from llmos.signing import SigningKey, verify
from llmos_exporter import registry as registry_module
from llmos_exporter.registry import Registry

KEY = SigningKey("vault", b"k" * 32)
LOG: Any = structlog.get_logger()


def version(job: str, *, tenant: str = "acme", artifact: str = "sha256:0") -> ModelVersion:
    return ModelVersion("tickets", 0, tenant, "text-classification", artifact, job, 1.0)


def sign(request: SignRequested) -> Signature:
    return KEY.sign(request.statement)


@asynccontextmanager
async def vault(bus: Bus, sign: Callable[[SignRequested], Signature] = sign) -> AsyncIterator[list[SignRequested]]:
    asked: list[SignRequested] = []

    async def on_sign(request: SignRequested, _: Envelope) -> SignAnswered:
        asked.append(request)
        return SignAnswered(sign(request))

    task = asyncio.create_task(bus.serve("vault", {"sign": on_sign}))
    try:
        yield asked
    finally:
        await cancel(task)


async def record(bus: Bus) -> ModelRecord:
    entry = await bus.bucket("models").get("tickets", ModelRecord)
    assert entry is not None
    return entry.value


@pytest.fixture
def registry(bus: Bus) -> Registry:
    return Registry(bus, "exporter/n1", LOG, first_wait=0.05)


async def test_a_version_is_entered_under_the_next_number_with_the_vaults_signature(
    bus: Bus, registry: Registry
) -> None:
    async with vault(bus) as asked:
        first = await registry.register(version("j1"))
        second = await registry.register(version("j2", artifact="sha256:1"))
    assert (first.version, second.version) == (1, 2)
    assert (await record(bus)).versions == [first, second]
    verify(Statement("acme", "tickets", 2, "sha256:1"), second.signature, {"vault": KEY.public})
    assert [(request.principal, request.statement.version) for request in asked] == [
        ("exporter/n1", 1), ("exporter/n1", 2),
    ]  # fmt: skip


async def test_of_sixteen_racing_writers_none_is_lost_and_each_has_a_number_of_its_own(bus: Bus) -> None:
    async with vault(bus):
        writers = [Registry(bus, f"exporter/n{number}", LOG) for number in range(16)]
        versions = await asyncio.gather(
            *(writer.register(version(f"j{at}", artifact=f"sha256:{at}")) for at, writer in enumerate(writers))
        )
    entered = (await record(bus)).versions
    assert [known.version for known in entered] == list(range(1, 17))
    assert sorted(versions, key=lambda known: known.version) == entered
    for known in entered:
        statement = Statement("acme", "tickets", known.version, known.artifact)
        verify(statement, known.signature, {"vault": KEY.public})


async def test_one_job_that_races_with_itself_enters_one_version(bus: Bus, registry: Registry) -> None:
    async with vault(bus):
        versions = await asyncio.gather(*(registry.register(version("j1")) for _ in range(5)))
        assert await registry.register(version("j1", artifact="sha256:other")) == versions[0]
    assert (await record(bus)).versions == [versions[0]] == list({known.version: known for known in versions}.values())
    assert await registry.find("tickets", "acme", "j1") == versions[0]
    assert await registry.find("tickets", "acme", "j2") is None


async def test_a_vault_that_comes_back_is_asked_again(bus: Bus, registry: Registry) -> None:
    refusals = [Busy("locked"), Busy("locked")]

    def sometimes(request: SignRequested) -> Signature:
        if refusals:
            raise refusals.pop()
        return sign(request)

    async with vault(bus, sometimes) as asked:
        assert (await registry.register(version("j1"))).version == 1
    assert len(asked) == 3


async def test_without_a_vault_nothing_is_entered_and_it_may_be_tried_again(
    bus: Bus, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "CALL_TIMEOUT_S", 0.1)
    with pytest.raises(Busy, match="vault did not answer sign"):
        await registry.register(version("j1"))
    assert await bus.bucket("models").get("tickets", ModelRecord) is None


async def test_what_the_vault_refuses_is_not_entered_and_not_asked_again(bus: Bus, registry: Registry) -> None:
    def never(_: SignRequested) -> Signature:
        raise Rejected("no export task of the tenant acme is placed on exporter/n1")

    async with vault(bus, never) as asked:
        with pytest.raises(Rejected, match="no export task"):
            await registry.register(version("j1"))
    assert len(asked) == 1
    assert await bus.bucket("models").get("tickets", ModelRecord) is None


async def test_a_refusal_because_somebody_took_the_number_leads_to_the_next(bus: Bus, registry: Registry) -> None:
    """The vault sees a record that is newer than the one the exporter read."""

    async def take() -> None:
        await bus.bucket("models").create("tickets", ModelRecord("tickets", "acme", [version_one]))

    version_one = ModelVersion("tickets", 1, "acme", "text-classification", "sha256:9", "faster", 1.0)
    asked = 0

    async def on_sign(request: SignRequested, _: Envelope) -> SignAnswered:
        nonlocal asked
        asked += 1
        if asked == 1:
            await take()
            raise Rejected("tickets@1 is registered with another artifact")
        return SignAnswered(sign(request))

    task = asyncio.create_task(bus.serve("vault", {"sign": on_sign}))
    assert (await registry.register(version("j1"))).version == 2
    await cancel(task)
    assert [known.job for known in (await record(bus)).versions] == ["faster", "j1"]


async def test_a_name_of_another_tenant_is_refused_before_anything_is_signed(bus: Bus, registry: Registry) -> None:
    async with vault(bus) as asked:
        await registry.register(version("j1"))
        with pytest.raises(Rejected, match="belongs to another tenant"):
            await registry.register(version("j2", tenant="evil"))
        with pytest.raises(Rejected, match="belongs to another tenant"):
            await registry.find("tickets", "evil", "j2")
    assert len(asked) == 1
