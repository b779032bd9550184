"""One example of every message, the same each time: every field is set, and to something else than its default.

Golden files are made of them, so that a change of the wire format shows as a change of a file.
"""

import types
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from llmos.contracts import subjects
from llmos.contracts.envelope import Envelope
from llmos.errors import Problem

S = TypeVar("S", bound=Struct)
DIGEST = "sha256:" + "0123456789abcdef" * 4

# Texts by field name, where the name of the field itself would not do.
_TEXTS: dict[str, str] = {
    "artifact": DIGEST,
    "base": "hf:org/encoder@main",
    "data": "{}",
    "digest": DIGEST,
    "job": "j-1",
    "model": "tickets",
    "deployment": "tickets",
    "node": "node-1",
    "principal": "exporter/node-1",
    "task": "j-1-train",
    "tenant": "acme",
    "test": "file:///data/test.jsonl",
    "train": "file:///data/train.jsonl",
    "validation": "file:///data/validation.jsonl",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}


def example(kind: type[S]) -> S:
    """The example of a Struct."""
    hints = get_type_hints(kind)
    return kind(**{field.name: _value(hints[field.name], field) for field in msgspec.structs.fields(kind)})


def _value(kind: Any, field: msgspec.structs.FieldInfo) -> Any:
    default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
    return next(value for value in _candidates(kind, field.name) if value != default)


def _candidates(kind: Any, name: str) -> list[Any]:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _candidates(next(arg for arg in args if arg is not types.NoneType), name)
    if origin is Literal:
        return list(args)
    if origin is list:
        inside = get_args(args[0]) if get_origin(args[0]) is types.UnionType else args[:1]
        return [[_candidates(kind, name)[0] for kind in inside]]
    if origin is dict:
        return [{"key" if args[1] in (str, Any) else "accuracy": _candidates(args[1], name)[0]}]
    if isinstance(kind, type) and issubclass(kind, Struct):
        return [example(kind)]
    simple: dict[Any, list[Any]] = {
        str: [_TEXTS.get(name, name), f"another-{name}"],
        int: [3, 4],
        float: [0.5, 0.25],
        bool: [True, False],
        Any: [name],
        bytes: [b"bytes"],
        datetime: [datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)],
    }
    return simple[kind]


class Said(Struct, frozen=True):
    """A message as it travels: its subject, its headers, its body."""

    subject: str
    headers: dict[str, str]
    body: Struct


def every_message() -> dict[str, Said]:
    """`ce-type` → the example of that message, for every row of the table."""
    said: dict[str, Said] = {}
    for row in (*subjects.COMMANDS, *subjects.EVENTS, *subjects.REPLIES):
        body = example(row.type)
        said[row.ce_type] = _said(
            subjects.event_subject(body) if row.stream == "EVENTS" else row.pattern, row.ce_type, body
        )
    for call in subjects.CALLS:
        said[call.ce_type] = _said(call.pattern, call.ce_type, example(call.request))
    said[subjects.PROBLEM_TYPE] = _said("llmos.reply.*.*", subjects.PROBLEM_TYPE, example(Problem))
    return said


def _said(pattern: str, ce_type: str, body: Struct) -> Said:
    subject = pattern.replace("*", "x")
    envelope = Envelope(
        id="0000000000000000a",
        source="llmos/example/node-1",
        type=ce_type,
        subject=subject.rsplit(".", 1)[-1],
        time="2030-01-02T03:04:05.000000Z",
        cause="00000000000000009",
        traceparent=_TEXTS["traceparent"],
    )
    return Said(subject, envelope.to_headers() | {"Nats-Msg-Id": envelope.id}, body)
