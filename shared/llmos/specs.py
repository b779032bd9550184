"""The complete check of a job spec as it came over the bus: every fault at once, each with the path of its field.

Shape (unknown and missing fields, types) is read off the contract's Structs, so that a new field is checked the day it
is added; ranges and what only makes sense together stand in one table and a few rules. Pure.
"""

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import Struct

from llmos.contracts.jobs import COLUMNS, MEASURES, METRICS, QUALITY, TASKS, TRAINED_TASKS, Bound, Fault, JobSpec
from llmos.contracts.references import parse
from llmos.errors import Rejected
from llmos.ids import is_token
from llmos.sizes import parse_bytes

LARGEST_SPEC = 256 * 1024  # bytes
MOST_FAULTS = 100
LONGEST_MESSAGE = 500  # characters

# Ranges of numbers, both ends included; `None` has no end.
_RANGES: dict[str, tuple[float | None, float | None]] = {
    "priority": (0, 100),
    "train.epochs": (1, 10_000),
    "train.steps": (1, 100_000_000),
    "train.batch_size": (1, 65_536),
    "train.learning_rate": (1e-9, 1.0),
    "train.weight_decay": (0, 1),
    "train.warmup": (0, None),
    "train.max_length": (4, 8_192),
    "export.max_length": (4, 1_048_576),
    "train.max_grad_norm": (1e-6, None),
    "train.seed": (0, 2**32 - 1),
    "deploy.replicas": (1, 1_000),
    **{
        f"{place}.{name}": ends
        for place in ("resources", "deploy.resources")
        for name, ends in {
            "cpus": (0.1, 4_096),
            "gpus": (0, 1_024),
            "gpu_milli": (1, 1_000),
            "nodes": (1, 1_024),
        }.items()
    },
    "retry.max_attempts": (1, 100),
    "duration": (1, 1e9),
}
_TOKENS = ("name", "tenant", "deploy.name")
_REFERENCES = ("model.base", "data.train", "data.validation", "data.test")
_SHARES = (
    "accuracy",
    "f1",
    "exact_match",
    "agreement",
    "rouge1",
    "rouge2",
    "rougeL",
)  # metrics that lie between 0 and 1
_DEEPEST_QUEUE = 8  # names in a queue's path
_MOST_CHOICES = 64  # labels, GPU models
_LONGEST_LABEL = 128  # characters


def check_spec(data: bytes, *, tenant: str, now: float) -> tuple[JobSpec | None, list[Fault]]:
    """Read the body of a submission that came for `tenant`: the spec, or everything that is wrong with it.

    A body without `tenant` takes the subject's. `now` (Unix seconds) judges the deadline.
    """
    if len(data) > LARGEST_SPEC:
        return None, [Fault("", f"the spec has {len(data)} bytes; the limit is {LARGEST_SPEC}")]
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return None, [Fault("", f"the message is not JSON: {error}")]
    except RecursionError:
        return None, [Fault("", "the message is nested too deeply")]
    if not isinstance(raw, dict):
        return None, [Fault("", f"the message must be a JSON object with the fields of a job, not {_kind(raw)}")]
    raw.setdefault("tenant", tenant)
    faults = list(check_shape(raw, JobSpec, ""))
    broken = {fault.path for fault in faults}
    faults += [fault for fault in _rules(raw, tenant, now) if fault.path not in broken]
    if not faults:
        return msgspec.convert(raw, JobSpec), []
    listed = [Fault(fault.path, fault.message[:LONGEST_MESSAGE]) for fault in faults[:MOST_FAULTS]]
    if len(faults) > MOST_FAULTS:
        listed.append(Fault("", f"{len(faults) - MOST_FAULTS} more faults are not listed"))
    return None, listed


# --- shape ---


def check_shape(raw: Mapping[str, Any], kind: type[Struct], at: str) -> list[Fault]:
    """Unknown fields, missing fields and wrong types of one object, and of the objects in it."""
    faults = []
    fields = _fields(kind)
    for name in raw:
        if name not in fields:
            near = get_close_matches(name, fields, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(fields)}"
            faults.append(Fault(at + name[:100], f"no such field; {hint}"))
    for name, field in fields.items():
        if name not in raw:
            if field.required:
                faults.append(Fault(at + name, "is missing"))
        else:
            faults += _value(raw[name], field.type, at + name)
    return faults


