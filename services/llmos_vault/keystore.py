"""Where keys are kept: wrapped under the root key, in the bucket `state`, each written once by compare-and-set."""

import base64

from msgspec import Struct
from msgspec.structs import replace

from llmos.bus import Bucket, Conflict
from llmos.clock import Clock
from llmos.errors import Busy, Fatal, NotFound, Rejected
from llmos.sealing import RootKey, new_streaming_keyset
from llmos.signing import SigningKey

KEYS = "vault.key."
SIGNING = "vault.signing."


class StoredKey(Struct, frozen=True, omit_defaults=True):
    """A wrapped key. `request` is what it was made for (so a repeated rotation makes no second one); `announced` says
    that its `KeyCreated` is in the history."""

    wrapped: str
    created_at: float
    request: str = ""
    announced: bool = False


class KeyStore:
    """Data keys by tenant and version, and signing keys by name. A key is in the clear only in what a call returns.

    Durability: a key is persisted before it is returned, versions count from 1 without a gap, and of several vaults
    that make the same version one wins and all return the winner's.
    """

    def __init__(self, bucket: Bucket, root: RootKey, clock: Clock) -> None:
        self._bucket = bucket
        self._root = root
        self._clock = clock
        self._newest: dict[str, int] = {}

    async def newest(self, tenant: str) -> int:
        """The newest version; 0 for a tenant without a key."""
        version = self._newest.get(tenant, 0)
        while await self._bucket.get(_name(tenant, version + 1), StoredKey) is not None:
            version += 1
        self._newest[tenant] = version
        return version

    async def create(self, tenant: str, version: int, request: str) -> None:
        """Make a version, unless it exists."""
        name = _name(tenant, version)
        stored = StoredKey(self._wrap(new_streaming_keyset(), name), self._clock.now(), request)
        try:
            await self._bucket.create(name, stored)
        except Conflict:
            pass  # another vault was first: its key is the version

    async def rotate(self, tenant: str, request: str) -> int:
        """Make the next version for this request; the version. A request that is repeated makes no other one.

        Raises `NotFound` for a tenant that has no key.
        """
        version = await self.newest(tenant)
        if version == 0:
            raise NotFound(f"the tenant {tenant} has no key", remedy="Its first private job makes one.", param="tenant")
        entry = await self._bucket.get(_name(tenant, version), StoredKey)
        if entry is not None and entry.value.request == request:
            return version
        await self.create(tenant, version + 1, request)
        return version + 1

    async def keyset(self, tenant: str, version: int) -> bytes:
        """A data key in the clear. Raises `NotFound`, or `Rejected` for a record that was changed."""
        name = _name(tenant, version)
        entry = await self._bucket.get(name, StoredKey)
        if entry is None:
            raise NotFound(f"the tenant {tenant} has no key version {version}", param="version")
        return self._unwrap(entry.value, name)

    async def unannounced(self) -> list[tuple[str, int]]:
        """Every version whose `KeyCreated` may be missing from the history: a vault died between the two."""
        found: list[tuple[str, int]] = []
        for name in await self._bucket.keys(KEYS):
            tenant, _, version = name.removeprefix(KEYS).rpartition(".")
            if await self.needs_announcing(tenant, int(version)):
                found.append((tenant, int(version)))
        return found

    async def needs_announcing(self, tenant: str, version: int) -> bool:
        """Whether nobody has noted yet that the version's `KeyCreated` is in the history."""
        entry = await self._bucket.get(_name(tenant, version), StoredKey)
        return entry is not None and not entry.value.announced

    async def note_announced(self, tenant: str, version: int) -> None:
        """Note that the version's `KeyCreated` is in the history."""
        name = _name(tenant, version)
        entry = await self._bucket.get(name, StoredKey)
        if entry is not None and not entry.value.announced:
            try:
                await self._bucket.update(name, replace(entry.value, announced=True), entry.revision)
            except Conflict:
                pass  # another vault noted it

    async def signing_keys(self, current: str) -> dict[str, SigningKey]:
        """Every signing key by name; `current` is made if it does not exist.

        Raises `Fatal`, before anything is written, when a key can't be unwrapped: another root key wrapped it.
        """
        keys = {name: await self._signing_key(name) for name in await self._bucket.keys(SIGNING)}
        name = SIGNING + current
        if name not in keys:
            stored = StoredKey(self._wrap(SigningKey.new_secret(), name), self._clock.now())
            try:
                await self._bucket.create(name, stored)
            except Conflict:
                pass  # another vault was first
            keys[name] = await self._signing_key(name)
        return {key.name: key for key in keys.values()}

    async def _signing_key(self, name: str) -> SigningKey:
        entry = await self._bucket.get(name, StoredKey)
        if entry is None:
            raise Busy(f"{name} was removed meanwhile", remedy="Start the vault again.")
        try:
            return SigningKey(name.removeprefix(SIGNING), self._unwrap(entry.value, name))
        except Rejected as error:
            raise Fatal(
                f"the root key is not the one under which this stack's keys were wrapped ({name})",
                remedy="Give the vault the root key of its first start (LLMOS_ROOT_KEY_FILE). Nothing was overwritten.",
            ) from error

    def _wrap(self, secret: bytes, name: str) -> str:
        return base64.b64encode(self._root.wrap(secret, name)).decode()

    def _unwrap(self, stored: StoredKey, name: str) -> bytes:
        return self._root.unwrap(base64.b64decode(stored.wrapped), name)


async def holds_keys(bucket: Bucket) -> bool:
    """Whether a vault has kept keys in the bucket before."""
    return bool(await bucket.keys("vault."))


def _name(tenant: str, version: int) -> str:
    return f"{KEYS}{tenant}.{version}"
