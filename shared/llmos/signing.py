"""Signatures of model versions: Ed25519 (RFC 8032) over a `Statement`, and the file of public keys that are trusted."""

import base64
import binascii
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from llmos.contracts.keys import TrustAnswered
from llmos.contracts.models import Signature, Statement
from llmos.errors import Fatal, Rejected

KEY_BYTES = 32


def canonical(statement: Statement) -> bytes:
    """The bytes that are signed: JSON without spaces, UTF-8, every field present, keys sorted."""
    return msgspec.json.encode(statement, order="sorted")


class SigningKey:
    """A private Ed25519 key and the name under which its public half is trusted."""

    def __init__(self, name: str, secret: bytes) -> None:
        """`secret` is the 32-byte seed. Raises `Rejected` for another length."""
        if len(secret) != KEY_BYTES:
            raise Rejected(f"an Ed25519 key has {KEY_BYTES} bytes, {name} has {len(secret)}")
        self.name = name
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    @staticmethod
    def new_secret() -> bytes:
        """A fresh seed. Secret."""
        return secrets.token_bytes(KEY_BYTES)

    def __repr__(self) -> str:
        return f"SigningKey({self.name!r})"

    def sign(self, statement: Statement) -> Signature:
        """Sign `statement`; the same statement always gives the same signature."""
        return Signature(self.name, base64.b64encode(self._key.sign(canonical(statement))).decode())


def verify(statement: Statement, signature: Signature | None, trusted: Mapping[str, bytes]) -> None:
    """Check that a trusted key signed `statement`. `trusted` maps a key's name to its 32 raw public bytes.

    Raises `Rejected` when there is no signature, the key is not trusted, or the signature is of something else.
    """
    what = f"{statement.model}@{statement.version} ({statement.artifact})"
    names = ", ".join(trusted) or "none"
    if signature is None:
        raise Rejected(f"{what} is not signed", remedy="Export the model again with a running vault.")
    public = trusted.get(signature.key)
    if public is None:
        raise Rejected(
            f"{what} is signed by {signature.key!r}, which is not among the trusted keys ({names})",
            remedy="Add the vault's public key to the trust file if you trust it.",
        )
    try:
        raw = base64.b64decode(signature.signature, validate=True)
        Ed25519PublicKey.from_public_bytes(public).verify(raw, canonical(statement))
    except (InvalidSignature, binascii.Error, ValueError):
        raise Rejected(
            f"the signature of {what} does not verify: the record or the artifact's address was changed",
            remedy="Deploy a version whose signature verifies; find out who changed this one.",
        ) from None


def decode_trusted(answer: TrustAnswered) -> dict[str, bytes]:
    """Raw public keys by name. Raises `Rejected` for what is no Ed25519 public key."""
    keys: dict[str, bytes] = {}
    for name, text in answer.keys.items():
        try:
            keys[name] = base64.b64decode(text, validate=True)
        except binascii.Error:
            keys[name] = b""
        if len(keys[name]) != KEY_BYTES:
            raise Rejected(f"the trusted key {name!r} is not base64 of {KEY_BYTES} bytes", param=name)
    return keys


def encode_trusted(keys: Mapping[str, bytes]) -> TrustAnswered:
    """The form in which public keys travel and are kept in a trust file."""
    return TrustAnswered({name: base64.b64encode(raw).decode() for name, raw in sorted(keys.items())})


def read_trusted(path: Path) -> dict[str, bytes]:
    """Read a trust file: `{"keys": {"<name>": "<base64 of 32 bytes>"}}`. Raises `Fatal` when it is missing or wrong."""
    try:
        return decode_trusted(msgspec.json.decode(path.read_bytes(), type=TrustAnswered))
    except OSError as error:
        raise Fatal(
            f"can't read the trust file {path}: {error.strerror}",
            remedy="Copy it from the vault's node (<data_dir>/trusted_keys.json), or correct LLMOS_TRUSTED_KEYS.",
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Rejected) as error:
        raise Fatal(
            f"the trust file {path} is not valid: {error}", remedy="Copy it again from the vault's node."
        ) from error


def write_trusted(path: Path, keys: Mapping[str, bytes]) -> None:
    """Write a trust file. A reader sees the old or the new one, never a part; the vault writes it at each start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(encode_trusted(keys)), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
