"""An outside system for tests: it knows llmos by its documentation only, as NATS subjects and JSON."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
from nats.js.api import ConsumerConfig, DeliverPolicy

from llmos import local

ENDED = {"deployed", "succeeded", "refused", "rejected", "failed", "cancelled"}


def about(event: dict[str, Any]) -> str:
    """The job that an event is about."""
    version = event.get("version")
    return event.get("job") or (version["job"] if isinstance(version, dict) else "")


class Outsider:
    """A plain NATS client that publishes jobs, follows them and asks models."""

    def __init__(self, nc: nats.NATS, material: Path) -> None:
        self.nc = nc
        self.js = nc.jetstream()
        self.material = material
        self.client = "outside-" + secrets.token_hex(4)

    def spec(self, **changes: Any) -> dict[str, Any]:
        """A small job; `changes` replace its top-level fields, `None` removes one."""
        spec = {
            "name": "tiny",
            "model": {"base": (self.material / "base").as_uri()},
            "data": {part: (self.material / f"{part}.jsonl").as_uri() for part in ("train", "validation", "test")},
            "train": {"epochs": 4, "batch_size": 16, "learning_rate": 1e-3, "max_length": 32, "seed": 3},
            "gate": {"accuracy": {"min": 0.7}},
            "deploy": {"name": "tiny"},
            "resources": {"cpus": 1, "memory": "512MiB"},
            "retry": {"max_attempts": 5},
        }
        return {name: value for name, value in (spec | changes).items() if value is not None}

    async def submit(self, spec: dict[str, Any], tenant: str = "default") -> str:
        job = "job-" + secrets.token_hex(6)
        await self.js.publish(f"llmos.job.submit.{tenant}.{job}", json.dumps(spec).encode())
        return job

    async def events(self, start: int = 1) -> AsyncIterator[tuple[str, dict[str, Any], Any]]:
        """(noun.fact, event, message), from sequence `start` on."""
        while True:
            config = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=start)
            try:
                events = await self.js.subscribe("llmos.evt.>", stream="EVENTS", ordered_consumer=True, config=config)
            except (nats.errors.Error, TimeoutError):
                await asyncio.sleep(0.2)
                continue
            try:
                while True:
                    message = await events.next_msg(timeout=5)
                    parts = message.subject.split(".")
                    start = message.metadata.sequence.stream + 1
                    yield f"{parts[2]}.{parts[3]}", json.loads(message.data), message
            except nats.errors.TimeoutError:
                continue  # silence, or a server that was started again: follow on from where we are
            finally:
                with suppress(nats.errors.Error):
                    await events.unsubscribe()

    async def history(self, job: str, within: float = 120) -> list[tuple[str, dict[str, Any]]]:
        """Everything that was said of a job up to its end."""
        heard = []
        async with asyncio.timeout(within):
            async for fact, event, _ in self.events():
                if about(event) != job:
                    continue
                heard.append((fact, event))
                if fact.startswith("job.") and fact[4:] in ENDED:
                    break
        return heard

    async def until(self, job: str, wanted: str, within: float = 120, **fields: Any) -> dict[str, Any]:
        """Wait for a fact of a job whose fields match."""
        async with asyncio.timeout(within):
            async for fact, event, _ in self.events():
                mine = about(event) == job
                if mine and fact == wanted and all(event.get(k) == v for k, v in fields.items()):
                    return event
                if mine and fact.startswith("job.") and fact[4:] in ENDED and fact != wanted:
                    raise AssertionError(f"{job} ended with {fact} before {wanted}: {event}")
        raise AssertionError("unreachable")

    async def infer(self, model: str, texts: list[str], traceparent: str = "", within: float = 20) -> dict[str, Any]:
        request = secrets.token_hex(8)
        inbox = await self.nc.subscribe(f"llmos.reply.{self.client}.{request}")
        headers = {"Nats-Msg-Id": request} | ({"traceparent": traceparent} if traceparent else {})
        body = json.dumps({"client": self.client, "inputs": texts}).encode()
        await self.js.publish(f"llmos.infer.{model}.interactive.{request}", body, headers=headers)
        try:
            return json.loads((await inbox.next_msg(timeout=within)).data)
        finally:
            await inbox.unsubscribe()


def service_pid(stack: local.StackInfo, module: str) -> int:
    """The process id of a service (or of `nats-server`) of a stack; 0 when it does not run."""
    for child in Path(f"/proc/{stack.pid}/task/{stack.pid}/children").read_text().split():
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if module.encode() in command or command[0].endswith(b"/" + module.encode()):
            return int(child)
    return 0
