"""Signed notes and the checkpoints of transparency logs (C2SP signed-note, tlog-checkpoint; Ed25519 only).

A checkpoint is a log's name, its size and its root hash, signed by the log. Keys travel in the text form of Go's
`golang.org/x/mod/sumdb/note`, so that other implementations verify what is signed here.
"""

import base64
import re
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Struct

from llmos.errors import Rejected

_ED25519 = b"\x01"  # signed-note's signature type
_SIGNATURE = re.compile("— ([^ +\n]+) ([A-Za-z0-9+/=]+)\n")
_SIZE_LIMIT = 64 << 10  # bytes of a note; 16 signatures take 2 KiB
_KEY_FORM = "Use the line that the log wrote beside its key: <name>+<8 hex digits>+<base64>."
_NOTE_ALTERED = "The note was altered, or this is not the key of its log."
_KEY_LOST = "Restore it; never make a new key for an old log."


def _key_id(name: str, public: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def _check_name(name: str) -> None:
    if not name or "+" in name or any(char.isspace() or not char.isprintable() for char in name):
        raise Rejected(f"{name!r} can't name a log", remedy="Use a name without spaces and '+', such as llmos/node-1.")


class VerifierKey(Struct, frozen=True):
    """A log's public key and name; as text `<name>+<key id>+<base64 of type and key>`."""

    name: str
    public: bytes

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Read the text form. Raises `Rejected`."""
        try:
            name, key_id, encoded = text.strip().split("+", 2)
            data = _from_base64(encoded)
        except ValueError as error:
            raise Rejected("this is no verifier key", remedy=_KEY_FORM, param="verifier_key") from error
        key = cls(name, data[1:])
        if data[:1] != _ED25519 or len(data) != 33 or key_id != _key_id(name, key.public).hex():
            raise Rejected(f"the verifier key of {name!r} is damaged", remedy=_KEY_FORM, param="verifier_key")
        return key

    def __str__(self) -> str:
        encoded = base64.b64encode(_ED25519 + self.public).decode()
        return f"{self.name}+{_key_id(self.name, self.public).hex()}+{encoded}"


class SigningKey:
    """A log's private key. Its text form, `PRIVATE+KEY+<name>+<key id>+<base64>`, is a secret."""

    def __init__(self, name: str, seed: bytes) -> None:
        _check_name(name)
        self._seed = seed
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.verifier = VerifierKey(name, self._private.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, name: str) -> "SigningKey":
        """A fresh key."""
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> "SigningKey":
        """Read the text form. Raises `Rejected`, without showing the text."""
        try:
            _private, _key, name, key_id, encoded = text.strip().split("+", 4)
            data = _from_base64(encoded)
            key = cls(name, data[1:])
        except ValueError:
            raise Rejected("the file holds no signing key", remedy=_KEY_LOST) from None
        if data[:1] != _ED25519 or key_id != _key_id(name, key.verifier.public).hex():
            raise Rejected(f"the signing key of {name!r} is damaged", remedy=_KEY_LOST)
        return key

    def to_text(self) -> str:
        """The secret text form."""
        name = self.verifier.name
        encoded = base64.b64encode(_ED25519 + self._seed).decode()
        return f"PRIVATE+KEY+{name}+{_key_id(name, self.verifier.public).hex()}+{encoded}"

    def sign(self, text: str) -> str:
        """The signed note of `text`, which ends in a newline."""
        signature = _key_id(self.verifier.name, self.verifier.public) + self._private.sign(text.encode())
        return f"{text}\n— {self.verifier.name} {base64.b64encode(signature).decode()}\n"


class Checkpoint(Struct, frozen=True):
    """A log's name, how many entries it has, and the root hash over them."""

    origin: str
    size: int
    root: bytes

    def to_text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """Read a checkpoint's text, with or without signatures, which are *not* verified. Raises `Rejected`."""
        lines = text.split("\n")
        try:
            origin, size, encoded = lines[:3]
            root = _from_base64(encoded)
        except ValueError as error:
            raise _no_checkpoint() from error
        if len(lines) < 4 or not origin or not re.fullmatch(r"0|[1-9][0-9]{0,18}", size, re.ASCII) or len(root) != 32:
            raise _no_checkpoint()
        return cls(origin, int(size), root)


def _no_checkpoint() -> Rejected:
    return Rejected("this is no checkpoint of a log", remedy="A checkpoint is three lines: name, size and root.")


def open_note(note: str, key: VerifierKey) -> str:
    """The text of a note, its signature by `key` verified. Raises `Rejected` if there is none or it does not fit."""
    text, blank, signatures = note.rpartition("\n\n")
    if not blank or len(note) > _SIZE_LIMIT or not re.fullmatch(f"(?:{_SIGNATURE.pattern})+", signatures):
        raise Rejected("this is no signed note", remedy="A note is text, a blank line, and signature lines.")
    text += "\n"
    verified = False
    for name, encoded in _SIGNATURE.findall(signatures):
        try:
            data = _from_base64(encoded)
        except ValueError as error:
            raise Rejected("a signature of the note is not base64", remedy=_NOTE_ALTERED) from error
        if name != key.name or data[:4] != _key_id(key.name, key.public):
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key.public).verify(data[4:], text.encode())
        except InvalidSignature:
            raise Rejected(f"the signature of {name} does not fit the note", remedy=_NOTE_ALTERED) from None
        verified = True
    if not verified:
        raise Rejected(f"the note is not signed by {key}", remedy=_NOTE_ALTERED)
    return text


def _from_base64(text: str) -> bytes:
    """Decode; one value has one text. Raises `ValueError`."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("base64 with stray bits")
    return data


def open_checkpoint(note: str, key: VerifierKey) -> Checkpoint:
    """The checkpoint in a note signed by `key`, which is also the log's name. Raises `Rejected`."""
    checkpoint = Checkpoint.parse(open_note(note, key))
    if checkpoint.origin != key.name:
        raise Rejected(f"the checkpoint is of the log {checkpoint.origin}, not {key.name}")
    return checkpoint
