"""The check of a job spec: everything that is wrong, at once, with the path of its field."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.contracts.jobs import JobAdmitted, JobRejected
from llmos.specs import LARGEST_SPEC, MOST_FAULTS, check_spec
from llmos_scheduler.admission import admit

NOW = 1_790_000_000.0
GOOD: dict[str, Any] = {
    "name": "mood",
    "tenant": "acme",
    "queue": "default",
    "priority": 70,
    "task": "text-classification",
    "model": {"base": "hf:sentence-transformers/all-MiniLM-L6-v2@main"},
    "data": {"train": "file:///data/train.jsonl", "test": "s3://bucket/test.csv", "text": "text", "label": "label"},
    "train": {"method": "lora", "epochs": 2, "learning_rate": 5e-5, "warmup": 0.1},
    "gate": {"accuracy": {"min": 0.9}, "loss": {"max": 0.5}},
    "export": {"precision": "int8"},
    "deploy": {"name": "mood", "replicas": 2},
    "resources": {"cpus": 2, "memory": "2GiB", "gpus": 1, "gpu_memory": "10GiB"},
    "retry": {"max_attempts": 3},
    "deadline": "2030-01-01T00:00:00Z",
    "private": True,
}


def check(spec: Any, tenant: str = "acme") -> list[str]:
    return [str(fault) for fault in check_spec(msgspec.json.encode(spec), tenant=tenant, now=NOW)[1]]


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good spec with one field set to another value."""
    spec = msgspec.json.decode(msgspec.json.encode(GOOD))
    *parents, last = path.split(".")
    at = spec
    for part in parents:
        at = at[part]
    at[last] = value
    return spec


def test_a_complete_spec_is_read_whole() -> None:
    spec, faults = check_spec(msgspec.json.encode(GOOD), tenant="acme", now=NOW)
    assert faults == []
    assert spec is not None
    assert spec.deadline == datetime(2030, 1, 1, tzinfo=UTC)
    assert (spec.train.method, spec.train.epochs, spec.gate["accuracy"].min) == ("lora", 2, 0.9)


def test_only_name_model_and_data_are_needed_and_the_tenant_comes_from_the_subject() -> None:
    spec, faults = check_spec(
        b'{"name":"m","model":{"base":"hf:org/m"},"data":{"train":"file:///d.csv"}}', tenant="acme", now=NOW
    )
    assert faults == []
    assert spec is not None
    assert spec.tenant == "acme"


def test_shares_gangs_models_labels_and_queues_in_a_tree_are_read() -> None:
    spec = changed("queue", "research/vision")
    spec["resources"] = {"gpus": 1, "gpu_milli": 250, "gpu_models": ["H100"], "labels": {"zone": "a"}}
    spec["deploy"] |= {"resources": {"gpus": 1, "gpu_milli": 500, "gpu_memory": "8GiB"}, "spread": "zone"}
    assert check(spec) == []
    assert check(changed("resources", {"gpus": 8, "nodes": 4})) == []
    assert check(changed("train", {"method": "none"})) == []


