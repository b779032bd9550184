"""Files that a spec on this machine refers to: found beside the spec, and put where the stack can read them."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from llmos.contracts.jobs import Fault
from llmos.contracts.references import SCHEMES, parse
from llmos.errors import Rejected

FIELDS = ("model.base", "data.train", "data.validation", "data.test")
_DATA_SUFFIXES = {".jsonl", ".ndjson", ".csv", ".parquet"}


def find_local(spec: Mapping[str, Any], folder: Path) -> tuple[dict[str, Path], list[Fault]]:
    """Field path → the file or directory of this machine that it names, and the faults of those that name none.

    A relative path counts from `folder`, where the spec lies. `file://` references to nothing are `find_absent`'s.
    """
    found: dict[str, Path] = {}
    faults: list[Fault] = []
    for field, text in _references(spec):
        if (path := _path(text, folder)) is None:
            continue
        if path.exists():
            found[field] = path.resolve()
        elif not text.startswith("file:") and _looks_like_a_path(text):
            faults.append(Fault(field, f"there is no file {path}"))
    return found, faults


def find_absent(spec: Mapping[str, Any]) -> list[Fault]:
    """`file://` references that name nothing on this machine: they may be files of the node that will run the job."""
    paths = ((field, _path(text, Path())) for field, text in _references(spec) if text.startswith("file:"))
    return [Fault(field, f"there is no file {path}") for field, path in paths if path is not None and not path.exists()]


def _references(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field in FIELDS:
        section, name = field.split(".")
        inner = spec.get(section)
        if isinstance(inner, dict) and isinstance(inner.get(name), str):
            yield field, inner[name]


def _path(text: str, folder: Path) -> Path | None:
    scheme = text.partition(":")[0]
    if scheme == "file":
        try:
            return Path(parse(text).name)
        except Rejected:
            return None
    return None if not text or (":" in text and scheme in SCHEMES) else folder / Path(text).expanduser()


def _looks_like_a_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or Path(text).suffix.lower() in _DATA_SUFFIXES


def replace(spec: Mapping[str, Any], references: Mapping[str, str]) -> dict[str, Any]:
    """A copy of the spec with new references: field path → text."""
    changed: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(spec))
    for field, text in references.items():
        section, name = field.split(".")
        changed[section][name] = text
    return changed


async def upload(found: Mapping[str, Path], put: Callable[[Path], Awaitable[str]]) -> dict[str, str]:
    """Store every file once; field path → its artifact."""
    stored = {path: await put(path) for path in sorted(set(found.values()))}
    return {field: stored[path] for field, path in found.items()}


def name_files(faults: list[Fault], stored: Mapping[str, Path]) -> list[Fault]:
    """Faults of the stored files, under the names that the files have here; `stored`: reference → file."""
    return [
        msgspec.structs.replace(fault, path=str(stored[fault.path])) if fault.path in stored else fault
        for fault in faults
    ]
