"""The key ring against a vault's side that really seals: what it asks, what it keeps, what it refuses."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import replace

from llmos.contracts.keys import KeyAnswered, KeyRequested
from llmos.errors import Busy, Rejected
from llmos.keyring import KEEP, KEEP_S, KeyRing, release_context
from llmos.sealing import StreamingCipher, new_streaming_keyset, seal_to


class Sealing:
    """The bus's end at which a vault with two key versions answers; `tamper` changes its answers."""

    def __init__(self) -> None:
        self.keysets = {1: new_streaming_keyset(), 2: new_streaming_keyset()}
        self.asked: list[KeyRequested] = []
        self.busy = 0
        self.tamper: Callable[[KeyAnswered], KeyAnswered] = lambda answer: answer

    async def call(self, service: str, verb: str, request: Struct, *, timeout: float = 5.0) -> Any:
        assert (service, verb) == ("vault", "key")
        assert isinstance(request, KeyRequested)
        self.asked.append(request)
        if self.busy:
            self.busy -= 1
            raise Busy("nobody answers")
        version = request.version or 2
        context = release_context(request, version)
        sealed = seal_to(base64.b64decode(request.recipient), self.keysets[version], context)
        return self.tamper(KeyAnswered(request.tenant, version, base64.b64encode(sealed).decode()))


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
def vault() -> Sealing:
    return Sealing()


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def ring(vault: Sealing, hands: Hands) -> KeyRing:
    return KeyRing(vault, "trainer/n1", clock=hands)


async def test_encrypting_takes_the_newest_version_and_decrypting_the_named_one(
    tmp_path: Path, ring: KeyRing, vault: Sealing
) -> None:
    newest = await ring.encrypting("acme", "job-train")
    older = await ring.decrypting("acme/1", "job-train")
    assert (newest.name, older.name) == ("acme/2", "acme/1")
    assert [(asked.purpose, asked.version) for asked in vault.asked] == [("encrypt", 0), ("decrypt", 1)]
    assert {(asked.principal, asked.tenant, asked.subject) for asked in vault.asked} == {
        ("trainer/n1", "acme", "job-train")
    }
    (tmp_path / "plain").write_bytes(b"rows")
    StreamingCipher("acme/1", vault.keysets[1]).seal(tmp_path / "plain", tmp_path / "sealed", b"")
    older.unseal(tmp_path / "sealed", tmp_path / "again", b"")
    assert (tmp_path / "again").read_bytes() == b"rows"


async def test_every_request_has_a_fresh_recipient(ring: KeyRing, vault: Sealing) -> None:
    await ring.encrypting("acme", "a")
    await ring.encrypting("acme", "b")
    assert vault.asked[0].recipient != vault.asked[1].recipient


async def test_a_key_is_kept_for_its_subject_until_it_expires(ring: KeyRing, vault: Sealing, hands: Hands) -> None:
    first = await ring.encrypting("acme", "job-train")
    assert await ring.encrypting("acme", "job-train") is first
    await ring.encrypting("acme", "other-train")
    assert len(vault.asked) == 2
    hands.at += KEEP_S + 1
    await ring.encrypting("acme", "job-train")
    assert len(vault.asked) == 3


async def test_a_ring_keeps_a_bounded_number_of_keys(ring: KeyRing, vault: Sealing) -> None:
    for number in range(KEEP + 1):
        await ring.encrypting("acme", f"task-{number}")
    await ring.encrypting("acme", f"task-{KEEP}")
    assert len(vault.asked) == KEEP + 1
    await ring.encrypting("acme", "task-0")
    assert len(vault.asked) == KEEP + 2


@pytest.mark.parametrize("name", ["", "acme", "acme/", "/1", "acme/0", "acme/-1", "acme/x", "acme/²"])
async def test_what_names_no_key_version_is_rejected_without_asking(ring: KeyRing, vault: Sealing, name: str) -> None:
    with pytest.raises(Rejected, match="is no key version"):
        await ring.decrypting(name, "job-train")
    assert not vault.asked


async def test_an_answer_to_another_question_is_rejected(ring: KeyRing, vault: Sealing) -> None:
    vault.tamper = lambda answer: replace(answer, version=1)
    with pytest.raises(Rejected):  # sealed for version 2, said to be 1
        await ring.encrypting("acme", "job-train")
    vault.tamper = lambda answer: replace(answer, tenant="other")
    with pytest.raises(Rejected):
        await ring.encrypting("acme", "job-train")
    vault.tamper = lambda answer: replace(answer, sealed="?")
    with pytest.raises(Rejected):
        await ring.encrypting("acme", "job-train")
    vault.tamper = lambda answer: replace(answer, sealed=answer.sealed[:-8] + "AAAAAAA=")
    with pytest.raises(Rejected):
        await ring.encrypting("acme", "job-train")


async def test_a_vault_that_restarts_is_waited_for(ring: KeyRing, vault: Sealing) -> None:
    vault.busy = 2
    assert (await ring.encrypting("acme", "job-train")).name == "acme/2"


async def test_a_vault_that_stays_away_is_busy(vault: Sealing, hands: Hands) -> None:
    vault.busy = 1
    with pytest.raises(Busy):
        await KeyRing(vault, "trainer/n1", clock=hands, patience=0.0).encrypting("acme", "job-train")