@cache  # msgspec evaluates the annotations anew each time: 50 us a spec
def _fields(kind: type[Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(kind)}


def _value(value: Any, kind: Any, path: str) -> list[Fault]:
    if get_origin(kind) is dict and isinstance(value, dict):
        inner = get_args(kind)[1]
        return [fault for name, item in value.items() for fault in _value(item, inner, f"{path}.{name[:100]}")]
    options = [option for option in get_args(kind) if option is not type(None)]
    struct = kind if _is_struct(kind) else next((option for option in options if _is_struct(option)), None)
    if struct is not None and isinstance(value, dict):
        return check_shape(value, struct, f"{path}.")
    if get_origin(kind) is Literal and isinstance(value, str):
        return (
            [] if value in options else [Fault(path, f"{value[:100]!r} is not known; known are {', '.join(options)}")]
        )
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return [Fault(path, _plain(str(error)))]
    return []


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _plain(message: str) -> str:
    """msgspec's words in ours: `Expected `int`, got `str`` → `must be int, not str`."""
    words = {"Expected ": "must be ", ", got ": ", not ", " | null": " or null", "`": ""}
    for theirs, ours in words.items():
        message = message.replace(theirs, ours)
    return message


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


# --- rules ---


def _rules(raw: Mapping[str, Any], tenant: str, now: float) -> list[Fault]:
    """Ranges, names, references, and fields that contradict each other; what has a wrong type is passed over."""
    faults: list[Fault] = []

    def get(path: str) -> Any:
        value: Any = raw
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def fault(path: str, message: str) -> None:
        faults.append(Fault(path, message))

    for path, (low, high) in _RANGES.items():
        value = get(path)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if low is not None and value < low:
                fault(path, f"must be at least {low:.10g}, not {value!r:.20}")
            elif high is not None and value > high:
                fault(path, f"must be at most {high:.10g}, not {value!r:.20}")
    for path in _TOKENS:
        value = get(path)
        if isinstance(value, str) and not is_token(value):
            fault(path, f"{value[:100]!r} must be 1 to 128 letters, digits, '_' or '-'")
    for path in _REFERENCES:
        value = get(path)
        if isinstance(value, str) and value:
            _reference(path, value, fault)
    if isinstance(get("tenant"), str) and get("tenant") != tenant:
        fault("tenant", f"is {get('tenant')[:100]!r}, but the job was submitted for {tenant!r}")
    task = get("task") if raw.get("task") is not None else TASKS[0]
    if isinstance(task, str) and task not in TASKS:
        near = {"summarization": "summarisation", "automatic-speech-recognition": "speech-recognition"}
        also = f" (did you mean {near[task]}?)" if task in near else ""
        fault("task", f"{task[:100]!r} is not supported{also}; supported: {', '.join(TASKS)}")
    elif isinstance(task, str):
        _task(get, task, fault)
    if get("train.epochs") is not None and get("train.steps") is not None:
        fault("train", "give epochs or steps, not both")
    for path in ("data.text", "data.label"):
        if get(path) == "":
            fault(path, "must name a column")
    if get("data.label") is not None and get("data.label") == (get("data.text") or "text"):
        fault("data.label", "must be another column than data.text")
    _queue(get("queue"), fault)
    for path in ("resources", "deploy.resources"):
        _resources(path, lambda name, path=path: get(f"{path}.{name}"), fault)  # type: ignore[misc]
    if isinstance(replica_nodes := get("deploy.resources.nodes"), int) and replica_nodes > 1:
        fault("deploy.resources.nodes", "a replica runs on one node; ask for more replicas instead")
    _label("deploy.spread", get("deploy.spread"), fault)
    _deadline(get("deadline"), now, fault)
    if isinstance(get("gate"), dict):
        for name, bound in get("gate").items():
            _gate(name, bound, fault)
    return faults


def _task(get: Callable[[str], Any], task: str, fault: Callable[[str, str], None]) -> None:
    """What a task allows: training, columns, precisions."""
    untrained = get("train.method") == "none"
    if task not in TRAINED_TASKS and not untrained:
        fault("train.method", f"a model for {task} can't be trained here yet; `none` exports the base model as it is")
    if isinstance(get("data"), dict) and not get("data.train") and not (untrained and get("data.test")):
        fault("data.train", "is missing" + ("; give it or data.test, which the gate needs" if untrained else ""))
    if isinstance(columns := get("data.columns"), dict):
        for role, name in columns.items():
            if role not in COLUMNS[task]:
                fault(f"data.columns.{role[:100]}", f"a row has no such part; known are {', '.join(COLUMNS[task])}")
            elif name == "":
                fault(f"data.columns.{role}", "must name a column")
    if isinstance(gate := get("gate"), dict):
        measured = (*QUALITY[task], *MEASURES)
        for name in gate:
            if name in METRICS and name not in measured:
                fault(f"gate.{name}", f"is not measured of {task}; measured are {', '.join(measured)}")
    if get("export.precision") == "int4" and task != "text-generation":
        fault("export.precision", "int4 is for text-generation; use int8 or auto")
    if get("export.precision") == "fp16" and get("export.target") != "cuda":
        fault("export.precision", "fp16 is for export.target cuda; use fp32, int8 or auto")


def _reference(path: str, text: str, fault: Callable[[str, str], None]) -> None:
    try:
        reference = parse(text)
    except Rejected as error:
        fault(path, str(error))
        return
    if path != "model.base" and reference.scheme == "model":
        fault(path, "names a model, not data; use file://, s3://, artifact: or hf:")


def _queue(value: Any, fault: Callable[[str, str], None]) -> None:
    if isinstance(value, str) and (wrong := check_queue_path(value)):
        fault("queue", wrong)


def check_queue_path(value: str) -> str:
    """What is wrong with a queue's path, such as `research/vision`; empty if nothing is."""
    parts = value.split("/")
    if not all(is_token(part) for part in parts):
        return f"{value[:100]!r} must be names of 1 to 128 letters, digits, '_' or '-', with / between them"
    return f"has {len(parts)} levels; at most {_DEEPEST_QUEUE} are possible" if len(parts) > _DEEPEST_QUEUE else ""


def _resources(at: str, get: Callable[[str], Any], fault: Callable[[str, str], None]) -> None:
    sizes: dict[str, int] = {}
    for name in ("memory", "gpu_memory"):
        value = get(name)
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            try:
                sizes[name] = parse_bytes(value)
            except Rejected as error:
                fault(f"{at}.{name}", str(error))
    if sizes.get("memory") == 0:
        fault(f"{at}.memory", "must be more than 0")
    if sizes.get("gpu_memory") and not get("gpus"):
        fault(f"{at}.gpu_memory", f"needs {at}.gpus of at least 1")
    milli, nodes = get("gpu_milli"), get("nodes")
    if isinstance(milli, int) and milli < 1_000:
        if get("gpus") != 1:
            fault(f"{at}.gpu_milli", f"less than 1000 is a share of one GPU: set {at}.gpus to 1, or leave it out")
        elif isinstance(nodes, int) and nodes > 1:
            fault(f"{at}.gpu_milli", f"work on {nodes} nodes needs whole GPUs: leave it out, or set {at}.nodes to 1")
    models, labels = get("gpu_models"), get("labels")
    if isinstance(models, list) and models:
        if not get("gpus"):
            fault(f"{at}.gpu_models", f"needs {at}.gpus of at least 1")
        if len(models) > _MOST_CHOICES:
            fault(f"{at}.gpu_models", f"names {len(models)} models; at most {_MOST_CHOICES} are possible")
        for model in models[:_MOST_CHOICES]:
            if model == "":
                fault(f"{at}.gpu_models", "must name models as `llmos get nodes` shows them, not ''")
    if isinstance(labels, dict):
        if len(labels) > _MOST_CHOICES:
            fault(f"{at}.labels", f"has {len(labels)} labels; at most {_MOST_CHOICES} are possible")
        for name, value in list(labels.items())[:_MOST_CHOICES]:
            _label(f"{at}.labels", name, fault, empty="a label's name can't be empty")
            _label(f"{at}.labels.{name[:100]}", value, fault)


def _label(path: str, value: Any, fault: Callable[[str, str], None], empty: str = "") -> None:
    if isinstance(value, str):
        if empty and not value:
            fault(path, empty)
        elif len(value) > _LONGEST_LABEL:
            fault(path, f"has {len(value)} characters; at most {_LONGEST_LABEL} are possible")


def _deadline(value: Any, now: float, fault: Callable[[str, str], None]) -> None:
    if not isinstance(value, str):
        return
    try:
        deadline = msgspec.convert(value, datetime)
    except msgspec.ValidationError:
        return
    if deadline.tzinfo is None:
        fault("deadline", f"{value!r} has no time zone; write it in UTC, as {value}Z")
    elif deadline.timestamp() <= now:
        fault("deadline", f"{value!r} has passed")


def _gate(name: str, raw: Any, fault: Callable[[str, str], None]) -> None:
    path = f"gate.{name[:100]}"
    if name not in METRICS:
        near = get_close_matches(name, METRICS, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(METRICS)}"
        fault(path, f"no such metric; {hint}")
        return
    try:
        bound = msgspec.convert(raw, Bound)
    except msgspec.ValidationError:
        return
    if bound.min is None and bound.max is None and set(raw) <= {"min", "max"}:
        fault(path, "needs min, max or both")
    ends = [end for end in (bound.min, bound.max) if end is not None]
    if any(not math.isfinite(end) for end in ends):
        fault(path, "must be finite")
    elif len(ends) == 2 and ends[0] > ends[1]:
        fault(path, f"min {ends[0]:g} is above max {ends[1]:g}: nothing can pass")
    elif name in _SHARES and any(not 0 <= end <= 1 for end in ends):
        fault(path, "lies between 0 and 1 (0.9 is 90 %)")
    elif any(end < 0 for end in ends):
        fault(path, "must be at least 0")
