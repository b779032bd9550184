"""Keys at work: sealing files, wrapping keys under a root key, and handing a key to one recipient.

The only module that imports Tink. Nothing here talks to a service: with a keyset from `new_streaming_keyset` files
can be sealed without a vault.
"""

import base64
import binascii
import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import tink
from tink import aead, hybrid, proto_keyset_format, secret_key_access, streaming_aead
from tink.proto import aes_gcm_pb2, tink_pb2

from llmos.errors import Rejected

ROOT_KEY_BYTES = 32
_CHUNK = 1 << 20

streaming_aead.register()
hybrid.register()
aead.register()


def new_streaming_keyset() -> bytes:
    """A fresh data key for files: Tink AES256_GCM_HKDF_1MB, as a binary keyset in the clear. Secret."""
    handle = tink.new_keyset_handle(streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB)
    return bytes(proto_keyset_format.serialize(handle, secret_key_access.TOKEN))


class StreamingCipher:
    """Seals and unseals files with one version of a tenant's data key; `name` is `<tenant>/<key version>`.

    A sealed file is 56 bytes longer than its source, and 16 more for each MiB. `context` is bound to it: a file
    sealed under one context (a path in an artifact, say) can't be passed off as another. Memory stays below 40 MiB
    at any size. The destination appears whole or not at all: it is written beside its place, verified to the last byte,
    fsynced and renamed, because a decrypting stream gives plaintext out before it can notice that the end is missing.
    """

    def __init__(self, name: str, keyset: bytes) -> None:
        """Raises `Rejected` when `keyset` is no streaming keyset."""
        self.name = name
        try:
            handle = proto_keyset_format.parse(keyset, secret_key_access.TOKEN)
            self._aead = handle.primitive(streaming_aead.StreamingAead)
        except tink.TinkError:  # its message may quote the keyset
            raise Rejected(f"the data key {name} is no Tink streaming keyset", remedy="Ask the vault again.") from None

    def __repr__(self) -> str:
        return f"StreamingCipher({self.name!r})"

    def seal(self, source: Path, dest: Path, context: bytes) -> None:
        """Encrypt `source` to `dest`. When it returns, `dest` is on the disk. Raises `OSError`."""
        with source.open("rb") as plain, _appearing(dest) as sealed:
            try:
                with self._aead.new_encrypting_stream(sealed, context) as stream:
                    _copy(plain, stream)
            except tink.TinkError:
                if sealed.failure is None:
                    raise
                raise sealed.failure from None

    def unseal(self, source: Path, dest: Path, context: bytes) -> None:
        """Decrypt `source` to `dest`. When it returns, `dest` is verified and on the disk.

        Raises `Rejected` when `source` was cut, changed, reordered, or sealed under another key or context, and
        `OSError`; then `dest` is as it was before.
        """
        with _File(source, "rb") as sealed, _appearing(dest) as plain:
            try:
                with self._aead.new_decrypting_stream(sealed, context) as stream:
                    _copy(stream, plain)
            except tink.TinkError:
                if sealed.failure is not None:
                    raise sealed.failure from None
                raise Rejected(
                    f"{source.name} can't be unsealed with {self.name}: it is damaged or was sealed for something else",
                    remedy="Fetch it again; if that fails too, the stored copy is damaged: make the artifact again.",
                ) from None


class Recipient:
    """A fresh key pair to which a secret can be sealed once (HPKE: X25519, HKDF-SHA256, AES-256-GCM; RFC 9180)."""

    def __init__(self) -> None:
        template = hybrid.hybrid_key_templates.DHKEM_X25519_HKDF_SHA256_HKDF_SHA256_AES_256_GCM
        handle = tink.new_keyset_handle(template)
        self._decrypt = handle.primitive(hybrid.HybridDecrypt)
        self.public = bytes(proto_keyset_format.serialize_without_secret(handle.public_keyset_handle()))

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """The secret in `sealed`. Raises `Rejected` when it was sealed for another recipient or context."""
        try:
            return bytes(self._decrypt.decrypt(sealed, context))
        except tink.TinkError:
            raise Rejected("the answer was not sealed for this request", remedy="Ask the vault again.") from None


