"""A service's ring of data keys: asks the vault over the bus, and keeps what it got for a short while.

Use:

    keys = KeyRing(ctx.bus, "trainer/node-1")
    cipher = await keys.encrypting("acme", task)           # the newest version of the tenant's key
    cipher = await keys.decrypting(manifest.sealed_by, task)
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from llmos.clock import Clock, SystemClock
from llmos.contracts.keys import KeyAnswered, KeyRequested
from llmos.errors import Busy, Rejected
from llmos.sealing import Recipient, StreamingCipher

KEEP_S = 600.0  # after that the vault decides anew, and a rotated key is noticed
KEEP = 32
PATIENCE_S = 30.0  # how long a vault that restarts is waited for
CALL_TIMEOUT_S = 5.0


class Caller(Protocol):
    """What a ring needs of the bus."""

    async def call(self, service: str, verb: str, request: Struct, *, timeout: float = ...) -> Any:
        """Ask a service; raises the `LlmosError` that it answers with, `Busy` when it does not answer."""


class KeyRing:
    """Data keys for one `principal` (`<service>/<node>`), released for one subject (a task, a deployment) at a time."""

    def __init__(
        self, bus: Caller, principal: str, *, clock: Clock | None = None, patience: float = PATIENCE_S
    ) -> None:
        self._bus = bus
        self._principal = principal
        self._clock = clock or SystemClock()
        self._patience = patience
        self._kept: dict[tuple[str, int, str], tuple[float, StreamingCipher]] = {}

    def __repr__(self) -> str:
        return f"KeyRing({self._principal!r})"

    async def encrypting(self, tenant: str, subject: str) -> StreamingCipher:
        """A cipher with the newest version of the tenant's key; its `name` is what a manifest's `sealed_by` records.

        Raises `Rejected` when the vault's policy denies it, `Busy` when no vault answered for `PATIENCE_S`.
        """
        return await self._cipher(tenant, 0, subject, "encrypt")

    async def decrypting(self, sealed_by: str, subject: str) -> StreamingCipher:
        """The cipher that unseals what `sealed_by` (`<tenant>/<key version>`) names. Raises as `encrypting` does."""
        tenant, _, version = sealed_by.rpartition("/")
        if not (tenant and version.isascii() and version.isdecimal() and int(version) > 0):
            raise Rejected(f"{sealed_by!r} is no key version", remedy="It reads <tenant>/<version>.", param="sealed_by")
        return await self._cipher(tenant, int(version), subject, "decrypt")

    async def _cipher(
        self, tenant: str, version: int, subject: str, purpose: Literal["encrypt", "decrypt"]
    ) -> StreamingCipher:
        kept = self._kept.get((tenant, version, subject))
        if kept is not None and kept[0] > self._clock.monotonic():
            return kept[1]
        recipient = Recipient()
        request = KeyRequested(
            principal=self._principal,
            tenant=tenant,
            purpose=purpose,
            subject=subject,
            recipient=base64.b64encode(recipient.public).decode(),
            version=version,
        )
        answer = await self._ask(request)
        if answer.tenant != tenant or version not in (0, answer.version):
            raise Rejected(
                f"asked for {tenant}/{version}, got {answer.tenant}/{answer.version}", remedy="Check the vault."
            )
        try:
            sealed = base64.b64decode(answer.sealed, validate=True)
        except binascii.Error:
            raise Rejected("the vault's answer is not base64", remedy="Check the vault.") from None
        keyset = recipient.open(sealed, release_context(request, answer.version))
        cipher = StreamingCipher(f"{tenant}/{answer.version}", keyset)
        self._keep((tenant, version, subject), cipher)
        return cipher

    async def _ask(self, request: KeyRequested) -> KeyAnswered:
        """The vault's answer; one that is away (restarting, say) is asked again for a while."""
        until = self._clock.monotonic() + self._patience
        wait = 0.1
        while True:
            try:
                answer = await self._bus.call("vault", "key", request, timeout=CALL_TIMEOUT_S)
                assert isinstance(answer, KeyAnswered)  # the bus decodes by the table of calls
                return answer
            except Busy:
                if self._clock.monotonic() + wait > until:
                    raise
            await asyncio.sleep(wait)
            wait = min(wait * 2, 2.0)

    def _keep(self, key: tuple[str, int, str], cipher: StreamingCipher) -> None:
        now = self._clock.monotonic()
        self._kept = {name: kept for name, kept in self._kept.items() if kept[0] > now}
        self._kept.pop(key, None)
        self._kept[key] = (now + KEEP_S, cipher)
        while len(self._kept) > KEEP:
            del self._kept[next(iter(self._kept))]


def release_context(request: KeyRequested, version: int) -> bytes:
    """What a released key is bound to when it is sealed: an answer can't be taken for that to another question."""
    bound: Mapping[str, Any] = {
        "principal": request.principal,
        "purpose": request.purpose,
        "subject": request.subject,
        "tenant": request.tenant,
        "version": version,
    }
    return b"llmos key release\n" + msgspec.json.encode(bound, order="sorted")
