"""Identifiers that sort by creation time and are safe as a NATS subject token."""

import re
import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base32, lower case
_TOKEN = re.compile(r"[A-Za-z0-9_\-]{1,128}")


def new_id(prefix: str = "") -> str:
    """Return `prefix-` plus 9 characters of millisecond time and 8 random ones (40 bits)."""
    value = (time.time_ns() // 1_000_000) << 40 | secrets.randbits(40)
    digits = "".join(_ALPHABET[(value >> shift) & 31] for shift in range(80, -1, -5))
    return f"{prefix}-{digits}" if prefix else digits


def is_token(text: str) -> bool:
    """Whether `text` may stand as one token of a subject: letters, digits, `_` and `-`, 1–128 of them."""
    return _TOKEN.fullmatch(text) is not None