def test_everything_wrong_is_reported_at_once_with_its_path() -> None:
    wrong = {
        "name": "my mood",
        "tenant": "other",
        "priority": 101,
        "task": "translate",
        "modle": {"base": "x"},
        "data": {"train": "./train.jsonl", "lable": "y", "text": 3, "validation": "model:m@1"},
        "train": {"method": "adapter", "epochs": 0, "steps": 5, "batch_size": "16", "learning_rate": 2},
        "gate": {"acuracy": {"min": 0.9}, "f1": {"min": 0.9, "max": 0.5}, "loss": {}, "accuracy": {"min": 90}},
        "deploy": {"name": "a.b", "replicas": 0},
        "resources": {"cpus": 0, "memory": "2 gigs", "gpu_memory": "1GiB"},
        "retry": {"max_attempts": 0},
        "deadline": "2020-01-01T00:00:00Z",
    }
    assert check(wrong) == [
        "modle: no such field; did you mean model?",
        "model: is missing",
        "data.lable: no such field; did you mean label?",
        "data.text: must be str, not int",
        "train.method: 'adapter' is not known; known are full, lora, none",
        "train.batch_size: must be int, not str",
        "priority: must be at most 100, not 101",
        "train.epochs: must be at least 1, not 0",
        "train.learning_rate: must be at most 1, not 2",
        "deploy.replicas: must be at least 1, not 0",
        "resources.cpus: must be at least 0.1, not 0",
        "retry.max_attempts: must be at least 1, not 0",
        "name: 'my mood' must be 1 to 128 letters, digits, '_' or '-'",
        "deploy.name: 'a.b' must be 1 to 128 letters, digits, '_' or '-'",
        "data.train: './train.jsonl' is no reference. For a file, write its absolute path: file:///…/train.jsonl.",
        "data.validation: names a model, not data; use file://, s3://, artifact: or hf:",
        "tenant: is 'other', but the job was submitted for 'acme'",
        "task: 'translate' is not supported; supported: text-classification, token-classification, question-answering, "
        "embeddings, text-generation, translation, summarisation, image-classification, audio-classification, "
        "speech-recognition",
        "train: give epochs or steps, not both",
        "resources.memory: '2 gigs' is no amount of bytes. Write bytes, or a number and a unit: 512MiB, 2GiB",
        "resources.gpu_memory: needs resources.gpus of at least 1",
        "deadline: '2020-01-01T00:00:00Z' has passed",
        "gate.acuracy: no such metric; did you mean accuracy?",
        "gate.f1: min 0.9 is above max 0.5: nothing can pass",
        "gate.loss: needs min, max or both",
        "gate.accuracy: lies between 0 and 1 (0.9 is 90 %)",
    ]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("deadline", "2030-01-01T00:00:00", "has no time zone; write it in UTC, as 2030-01-01T00:00:00Z"),
        ("deadline", "tomorrow", "Invalid RFC3339 encoded datetime"),
        ("priority", -1, "must be at least 0, not -1"),
        ("priority", 50.5, "must be int, not float"),
        ("priority", None, "must be int, not null"),
        ("train", [], "must be object, not array"),
        ("gate", "high", "must be object, not str"),
        ("gate.accuracy", {"mim": 0.9}, "no such field; did you mean min?"),
        ("gate.loss", {"max": -1}, "must be at least 0"),
        ("train.seed", 2**32, "must be at most 4294967295, not 4294967296"),
        ("train.epochs", 10**400, "must be at most 10000"),
        ("data.label", "text", "must be another column than data.text"),
        ("data.text", "", "must name a column"),
        ("resources.memory", 0, "must be more than 0"),
        ("resources.memory", "9" * 18 + "TiB", "lies outside"),
        ("model.base", "https://huggingface.co/org/m", "Did you mean hf:org/m?"),
        ("deploy", {"name": "x", "replica": 2}, "no such field; did you mean replicas?"),
        ("queue", "research/", "must be names of 1 to 128 letters"),
        ("queue", "/".join("abcdefghi"), "has 9 levels; at most 8"),
        ("duration", 0, "must be at least 1, not 0"),
        ("preemptible", "no", "must be bool, not str"),
        ("resources.gpu_milli", 0, "must be at least 1, not 0"),
        ("resources.gpu_milli", 1001, "must be at most 1000, not 1001"),
        ("resources", {"gpus": 2, "gpu_milli": 500}, "is a share of one GPU: set resources.gpus to 1"),
        ("resources", {"gpu_milli": 500}, "is a share of one GPU: set resources.gpus to 1"),
        ("resources", {"gpus": 1, "gpu_milli": 500, "nodes": 2}, "work on 2 nodes needs whole GPUs"),
        ("resources", {"gpu_models": ["H100"]}, "needs resources.gpus of at least 1"),
        ("resources.gpu_models", "H100", "must be array, not str"),
        ("resources.gpu_models", [""], "must name models as `llmos get nodes` shows them"),
        ("resources.labels", {"zone": 3}, "must be str, not int"),
        ("resources.labels", {"": "x"}, "a label's name can't be empty"),
        ("resources.labels", {"zone": "x" * 129}, "has 129 characters; at most 128"),
        ("resources.nodes", 0, "must be at least 1, not 0"),
        ("resources.nodes", 1025, "must be at most 1024, not 1025"),
        ("deploy.resources", {"gpus": 1, "nodes": 2}, "a replica runs on one node; ask for more replicas"),
        ("deploy.resources", {"gpus": -1}, "must be at least 0, not -1"),
        ("deploy.resources", {"memory": "x"}, "is no amount of bytes"),
        ("deploy.spread", "x" * 129, "has 129 characters"),
    ],
)
def test_one_fault_says_what_to_write_instead(path: str, value: Any, message: str) -> None:
    if path == "train.epochs":
        text = msgspec.json.encode(changed("train.epochs", 424242)).replace(b"424242", str(value).encode())
        faults = [str(fault) for fault in check_spec(text, tenant="acme", now=NOW)[1]]
    else:
        faults = check(changed(path, value))
    assert len(faults) == 1, faults
    assert faults[0].startswith(path)
    assert message in faults[0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"name: mood", "not JSON"),
        (b'"\xff"', "not JSON"),
        (b"[1, 2]", "must be a JSON object with the fields of a job, not a list"),
        (b"null", "not null"),
        (b'{"a":' * 100_000, "bytes; the limit is"),
        (b'{"a":' * 40_000, "nested too deeply"),
        (b" " * (LARGEST_SPEC + 1), "the limit is"),
    ],
)
def test_what_is_no_object_at_all_is_one_fault(body: bytes, message: str) -> None:
    spec, (fault,) = check_spec(body, tenant="acme", now=NOW)
    assert spec is None
    assert message in fault.message


