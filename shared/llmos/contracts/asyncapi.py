"""The AsyncAPI 3 description of the bus, generated from the table in `subjects.py`, for other systems.

Operations are written from llmos's side: it receives jobs, requests and calls, and sends facts, work and answers.
"""

from inspect import cleandoc, getdoc
from typing import Any

import msgspec
from msgspec import Struct

from llmos.contracts.inference import InferenceAnswered, InferenceDelta
from llmos.contracts.subjects import CALLS, COMMANDS, EVENTS, PROBLEM_TYPE, REPLIES, STREAMS, Call, Row
from llmos.errors import Problem

Json = dict[str, Any]
REF = "#/components/schemas/{name}"

# What the placeholders of a pattern stand for, by its first words.
TOKENS: dict[str, tuple[str, ...]] = {
    "llmos.evt": ("tenant", "id"),
    "llmos.job": ("tenant", "job"),
    "llmos.work": ("kind", "node", "task"),
    "llmos.infer": ("deployment", "class", "request"),
    "llmos.ctl.stop": ("task",),
    "llmos.ctl.cancel": ("request",),
    "llmos.ctl.keep": ("client",),
    "llmos.deploy": ("node", "deployment"),
    "llmos.dead": ("stream", "consumer"),
    "llmos.call": ("request",),
    "llmos.reply": ("client", "request"),
}
MEANINGS: dict[str, str] = {
    "tenant": "The tenant; `system` for facts that belong to none.",
    "id": "The job, task, node, model, deployment, … that the fact is about.",
    "job": "The job's id, chosen by who submits it.",
    "kind": "check, train or export.",
    "node": "The node.",
    "task": "The task's id.",
    "deployment": "The name under which a model is served.",
    "class": "interactive or batch.",
    "request": "The request's id, chosen by who asks; the last token of the answer's subject.",
    "stream": "The stream in which the message died.",
    "consumer": "The consumer that could not handle it.",
    "client": "A token of the asker's own: it subscribes to `llmos.reply.<client>.*` before it asks.",
}
RECEIVED = ("llmos.job", "llmos.infer", "llmos.ctl.cancel", "llmos.ctl.keep")  # commands that others send to llmos


def describe(version: str) -> Json:
    """The whole document, as plain values in a fixed order. `version` is the distribution's."""
    rows = [*COMMANDS, *EVENTS]
    channels: Json = {_name(row.pattern): _channel(row.pattern, row.stream, [row.type]) for row in rows}
    channels |= {_name(call.pattern): _channel(call.pattern, "CALL", [call.request]) for call in CALLS}
    channels["reply"] = _channel(REPLIES[0].pattern, "REPLY", [*(row.type for row in REPLIES), Problem])
    operations: Json = {}
    for row in rows:
        operations |= _operation(row)
    for call in CALLS:
        operations |= _call_operation(call)
    types = {row.type: row.ce_type for row in rows} | {call.request: call.ce_type for call in CALLS}
    messages: Json = {kind.__name__: _message(kind, ce_type) for kind, ce_type in types.items()}
    for kind in dict.fromkeys(row.type for row in REPLIES):
        said = [types[kind]] if kind in types else []  # a call may be answered with the fact that it led to
        messages[kind.__name__] = _message(kind, *said, *(row.ce_type for row in REPLIES if row.type is kind))
    messages[Problem.__name__] = _message(Problem, PROBLEM_TYPE)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "llmos",
            "version": version,
            "description": cleandoc(_INFO),
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "nats": {"host": "127.0.0.1:4222", "protocol": "nats", "description": "NATS 2.14+ with JetStream."}
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": _schemas([*types, *(row.type for row in REPLIES), Problem])},
        "x-streams": {name: msgspec.to_builtins(spec) | {"name": name} for name, spec in STREAMS.items()},
    }


_INFO = """
    The messages of llmos on NATS JetStream: JSON bodies, CloudEvents 1.0 attributes in the headers (binary mode).

    Every header is optional for who submits a job. `Nats-Msg-Id` (the same as `ce-id`) makes a repeated publish
    harmless. Unknown fields are ignored and new fields have defaults. Times are Unix seconds and sizes bytes, unless
    a field says otherwise.
"""


