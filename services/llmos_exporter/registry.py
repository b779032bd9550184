"""Signing a version and entering it in the record of its model: numbers are given once, whoever else writes."""

import asyncio
from typing import Any

from msgspec.structs import replace

from llmos.bus import Bus, Conflict
from llmos.contracts.keys import SignAnswered, SignRequested
from llmos.contracts.models import ModelRecord, ModelVersion, Signature, Statement
from llmos.errors import Busy, Rejected
from llmos_exporter.core import check_owner, next_version, registered_for, with_version

SIGN_TRIES = 5
FIRST_WAIT_S = 0.5  # doubled after each try
CALL_TIMEOUT_S = 5.0


class Registry:
    """The records of models, and the vault that signs what enters them, for one `principal` (`<service>/<node>`)."""

    def __init__(self, bus: Bus, principal: str, log: Any, *, first_wait: float = FIRST_WAIT_S) -> None:
        self._bus = bus
        self._bucket = bus.bucket("models")
        self._principal = principal
        self._log = log
        self._first_wait = first_wait

    async def find(self, name: str, tenant: str, job: str) -> ModelVersion | None:
        """The version that the job has registered already. Raises `Rejected` when the name is another tenant's."""
        entry = await self._bucket.get(name, ModelRecord)
        record = entry.value if entry else None
        check_owner(record, name, tenant)
        return registered_for(record, job)

    async def register(self, version: ModelVersion) -> ModelVersion:
        """Give a version its number and signature and enter it; what is then in the record, persisted.

        A job enters one version: asked again, it gets that one. Raises `Rejected` when the name is another tenant's or
        the vault refuses, `Busy` when the vault or the bus is away: then the version may or may not be entered.
        """
        while True:
            entry = await self._bucket.get(version.model, ModelRecord)
            record = entry.value if entry else None
            check_owner(record, version.model, version.tenant)
            if known := registered_for(record, version.job):
                return known
            number = next_version(record)
            statement = Statement(version.tenant, version.model, number, version.artifact)
            try:
                signed = replace(version, version=number, signature=await self._sign(statement))
                after = with_version(record, signed)
                if entry is None:
                    await self._bucket.create(version.model, after)
                else:
                    await self._bucket.update(version.model, after, entry.revision)
                return signed
            except Conflict:
                continue  # somebody else took the number
            except Rejected:
                now = await self._bucket.get(version.model, ModelRecord)
                if (now.revision if now else 0) == (entry.revision if entry else 0):
                    raise
                # the vault knew already that somebody else took the number

    async def _sign(self, statement: Statement) -> Signature:
        """The vault's signature; one that is away is asked again for a while."""
        wait = self._first_wait
        request = SignRequested(self._principal, statement)
        for attempt in range(1, SIGN_TRIES + 1):
            try:
                answer: SignAnswered = await self._bus.call("vault", "sign", request, timeout=CALL_TIMEOUT_S)
                return answer.signature
            except Busy as error:
                if attempt == SIGN_TRIES:
                    raise
                self._log.warning("the vault is away", model=statement.model, attempt=attempt, error=str(error))
            await asyncio.sleep(wait)
            wait *= 2
        raise AssertionError("the last try returns or raises")
