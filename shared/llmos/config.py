"""Configuration: a frozen struct per service, read from the environment and one TOML file.

The environment (`LLMOS_<FIELD>`) wins over the file's `[<section>]`, which wins over the file's top level.
A bad value is named, with the place it came from and the remedy.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llmos.errors import Fatal

T = TypeVar("T", bound=msgspec.Struct)
PREFIX = "LLMOS_"


def load(kind: type[T], *, section: str, env: Mapping[str, str] | None = None, file: Path | None = None) -> T:
    """Build `kind` from the environment and a TOML file (`LLMOS_CONFIG` unless `file` is given).

    Lists are separated by commas, or by colons for paths. Raises `Fatal` naming the first bad value.
    """
    env = os.environ if env is None else env
    file = file or (Path(env["LLMOS_CONFIG"]) if env.get("LLMOS_CONFIG") else None)
    table = _read(file) if file else {}
    merged = {key: value for key, value in table.items() if not isinstance(value, dict)} | table.get(section, {})
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        name = PREFIX + field.name.upper()
        if name in env:
            raw, where = _split(env[name], field.type), name
        elif field.name in merged:
            raw, where = merged[field.name], f"{file}: {field.name}"
        else:
            continue
        try:
            values[field.name] = msgspec.convert(raw, field.type, strict=False, dec_hook=_decode)
        except msgspec.ValidationError as error:
            raise Fatal(
                f"{where}={raw!r} is not valid: {error}", remedy=f"Set {name} to a {_name(field.type)}."
            ) from error
    try:
        return kind(**values)
    except TypeError as error:
        missing = str(error).rsplit("'", 2)[-2]
        raise Fatal(f"the setting {missing!r} is missing", remedy=f"Set {PREFIX}{missing.upper()}.") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise Fatal(f"can't read the configuration {file}: {error.strerror}", remedy="Correct LLMOS_CONFIG.") from error
    except tomllib.TOMLDecodeError as error:
        raise Fatal(f"{file} is not valid TOML: {error}", remedy="Correct the file.") from error


def _split(text: str, kind: Any) -> Any:
    origin = getattr(kind, "__origin__", None)
    if origin in (list, tuple):
        separator = os.pathsep if Path in kind.__args__ else ","
        return [part for part in (piece.strip() for piece in text.split(separator)) if part]
    if origin is dict:
        return dict(part.strip().split("=", 1) for part in text.split(",") if "=" in part)
    return text


def _decode(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    raise msgspec.ValidationError(f"expected {_name(kind)}, got {type(value).__name__}")


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))