def seal_to(recipient: bytes, secret: bytes, context: bytes) -> bytes:
    """Seal `secret` to a `Recipient.public`, bound to `context`. Raises `Rejected` for what is no public keyset."""
    try:
        handle = proto_keyset_format.parse_without_secret(recipient)
        return bytes(handle.primitive(hybrid.HybridEncrypt).encrypt(secret, context))
    except tink.TinkError:
        raise Rejected(
            "the recipient is no public keyset for hybrid encryption",
            remedy="Send `Recipient().public` of llmos.sealing, base64.",
            param="recipient",
        ) from None


class RootKey:
    """A 256-bit root key that wraps other keys (AES-256-GCM with random nonces; at most 2^32 wraps)."""

    def __init__(self, key: bytes) -> None:
        """Raises `Rejected` unless `key` has 32 bytes."""
        if len(key) != ROOT_KEY_BYTES:
            raise Rejected(f"a root key has {ROOT_KEY_BYTES} bytes, this one has {len(key)}")
        keyset = tink_pb2.Keyset(primary_key_id=1)
        entry = keyset.key.add(key_id=1, status=tink_pb2.ENABLED, output_prefix_type=tink_pb2.RAW)
        entry.key_data.type_url = "type.googleapis.com/google.crypto.tink.AesGcmKey"
        entry.key_data.value = aes_gcm_pb2.AesGcmKey(key_value=key).SerializeToString()
        entry.key_data.key_material_type = tink_pb2.KeyData.SYMMETRIC
        handle = proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
        self._aead = handle.primitive(aead.Aead)

    @classmethod
    def from_text(cls, text: str) -> "RootKey":
        """Read what a file holds: base64 of 32 bytes, as `openssl rand -base64 32` prints. Raises `Rejected`."""
        try:
            return cls(base64.b64decode(text.strip(), validate=True))
        except binascii.Error:
            raise Rejected("the root key is not base64", remedy="Make one by `openssl rand -base64 32`.") from None

    @staticmethod
    def new_text() -> str:
        """A fresh root key in the form that is kept in a file. Secret."""
        return base64.b64encode(secrets.token_bytes(ROOT_KEY_BYTES)).decode() + "\n"

    def __repr__(self) -> str:
        return "RootKey(…)"

    def wrap(self, secret: bytes, context: str) -> bytes:
        """Encrypt `secret`, bound to `context` (the name under which it will be stored)."""
        return bytes(self._aead.encrypt(secret, context.encode()))

    def unwrap(self, wrapped: bytes, context: str) -> bytes:
        """The secret again. Raises `Rejected` when the root key, the context or the wrapped bytes are not the same."""
        try:
            return bytes(self._aead.decrypt(wrapped, context.encode()))
        except tink.TinkError:
            raise Rejected(f"{context} was not wrapped by this root key, or was changed") from None


class _File(io.FileIO):
    """A file that remembers why it failed: Tink turns every failure below it into an error of its own."""

    failure: OSError | None = None

    def read(self, size: int | None = -1, /) -> Any:
        try:
            return super().read(size)
        except OSError as error:
            self.failure = error
            raise

    def write(self, data: Any, /) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


@contextmanager
def _appearing(dest: Path) -> Iterator[_File]:
    """A file to write that becomes `dest`, durable, when the block ends well, and disappears when it does not."""
    part = dest.with_name(f".{dest.name}.{secrets.token_hex(8)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            with _File(os.dup(descriptor), "wb") as file:  # Tink closes it; the descriptor stays for fsync
                yield file
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(dest)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_directory(dest.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(source: BinaryIO, dest: BinaryIO) -> None:
    """Copy to the end, which is where a decrypting stream says whether it was whole."""
    read: Callable[[int], bytes] = source.read
    while chunk := read(_CHUNK):
        view = memoryview(chunk)
        while view:
            view = view[dest.write(view) :]
