"""Keys: what is asked of the vault (`llmos.call.vault.<verb>.<id>`), its answers, and the facts it states."""

from typing import Literal

from msgspec import Struct, field

from llmos.contracts.models import Signature, Statement


class SignRequested(Struct, frozen=True, omit_defaults=True):
    """Sign a model version; asked by an exporter."""

    principal: str
    statement: Statement


class SignAnswered(Struct, frozen=True, omit_defaults=True):
    """The signature over the statement."""

    signature: Signature


class KeyRequested(Struct, frozen=True, omit_defaults=True):
    """Ask for a tenant's data key: `version` 0 is the newest (to encrypt), another one is to decrypt.

    `recipient` is the asker's fresh public keyset (base64 of Tink's form, HPKE): the key comes back sealed to it.
    `principal` is `<service>/<node>`; `purpose` and `subject` (a task id or a deployment's name) say what for.
    """

    principal: str
    tenant: str
    purpose: Literal["encrypt", "decrypt"]
    subject: str
    recipient: str
    version: int = 0


class KeyAnswered(Struct, frozen=True, omit_defaults=True):
    """A tenant's data key (a Tink streaming-AEAD keyset), sealed to the recipient; base64."""

    tenant: str
    version: int
    sealed: str


class TrustRequested(Struct, frozen=True, omit_defaults=True):
    """Ask for the vault's public signing keys."""


class TrustAnswered(Struct, frozen=True, omit_defaults=True):
    """Public Ed25519 keys, name → base64 of the 32 raw bytes."""

    keys: dict[str, str] = field(default_factory=dict)


class RotateRequested(Struct, frozen=True, omit_defaults=True):
    """Make a new version of a tenant's data key; older versions stay for reading."""

    tenant: str


class RotateAnswered(Struct, frozen=True, omit_defaults=True):
    """The new version."""

    tenant: str
    version: int


class KeyCreated(Struct, frozen=True, omit_defaults=True):
    """A tenant has a new version of its data key."""

    tenant: str
    version: int


class KeyReleased(Struct, frozen=True, omit_defaults=True):
    """The vault handed a data key to a principal."""

    tenant: str
    version: int
    principal: str
    purpose: str
    subject: str


class KeyDenied(Struct, frozen=True, omit_defaults=True):
    """The vault refused to hand out a data key."""

    tenant: str
    version: int
    principal: str
    purpose: str
    subject: str
    reason: str


class ManifestSigned(Struct, frozen=True, omit_defaults=True):
    """The vault signed a model version."""

    statement: Statement
    signature: Signature
    principal: str
