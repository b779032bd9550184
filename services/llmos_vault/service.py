"""The vault's shell: answers `key`, `sign`, `rotate` and `trust`, and states each release before the key leaves."""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import msgspec
from msgspec import Struct
from opentelemetry.trace import Span

from llmos.cancel import cancel
from llmos.contracts.envelope import Envelope
from llmos.contracts.keys import (
    KeyAnswered,
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
from llmos.contracts.models import ModelRecord
from llmos.contracts.subjects import token
from llmos.errors import Fatal, Rejected
from llmos.keyring import release_context
from llmos.sealing import RootKey, seal_to
from llmos.service import Context
from llmos.signing import SigningKey, encode_trusted, read_trusted, write_trusted
from llmos_vault.config import VaultConfig
from llmos_vault.core import check_request, check_statement, decide_release, decide_signing
from llmos_vault.history import STREAMS, History
from llmos_vault.keystore import KeyStore, holds_keys
from llmos_vault.rootkey import create_root, read_root

DENIED = "Keys are released only for work that is assigned to the asker at this moment."


async def serve(ctx: Context[VaultConfig]) -> None:
    """Open the key store, then answer until the service stops. Raises `Fatal` for a root key that can't be used."""
    bucket = ctx.bus.bucket("state")
    root = open_root(ctx.config, known=await holds_keys(bucket))
    store = KeyStore(bucket, root, ctx.clock)
    signing = await store.signing_keys(token(ctx.config.signing_key))
    publish_trust(ctx.config, signing)
    vault = Vault(ctx, store, signing)
    await vault.announce_created()
    parts: list[asyncio.Task[Any]] = [asyncio.create_task(vault.history.follow(stream)) for stream in STREAMS]
    parts += [asyncio.create_task(vault.answer()), asyncio.create_task(ctx.stopping.wait())]
    try:
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for part in done:
            part.result()  # raises what stopped it
    finally:
        await cancel(*parts)  # a question that is not answered yet stays in the queue for the next vault


def open_root(config: VaultConfig, *, known: bool) -> RootKey:
    """The root key, made if this is the first start. `known`: the bus holds keys that an earlier root key wrapped."""
    root = read_root(config.root_key)
    if root is not None:
        return root
    if known:
        raise Fatal(
            f"there is no root key at {config.root_key}, but this stack has keys that one wrapped",
            remedy="Restore the file from its backup, or name it by LLMOS_ROOT_KEY_FILE. Nothing was overwritten.",
        )
    if not config.may_create_root:
        raise Fatal(
            f"there is no root key at {config.root_key}",
            remedy="Mount the secret there, or set LLMOS_CREATE_ROOT=true to have the vault make one.",
        )
    return create_root(config.root_key)


def publish_trust(config: VaultConfig, signing: dict[str, SigningKey]) -> None:
    """Add our public keys to the trust file. Raises `Fatal` when it pins another key under one of our names."""
    path = config.trusted_keys
    pinned = read_trusted(path) if path.exists() else {}
    ours = {name: key.public for name, key in signing.items()}
    for name in ours.keys() & pinned.keys():
        if pinned[name] != ours[name]:
            raise Fatal(
                f"{path} trusts another key under the name {name!r} than this stack signs with",
                remedy=f"If the stack was reset on purpose, remove {path}; otherwise find out whose bus this is.",
            )
    if ours.keys() - pinned.keys():
        try:
            write_trusted(path, pinned | ours)
        except OSError as error:
            raise Fatal(f"can't write {path}: {error.strerror}", remedy="Set LLMOS_TRUST_FILE.") from error


class Vault:
    """Answers calls. Nothing that leaves it or is logged holds a key in the clear."""

    def __init__(self, ctx: Context[VaultConfig], store: KeyStore, signing: dict[str, SigningKey]) -> None:
        self._ctx = ctx
        self._store = store
        self._signing = signing
        self.history = History(ctx.bus)

    async def answer(self) -> None:
        """Answer calls, once the history has been read; runs until cancelled."""
        await self.history.caught_up(patience=None)
        handlers: dict[str, Callable[[Any, Envelope], Awaitable[Struct]]] = {
            "key": self.on_key_requested,
            "sign": self.on_sign_requested,
            "rotate": self.on_rotate_requested,
            "trust": self.on_trust_requested,
        }
        self._ctx.announce()
        await self._ctx.bus.serve("vault", handlers)

    async def on_key_requested(self, request: KeyRequested, envelope: Envelope) -> KeyAnswered:
        """Release a data key: `KeyReleased` is in the history before the key leaves."""
        with self._span("key", envelope):
            check_request(request)
            verdict = decide_release(await self.history.caught_up(), request)
            if not verdict.allowed:
                denied = KeyDenied(
                    request.tenant, request.version, request.principal, request.purpose, request.subject, verdict.reason
                )
                await self._deny(denied, request, envelope)
            version = request.version or await self._newest(request.tenant, envelope)
            keyset = await self._store.keyset(request.tenant, version)
            sealed = seal_to(_decode(request.recipient), keyset, release_context(request, version))
            await self._announce(request.tenant, version, envelope)
            await self._state(
                KeyReleased(request.tenant, version, request.principal, request.purpose, request.subject),
                _event_id("released", request, version),
                envelope,
            )
            self._ctx.telemetry.count("llmos.keys.released", outcome="released")
            return KeyAnswered(request.tenant, version, base64.b64encode(sealed).decode())

    async def on_sign_requested(self, request: SignRequested, envelope: Envelope) -> SignAnswered:
        """Sign a model version: `ManifestSigned` is in the history before the signature leaves."""
        statement = request.statement
        with self._span("sign", envelope):
            check_statement(statement)
            record = await self._ctx.bus.bucket("models").get(statement.model, ModelRecord)
            verdict = decide_signing(await self.history.caught_up(), request, record.value if record else None)
            if not verdict.allowed:
                denied = KeyDenied(
                    statement.tenant, statement.version, request.principal, "sign", statement.model, verdict.reason
                )
                await self._deny(denied, request, envelope)
            signature = self._signing[self._ctx.config.signing_key].sign(statement)
            await self._state(
                ManifestSigned(statement, signature, request.principal),
                _event_id("signed", request, signature),
                envelope,
            )
            return SignAnswered(signature)

    async def on_rotate_requested(self, request: RotateRequested, envelope: Envelope) -> RotateAnswered:
        """Make a new version of a tenant's key; those who ask from now on encrypt with it."""
        with self._span("rotate", envelope):
            version = await self._store.rotate(token(request.tenant), envelope.id)
            await self._announce(request.tenant, version, envelope)
            return RotateAnswered(request.tenant, version)

    async def on_trust_requested(self, request: TrustRequested, envelope: Envelope) -> TrustAnswered:
        """The public halves of every signing key."""
        return encode_trusted({name: key.public for name, key in self._signing.items()})

    async def announce_created(self) -> None:
        """State the `KeyCreated` that a vault which died right after making a key left unsaid."""
        for tenant, version in await self._store.unannounced():
            await self._announce(tenant, version, None)

    async def _newest(self, tenant: str, envelope: Envelope) -> int:
        version = await self._store.newest(tenant)
        if version == 0:
            version = 1
            await self._store.create(tenant, version, envelope.id)
        return version

    async def _announce(self, tenant: str, version: int, envelope: Envelope | None) -> None:
        if await self._store.needs_announcing(tenant, version):
            await self._state(KeyCreated(tenant, version), f"key.{tenant}.{version}.created", envelope)
            await self._store.note_announced(tenant, version)

    async def _deny(self, event: KeyDenied, request: Struct, envelope: Envelope) -> NoReturn:
        await self._state(event, _event_id("denied", request, event.reason), envelope)
        self._ctx.telemetry.count("llmos.keys.released", outcome="denied")
        raise Rejected(f"{event.principal} may not {event.purpose} for {event.tenant}: {event.reason}", remedy=DENIED)

    async def _state(self, event: Struct, id: str, envelope: Envelope | None) -> None:
        """Persist a fact; what depends on it happens afterwards."""
        await self._ctx.bus.emit(event, id=id, cause=envelope.id if envelope else "")
        self._ctx.log.info("stated", fact=type(event).__name__, **msgspec.to_builtins(event))

    def _span(self, verb: str, envelope: Envelope) -> AbstractContextManager[Span]:
        return self._ctx.telemetry.span(f"vault {verb}", parent=envelope.traceparent, kind="server")


def _event_id(fact: str, *about: object) -> str:
    """One id for one fact: a question that is delivered twice states it once. An asker can't choose it."""
    return f"{fact}.{hashlib.sha256(msgspec.json.encode(about, order='sorted')).hexdigest()[:32]}"


def _decode(recipient: str) -> bytes:
    try:
        return base64.b64decode(recipient, validate=True)
    except binascii.Error:
        raise Rejected("the recipient is not base64", param="recipient") from None
