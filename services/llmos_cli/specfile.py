"""Read a job spec from YAML or JSON, knowing the line of every field. Pure: text in, values and faults out.

YAML is read with the core schema of YAML 1.2: `5e-5` is a number, `no` and `2026-01-01` are text.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from msgspec import Struct
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmos.contracts.jobs import Fault
from llmos.errors import Rejected


class SpecFile(Struct, frozen=True):
    """A spec as plain values, and the 1-based line of each field path (`train.epochs`, `data`)."""

    name: str
    spec: dict[str, Any]
    lines: dict[str, int]

    def locate(self, faults: Iterable[Fault]) -> list[str]:
        """Faults with the lines that they are about, in the file's order: `job.yaml:7: train.epochs: …`."""
        ordered = sorted(faults, key=self._line)
        return [f"{self.name}:{self._line(fault)}: {fault}" for fault in ordered]

    def _line(self, fault: Fault) -> int:
        """The line of the field, or of the nearest one above it."""
        path = fault.path
        while path and path not in self.lines:
            path = path.rpartition(".")[0]
        return self.lines.get(path, 1)


class _Loader(yaml.SafeLoader):
    """`SafeLoader` with the core schema of YAML 1.2; doubled keys and aliases (which can recurse) are refused."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not used in a spec", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),  # JSON has no inf, nan
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def _int(loader: yaml.SafeLoader, node: ScalarNode) -> int:
    return int(node.value, 0) if node.value[:2] in ("0x", "0o") else int(node.value)


def _float(loader: yaml.SafeLoader, node: ScalarNode) -> float:
    return float(node.value)


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def read_spec(text: str, name: str, *, as_json: bool = False, what: str = "a job spec") -> SpecFile:
    """Parse one mapping, such as a job spec. Raises `Rejected` that names the file, the line and the column."""
    try:
        node = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        if not as_json:
            raise _wrong_yaml(name, error) from error
        node = None  # tabs and the like: JSON that is no YAML; it only has no line numbers
    except yaml.YAMLError as error:
        raise Rejected(f"{name}: {error}", remedy="Save the file as UTF-8 text.") from error
    if as_json:
        value = _read_json(text, name)
    else:
        try:
            value = yaml.load(text, _Loader)
        except yaml.MarkedYAMLError as error:
            raise _wrong_yaml(name, error) from error
    if not isinstance(value, dict):
        remedy = "Start with `queues:`." if "queues" in what else "Start with `name: …`."
        raise Rejected(f"{name}: {what} is a mapping of fields, not {_kind(value)}", remedy=remedy)
    return SpecFile(name, value, dict(_lines(node, "")) if node is not None else {})


def _read_json(text: str, name: str) -> Any:
    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise Rejected(f"{name}: {key!r} is given twice", remedy="Keep one of the two.")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise Rejected(f"{name}:{error.lineno}:{error.colno}: {error.msg}", remedy="Correct the JSON there.") from error


def _wrong_yaml(name: str, error: yaml.MarkedYAMLError) -> Rejected:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    what = ", ".join(part for part in (error.context, error.problem) if part)
    return Rejected(f"{where}: {what}", remedy="Correct the YAML there.")


def _kind(value: object) -> str:
    names: dict[type, str] = {list: "a list", str: "text", type(None): "empty"}
    return names.get(type(value), type(value).__name__)


def _lines(node: Node, path: str) -> Iterable[tuple[str, int]]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            inner = f"{path}.{key.value}" if path else str(key.value)
            yield inner, key.start_mark.line + 1
            yield from _lines(value, inner)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            inner = f"{path}[{index}]"
            yield inner, value.start_mark.line + 1
            yield from _lines(value, inner)


def override(spec: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A copy of `spec` with `key=value` applied: `train.epochs=1`, `gate.accuracy.min=0.9`; the value is YAML.

    Raises `Rejected` for a setting without `=`, and for a path that runs through a value that has no fields.
    """
    changed: dict[str, Any] = json.loads(json.dumps(spec))
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise Rejected(f"--set {setting!r} is not key=value", remedy="Write for example --set train.epochs=1.")
        try:
            value = yaml.load(text, _Loader)
        except yaml.MarkedYAMLError as error:
            raise _wrong_yaml(f"--set {path}", error) from error
        place = changed
        for depth, key in enumerate(keys[:-1]):
            inner = place.setdefault(key, {})
            if inner is None:
                inner = place[key] = {}
            if not isinstance(inner, dict):
                raise Rejected(f"--set {path}: {'.'.join(keys[: depth + 1])} has no fields", remedy="Correct the path.")
            place = inner
        place[keys[-1]] = value
    return changed
