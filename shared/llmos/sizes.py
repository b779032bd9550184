"""Amounts of bytes as people write them: `2GiB` in a spec or a setting, and back again for messages."""

import re
from functools import lru_cache

from llmos.errors import Fatal, Rejected

LARGEST = 2**60
_UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40,
}  # fmt: skip
_QUANTITY = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]{0,3})\s*", re.ASCII)


@lru_cache(4096)  # a scheduler reads the same amounts again and again
def parse_bytes(value: int | str) -> int:
    """Bytes of `2147483648`, `2GiB`, `2Gi`, `2G` (all binary) or `2GB` (decimal). Raises `Rejected`."""
    if isinstance(value, int):
        amount = value
    else:
        found = _QUANTITY.fullmatch(value)
        unit = _UNITS.get(found[2].upper()) if found else None
        if found is None or unit is None:
            raise Rejected(
                f"{value[:64]!r} is no amount of bytes", remedy="Write bytes, or a number and a unit: 512MiB, 2GiB"
            )
        amount = round(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit
    if not 0 <= amount <= LARGEST:
        raise Rejected(f"{value!r} lies outside 0 to {LARGEST} bytes")
    return amount


def parse_setting(text: str, name: str) -> int:
    """Bytes of the setting `LLMOS_<NAME>`. Raises `Fatal` that names it."""
    try:
        return parse_bytes(text)
    except Rejected as error:
        raise Fatal(f"LLMOS_{name.upper()}: {error.problem.message}", remedy=error.problem.remedy) from None


def format_bytes(amount: int) -> str:
    """`2GiB`, `1.5GiB`, `256MiB`: the largest binary unit that leaves a number of at least 1."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(amount) >= size:
            return f"{round(amount / size, 1):g}{unit}"
    return f"{amount}B"
