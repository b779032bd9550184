"""The contracts: what is generated from them is fresh, and an older or a newer peer's message still decodes."""

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import jsonschema
import msgspec
import pytest
import yaml
from msgspec import Struct

import llmos.contracts
from llmos.contracts import subjects
from llmos.contracts.__main__ import ASYNCAPI, asyncapi_text, golden_text
from llmos.testing.examples import Said, every_message

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
REGENERATE = "stale: run `python -m llmos.contracts tests/contracts/golden`, and read the difference"
MESSAGES = every_message()

# Structs of the contracts that never travel as a message or in one, and where they are instead.
ELSEWHERE = {
    "Heartbeat": "KV nodes",
    "CheckpointPointer": "KV state",
    "GangMeeting": "KV state",
    "SnapshotPointer": "KV state",
    "LeaderLease": "KV lease",
    "ModelRecord": "KV models",
    "SequenceGap": "text of an audit entry",
    "StreamRemade": "text of an audit entry",
    "Envelope": "headers",
    "Reference": "parsed from a text",
    "ServingContract": "a file of an artifact",
    "ImageInput": "a file of an artifact",
    "AudioInput": "a file of an artifact",
    "Generation": "a file of an artifact",
    "Cache": "a file of an artifact",
    "StreamSpec": "the table",
    "BucketSpec": "the table",
    "Row": "the table",
    "Call": "the table",
}


def kinds() -> dict[str, type[Struct]]:
    return {ce_type: type(said.body) for ce_type, said in MESSAGES.items()}


@pytest.mark.parametrize("ce_type", MESSAGES)
def test_the_golden_file_of_a_message_is_what_is_sent_today(ce_type: str) -> None:
    file = GOLDEN / f"{ce_type}.json"
    assert file.exists(), REGENERATE
    assert file.read_text() == golden_text(MESSAGES[ce_type]), REGENERATE


def test_there_is_no_golden_file_of_a_message_that_does_not_exist() -> None:
    assert {file.stem for file in GOLDEN.glob("*.json")} == set(MESSAGES), REGENERATE


def test_the_asyncapi_document_is_fresh() -> None:
    assert ASYNCAPI.read_text() == asyncapi_text(), REGENERATE


@pytest.mark.parametrize("ce_type", MESSAGES)
def test_a_golden_message_decodes_to_what_was_sent(ce_type: str) -> None:
    body = json.dumps(json.loads((GOLDEN / f"{ce_type}.json").read_text())["body"])
    assert msgspec.json.decode(body, type=kinds()[ce_type]) == MESSAGES[ce_type].body


Put = Callable[[Any], Any]  # the whole message, with something else in one place of it


def older(kind: Any, whole: Any) -> Iterator[Any]:
    """Every form of a message with one optional field left out, at any depth."""
    for struct, value, put in places(kind, whole, lambda new: new):
        for field in msgspec.structs.fields(struct):
            if not field.required and field.name in value:
                yield put({name: each for name, each in value.items() if name != field.name})


def newer(kind: Any, whole: Any) -> Iterator[Any]:
    """Every form of a message with one unknown field more, at any depth."""
    for _struct, value, put in places(kind, whole, lambda new: new):
        yield put({"x_new": "text"} | value)
        yield put({"x_new": {"deep": [1, None]}} | value)