def _tokens(pattern: str) -> tuple[str, ...]:
    words = pattern.split(".")
    return TOKENS.get(".".join(words[:2])) or TOKENS[".".join(words[:3])]


def _name(pattern: str) -> str:
    return ".".join(word for word in pattern.split(".")[1:] if word != "*")


def _channel(pattern: str, stream: str, kinds: list[type[Struct]]) -> Json:
    tokens = iter(_tokens(pattern))
    words = [f"{{{next(tokens)}}}" if word == "*" else word for word in pattern.split(".")]
    names = dict.fromkeys(kind.__name__ for kind in kinds)
    return {
        "address": ".".join(words),
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "parameters": {token: {"description": MEANINGS[token]} for token in _tokens(pattern)},
        "x-stream": stream,
    }


def _operation(row: Row) -> Json:
    name = _name(row.pattern)
    received = row.pattern.startswith(RECEIVED)
    operation = _said("receive" if received else "send", name, row.type)
    if row.stream == "INFER":
        operation["reply"] = _reply(InferenceAnswered, InferenceDelta)
    return {f"{operation['action']}.{name}": operation}


def _call_operation(call: Call) -> Json:
    name = _name(call.pattern)
    return {f"receive.{name}": _said("receive", name, call.request) | {"reply": _reply(call.answer, Problem)}}


def _said(action: str, channel: str, kind: type[Struct]) -> Json:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": cleandoc(getdoc(kind) or "").split("\n\n")[0].replace("\n", " "),
        "messages": [{"$ref": f"#/channels/{channel}/messages/{kind.__name__}"}],
    }


def _reply(*kinds: type[Struct]) -> Json:
    messages = [{"$ref": f"#/channels/reply/messages/{kind.__name__}"} for kind in kinds]
    return {"channel": {"$ref": "#/channels/reply"}, "messages": messages}


def _message(kind: type[Struct], *ce_types: str) -> Json:
    """`ce_types` are several for an answer that several calls give."""
    headers: Json = {"type": "object", "properties": {"ce-type": {"type": "string", "enum": list(ce_types)}}}
    return {
        "name": ce_types[0] if len(ce_types) == 1 else kind.__name__,
        "title": kind.__name__,
        "contentType": "application/json",
        "headers": {"allOf": [{"$ref": REF.format(name="Headers")}, headers]},
        "payload": {"$ref": REF.format(name=kind.__name__)},
    }


def _schemas(kinds: list[type[Struct]]) -> Json:
    _, schemas = msgspec.json.schema_components(list(dict.fromkeys(kinds)), ref_template=REF)
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = cleandoc(schema["description"])
    return {"Headers": _HEADERS} | {name: schemas[name] for name in sorted(schemas)}


def _text(description: str, **more: Any) -> Json:
    return {"type": "string", "description": description, **more}


_HEADERS: Json = {
    "title": "Headers",
    "description": "CloudEvents 1.0 attributes, cause and trace, as NATS headers.",
    "type": "object",
    "properties": {
        "ce-specversion": _text("The version of CloudEvents.", const="1.0"),
        "ce-id": _text("The message's id; the same id is stored once."),
        "ce-source": _text("Who said it: `llmos/<service>/<node>`."),
        "ce-type": _text("The message's type; each answer and each fact has its own."),
        "ce-subject": _text("What it is about: the last token of the subject."),
        "ce-time": _text("When it was said.", format="date-time"),
        "ce-datacontenttype": _text("Always JSON.", const="application/json"),
        "ce-cause": _text("The id of the message that led to this one."),
        "ce-replyto": _text("The client token of the reply subject, on a call."),
        "traceparent": _text("W3C Trace Context."),
        "tracestate": _text("W3C Trace Context."),
        "Nats-Msg-Id": _text("The same as `ce-id`; a message that is published twice is stored once."),
    },
}