def test_a_task_that_is_not_trained_is_exported_as_it_comes() -> None:
    ner = {"name": "ner", "task": "token-classification", "model": {"base": "hf:org/ner"}}
    assert check(ner | {"data": {"train": "file:///rows.jsonl"}}) == [
        "train.method: a model for token-classification can't be trained here yet; "
        "`none` exports the base model as it is"
    ]
    none = ner | {"train": {"method": "none"}}
    assert check(none | {"data": {"test": "file:///rows.jsonl"}}) == []
    assert check(none | {"data": {}}) == ["data.train: is missing; give it or data.test, which the gate needs"]
    wrong = {"test": "file:///rows.jsonl", "columns": {"tokens": "words", "label": "y", "tags": ""}}
    assert check(none | {"data": wrong, "export": {"precision": "int4"}, "gate": {"bleu": {"min": 20}}}) == [
        "data.columns.label: a row has no such part; known are tokens, tags",
        "data.columns.tags: must name a column",
        "gate.bleu: is not measured of token-classification; measured are accuracy, f1, latency_ms_p50, size_bytes, "
        "agreement, max_abs_diff, mean_abs_diff",
        "export.precision: int4 is for text-generation; use int8 or auto",
    ]


def test_a_flood_of_faults_is_cut_off() -> None:
    faults = check({f"field{number}": "x" * 1000 for number in range(200)})
    assert len(faults) == MOST_FAULTS + 1
    assert faults[-1] == ": 103 more faults are not listed"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PATHS = [
    *GOOD,
    *(f"{outer}.{inner}" for outer, value in GOOD.items() if isinstance(value, dict) for inner in value),
]


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(PATHS), value=JSON)
def test_any_value_in_any_field_is_a_spec_or_faults_about_it(path: str, value: Any) -> None:
    spec, faults = check_spec(msgspec.json.encode(changed(path, value)), tenant="acme", now=NOW)
    assert (spec is None) == bool(faults)
    for fault in faults:
        assert fault.message
        assert fault.path.split(".")[0] in (path.split(".")[0], "data", "resources"), fault


# --- admission ---


def test_a_submission_becomes_one_fact_and_its_redelivery_none(world: Any) -> None:
    body = msgspec.json.encode(GOOD)
    fact = admit(world.state, tenant="acme", job="j", data=body, now=NOW, cause="msg", traceparent="00-a-b-01")
    assert fact is not None
    assert isinstance(fact.event, JobAdmitted)
    assert (fact.id, fact.cause, fact.event.traceparent) == ("j.admitted", "msg", "00-a-b-01")
    world.say(fact.event, fact.id)
    assert admit(world.state, tenant="acme", job="j", data=body, now=NOW) is None


def test_a_rejected_submission_is_rejected_once(world: Any) -> None:
    fact = admit(world.state, tenant="acme", job="j", data=b'{"name":"mood"}', now=NOW)
    assert fact is not None
    assert isinstance(fact.event, JobRejected)
    assert fact.event.name == "mood"
    assert [fault.path for fault in fact.event.faults] == ["model", "data"]
    world.say(fact.event, fact.id)
    assert admit(world.state, tenant="acme", job="j", data=b"{}", now=NOW) is None


def test_a_job_id_of_another_tenant_is_taken_and_that_job_is_not_touched(world: Any) -> None:
    world.submit("j", tenant="acme")
    fact = admit(world.state, tenant="evil", job="j", data=msgspec.json.encode(GOOD), now=NOW)
    assert fact is not None
    assert isinstance(fact.event, JobRejected)
    world.say(fact.event, fact.id)
    assert world.state.jobs["j"].state == "queued"
    assert fact.id not in ("j.admitted", "j.rejected"), "such an id would swallow a fact of the other job"


def test_a_job_id_that_leaves_no_room_for_its_tasks_is_rejected(world: Any) -> None:
    from llmos.contracts.subjects import event_subject

    for length, admitted in ((100, True), (101, False), (128, False)):
        fact = admit(world.state, tenant="acme", job="j" * length, data=msgspec.json.encode(GOOD), now=NOW)
        assert fact is not None
        assert isinstance(fact.event, JobAdmitted) == admitted
        assert event_subject(fact.event)


def test_a_deployment_of_another_tenant_can_not_be_taken_over(world: Any) -> None:
    world.submit("theirs", name="mood", tenant="first", deploy=1)
    fact = admit(world.state, tenant="acme", job="j", data=msgspec.json.encode(GOOD), now=NOW)
    assert fact is not None
    assert isinstance(fact.event, JobRejected)
    assert [fault.path for fault in fact.event.faults] == ["deploy.name"]


def test_a_request_larger_than_any_node_is_no_fault(world: Any) -> None:
    world.node("a", cpus=1)
    fact = admit(world.state, tenant="acme", job="j", data=msgspec.json.encode(GOOD), now=NOW)
    assert fact is not None
    assert isinstance(fact.event, JobAdmitted)
