"""Shifting traffic between the versions of a model, and going back."""

from typing import cast

from llmos.bus import Bus
from llmos.contracts.deployments import DeploymentChanged, RollbackRequested, ShiftRequested
from llmos.contracts.models import ModelRecord, ModelVersion
from llmos.errors import NotFound
from llmos.history import DeploymentView, read_deployments
from llmos.operating import one


class Deploying:
    """The part of `Client` that is about models and deployments; it raises as the client does."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def models(self) -> list[ModelRecord]:
        """Every registered model with its versions, by name."""
        bucket = self.bus.bucket("models")
        entries = [await bucket.get(key, ModelRecord) for key in await bucket.keys()]
        return [entry.value for entry in entries if entry is not None]

    async def model(self, name: str) -> ModelRecord:
        """One registered model."""
        entry = await self.bus.bucket("models").get(one(name, "model"), ModelRecord)
        if entry is None:
            raise NotFound(f"there is no model {name!r}", remedy="See `llmos get models`.", param="model")
        return entry.value

    async def deployments(self, name: str | None = None) -> list[DeploymentView]:
        """What should be served now, and how far each replica is."""
        return await read_deployments(self.bus, one(name, "deployment") if name else "*")

    async def shift(
        self,
        deployment: str,
        version: int = 0,
        weight: int = 100,
        *,
        pinned: bool | None = None,
        idle: float | None = None,
        requested_by: str = "",
    ) -> DeploymentChanged:
        """Let a version of the deployed model answer `weight` percent of the requests: with 100 it becomes the one that
        serves, with less it is a canary beside it, with 0 the canary is taken back.

        `pinned` replicas are never unloaded for room; others after `idle` seconds without a request (0: never). Without
        a version only these change. Raises `NotFound` for a deployment or a version that isn't there.
        """
        found = await self._version(deployment, version) if version else None
        request = ShiftRequested(deployment, found, weight, pinned, idle, requested_by)
        return cast(DeploymentChanged, await self.bus.call("scheduler", "shift", request))

    async def rollback(self, deployment: str, *, requested_by: str = "") -> DeploymentChanged:
        """Take a deployment's canary back or, if there is none, go back to the version that served before."""
        request = RollbackRequested(one(deployment, "deployment"), requested_by)
        return cast(DeploymentChanged, await self.bus.call("scheduler", "rollback", request))

    async def _version(self, deployment: str, version: int) -> ModelVersion:
        found = await self.deployments(deployment)
        if not found:
            raise NotFound(
                f"nothing is deployed as {deployment!r}", remedy="See `llmos get deployments`.", param="deployment"
            )
        record = await self.model(found[0].model)
        for each in record.versions:
            if each.version == version:
                return each
        numbers = ", ".join(str(each.version) for each in record.versions)
        raise NotFound(
            f"{record.name} has no version {version}", remedy=f"It has: {numbers or 'none'}.", param="version"
        )