def places(kind: Any, value: Any, put: Put) -> Iterator[tuple[type[Struct], dict[str, Any], Put]]:
    """Every object of `value` that is a Struct, its class, and how to put another one in its place."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        yield kind, value, put
        hints = get_type_hints(kind)
        for name, inside in value.items():
            yield from places(hints[name], inside, partial(_put_into, put, value, name))
    elif get_origin(kind) is list:
        for at, inside in enumerate(value):
            yield from places(get_args(kind)[0], inside, partial(_put_into, put, value, at))
    elif get_origin(kind) is dict:
        for name, inside in value.items():
            yield from places(get_args(kind)[1], inside, partial(_put_into, put, value, name))
    elif isinstance(value, dict):  # a Struct or something else (None, text, any object)
        for arg in get_args(kind):
            if isinstance(arg, type) and issubclass(arg, Struct):
                yield from places(arg, value, put)


def _put_into(put: Put, holder: Any, at: Any, new: Any) -> Any:
    other = holder.copy()
    other[at] = new
    return put(other)


@pytest.mark.parametrize("ce_type", MESSAGES)
def test_an_older_message_that_lacks_an_optional_field_decodes(ce_type: str) -> None:
    kind = kinds()[ce_type]
    body = msgspec.to_builtins(MESSAGES[ce_type].body)
    forms = list(older(kind, body))
    optional = [field for field in msgspec.structs.fields(kind) if not field.required]
    assert len(forms) >= len(optional)
    for form in forms:
        assert isinstance(msgspec.json.decode(msgspec.json.encode(form), type=kind), kind)


@pytest.mark.parametrize("ce_type", MESSAGES)
def test_a_newer_message_with_an_unknown_field_decodes_to_what_is_known(ce_type: str) -> None:
    kind = kinds()[ce_type]
    body = MESSAGES[ce_type].body
    forms = list(newer(kind, msgspec.to_builtins(body)))
    assert forms
    for form in forms:
        assert msgspec.json.decode(msgspec.json.encode(form), type=kind) == body


def contract_structs() -> dict[str, type[Struct]]:
    names = [info.name for info in pkgutil.iter_modules(llmos.contracts.__path__) if info.name != "__main__"]
    modules = [importlib.import_module(f"llmos.contracts.{name}") for name in names]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Struct) and value.__module__ == module.__name__
    }


def test_every_struct_that_travels_is_in_the_table_or_part_of_one_that_is() -> None:
    _, schemas = msgspec.json.schema_components(list(dict.fromkeys(kinds().values())))
    assert set(contract_structs()) - set(schemas) == set(ELSEWHERE)


def test_every_field_of_a_message_has_a_plain_name() -> None:
    for name, struct in contract_structs().items():
        for field in msgspec.structs.fields(struct):
            assert field.encode_name == field.name, f"{name}.{field.name}"


def matches(pattern: str, subject: str) -> bool:
    words, tokens = pattern.split("."), subject.split(".")
    return len(words) == len(tokens) and all(word in ("*", token) for word, token in zip(words, tokens, strict=True))


@pytest.mark.parametrize("ce_type", MESSAGES)
def test_every_subject_is_kept_by_exactly_one_stream(ce_type: str) -> None:
    subject = MESSAGES[ce_type].subject
    streams = [s.name for s in subjects.STREAMS.values() if any(matches(pattern, subject) for pattern in s.subjects)]
    rows = [row for row in (*subjects.EVENTS, *subjects.COMMANDS, *subjects.REPLIES) if row.ce_type == ce_type]
    expected = rows[0].stream if rows else "REPLY" if ce_type == subjects.PROBLEM_TYPE else "CALL"
    assert streams == [expected]


def test_every_event_is_found_by_its_subject_and_filtered_by_its_pattern() -> None:
    for row in subjects.EVENTS:
        said = MESSAGES[row.ce_type]
        assert subjects.event_type(said.subject) is row.type
        assert matches(row.pattern, said.subject)
        assert matches(subjects.event_filter(row.type), said.subject)


def test_no_two_messages_share_a_type() -> None:
    rows = [row.ce_type for row in (*subjects.EVENTS, *subjects.COMMANDS, *subjects.REPLIES)]
    rows += [call.ce_type for call in subjects.CALLS]
    assert len(rows) == len(set(rows))
    assert len({row.type for row in subjects.EVENTS}) == len(subjects.EVENTS)


@pytest.fixture(scope="module")
def document() -> Any:
    return yaml.safe_load(ASYNCAPI.read_text())


def test_the_document_is_valid_asyncapi(document: Any) -> None:
    schema = json.loads((HERE / "asyncapi-3.0.0.schema.json").read_text())
    errors = [
        f"{'/'.join(map(str, e.path))}: {e.message}" for e in jsonschema.Draft7Validator(schema).iter_errors(document)
    ]
    assert not errors


def test_the_schema_of_asyncapi_finds_a_fault(document: Any) -> None:
    schema = json.loads((HERE / "asyncapi-3.0.0.schema.json").read_text())
    broken = document | {"operations": {"send.x": {"action": "shout", "channel": {"$ref": "#/channels/work"}}}}
    assert not jsonschema.Draft7Validator(schema).is_valid(broken)


def test_every_reference_of_the_document_leads_somewhere(document: Any) -> None:
    for reference in references(document):
        place = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in place, reference
            place = place[part]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_channel_has_a_parameter_for_every_placeholder_and_every_message_of_the_table(document: Any) -> None:
    described = set()
    for channel in document["channels"].values():
        placeholders = {word[1:-1] for word in channel["address"].split(".") if word.startswith("{")}
        assert placeholders == set(channel["parameters"])
        described |= set(channel["messages"])
    assert described == {kind.__name__ for kind in kinds().values()}


@pytest.mark.parametrize("ce_type", MESSAGES)
def test_a_golden_message_is_valid_by_the_published_schema(ce_type: str, document: Any) -> None:
    golden = msgspec.json.decode((GOLDEN / f"{ce_type}.json").read_text(), type=dict[str, Any])
    message = document["components"]["messages"][kinds()[ce_type].__name__]
    for part, schema in (("headers", message["headers"]), ("body", message["payload"])):
        resolved = schema | {"components": document["components"]}
        jsonschema.Draft202012Validator(resolved).validate(golden[part])
    with pytest.raises(jsonschema.ValidationError):
        wrong = golden["headers"] | {"ce-type": "llmos.other.v1"}
        jsonschema.Draft202012Validator(message["headers"] | {"components": document["components"]}).validate(wrong)


def test_an_example_sets_every_field_to_something_else_than_its_default() -> None:
    for said in MESSAGES.values():
        assert isinstance(said, Said)
        sent = msgspec.to_builtins(said.body)
        assert set(sent) == {field.name for field in msgspec.structs.fields(type(said.body))}
