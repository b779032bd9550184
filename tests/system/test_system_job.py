"""The main job, end to end, on separate processes, driven by a plain NATS client."""

import asyncio
import base64
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmos import local
from llmos.testing.otlp import Receiver
from outsider import Outsider

pytestmark = pytest.mark.system


def facts(history: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [fact for fact, _ in history if fact not in ("task.progressed", "task.checkpointed")]


def cli(stack: local.StackInfo, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "llmos_cli", *arguments]
    return subprocess.run(
        program, env=os.environ | {"LLMOS_DATA_DIR": stack.data_dir}, capture_output=True, text=True, timeout=60
    )


async def test_a_job_is_trained_evaluated_exported_gated_deployed_and_served(
    outsider: Outsider, stack: local.StackInfo, telescope: Receiver
) -> None:
    trace = secrets.token_hex(16)
    job = "job-" + secrets.token_hex(6)
    headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}
    body = json.dumps(outsider.spec(deploy={"name": "main"})).encode()
    await outsider.js.publish(f"llmos.job.submit.default.{job}", body, headers=headers)
    history = await outsider.history(job)
    happened = facts(history)
    assert happened[0] == "job.admitted"
    assert happened[-1] == "job.deployed"
    for kind in ("check", "train", "export"):
        of_kind = [
            fact for fact, event in history if event.get("kind") == kind and fact in ("task.placed", "task.succeeded")
        ]
        assert of_kind == ["task.placed", "task.succeeded"]
    version = next(event["version"] for fact, event in history if fact == "model.exported")
    assert version["version"] == 1
    assert version["metrics"]["accuracy"] >= 0.7
    assert version["parity"]["agreement"] >= 0.99
    assert version["signature"]["signature"]

    answer = await outsider.infer(
        "main", ["the phone is superb and great", "the cable is awful"], headers["traceparent"]
    )
    assert [output["label"] for output in answer["outputs"]] == ["positive", "negative"]
    assert answer["version"] == 1

    async with asyncio.timeout(30):
        services: set[str] = set()
        while not {"llmos-scheduler", "llmos-trainer", "llmos-exporter", "llmos-inferencer"} <= services:
            services = {service for service, _ in telescope.trace(trace)}
            await asyncio.sleep(0.2)
        wanted = {"llmos.jobs.submitted", "llmos.task.queue_wait", "llmos.task.duration", "llmos.inference.requests"}
        while not wanted <= set().union(*telescope.metrics.values()):
            await asyncio.sleep(0.2)
    spans = {span.span_id: span for _, span in telescope.trace(trace)}
    outside = bytes.fromhex(headers["traceparent"].split("-")[2])
    for span in spans.values():
        assert span.parent_span_id in spans or span.parent_span_id == outside, f"{span.name} hangs in the air"

    verified = cli(stack, "audit", "verify", "-o", "json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)["report"]["ok"] is True


async def test_everything_wrong_in_a_spec_is_reported_at_once(outsider: Outsider) -> None:
    spec = outsider.spec(priority=500, colour="blue", train={"epochs": 3, "steps": 5, "learning_rate": -1})
    history = await outsider.history(await outsider.submit(spec))
    assert facts(history) == ["job.rejected"]
    paths = {fault["path"] for fault in history[0][1]["faults"]}
    assert {"priority", "colour", "train.learning_rate"} <= paths
    assert paths & {"train", "train.steps", "train.epochs"}


async def test_everything_wrong_in_the_data_is_reported_by_line(outsider: Outsider) -> None:
    bad = outsider.material / "bad.jsonl"
    rows = (outsider.material / "train.jsonl").read_text().splitlines()
    rows[4] = '{"text": "no label"}'
    rows[9] = "not json"
    rows[20] = '{"text": "", "label": "positive"}'
    bad.write_text("\n".join(rows) + "\n")
    data = outsider.spec()["data"] | {"train": bad.as_uri()}
    history = await outsider.history(await outsider.submit(outsider.spec(data=data)))
    assert facts(history)[-1] == "job.rejected"
    assert [fault["line"] for fault in history[-1][1]["faults"]] == [5, 10, 21]
    assert not [event for fact, event in history if event.get("kind") == "train"]


async def test_a_model_below_its_gate_is_refused_with_the_numbers(outsider: Outsider) -> None:
    spec = outsider.spec(gate={"accuracy": {"min": 0.1}, "size_bytes": {"max": 10}}, deploy={"name": "refused"})
    history = await outsider.history(await outsider.submit(spec))
    assert facts(history)[-1] == "job.refused"
    ended = history[-1][1]
    assert len(ended["reasons"]) == 1
    assert "size_bytes" in ended["reasons"][0]
    assert ended["metrics"]["size_bytes"] > 10
    assert not [fact for fact, _ in history if fact == "model.exported"]


async def test_of_two_waiting_jobs_the_higher_priority_runs_first(outsider: Outsider, stack: local.StackInfo) -> None:
    nodes = json.loads(cli(stack, "get", "nodes", "-o", "json").stdout)
    whole = int(nodes[0]["inventory"]["cpus"])
    every = {"cpus": whole, "memory": "512MiB"}
    first = await outsider.submit(outsider.spec(name="first", resources=every, deploy=None))
    await outsider.until(first, "task.placed", kind="train")
    low = await outsider.submit(outsider.spec(name="low", priority=10, resources=every, deploy=None))
    high = await outsider.submit(outsider.spec(name="high", priority=90, resources=every, deploy=None))
    await outsider.until(low, "job.admitted")
    explained = json.loads(cli(stack, "explain", low, "-o", "json").stdout)
    assert explained["reasons"] or explained["ahead"]
    placed = []
    for job in (low, high):
        assert (await outsider.history(job))[-1][0] == "job.succeeded"
    async with asyncio.timeout(20):
        async for fact, event, message in outsider.events():
            if fact == "task.placed" and event["kind"] == "train" and event["job"] in (low, high):
                placed.append((message.metadata.sequence.stream, event["job"]))
                if len(placed) == 2:
                    break
    assert [job for _, job in sorted(placed)] == [high, low]


@pytest.mark.parametrize(
    ("moment", "kind"),
    [("job.admitted", None), ("task.started", "check"), ("task.started", "train"), ("task.started", "export")],
)
async def test_a_job_can_be_cancelled_in_every_state(
    outsider: Outsider, stack: local.StackInfo, moment: str, kind: str | None
) -> None:
    train = outsider.spec()["train"] | {"epochs": 60 if kind == "train" else 2}
    job = await outsider.submit(outsider.spec(train=train, deploy=None))
    await outsider.until(job, moment, **({"kind": kind} if kind else {}))
    await outsider.js.publish(f"llmos.call.scheduler.cancel.{job}", json.dumps({"job": job}).encode())
    history = await outsider.history(job)
    assert facts(history)[-1] == "job.cancelled"
    assert cli(stack, "cancel", job).returncode == 0, "a repeated cancel changes nothing"
    nodes = json.loads(cli(stack, "get", "nodes", "-o", "json").stdout)
    assert not any(job in task for node in nodes for task in node.get("tasks", []))


async def test_poison_ends_in_dead_and_can_be_replayed(outsider: Outsider, stack: local.StackInfo) -> None:
    subject = "llmos.work.train.n1.poison"
    await outsider.js.publish(subject, b'{"task": 5}')

    async def letters() -> dict[int, dict[str, Any]]:
        listed = json.loads(cli(stack, "dead", "list", "-o", "json").stdout)
        return {item["number"]: item["letter"] for item in listed if item["letter"]["subject"] == subject}

    async with asyncio.timeout(60):
        while not (dead := await letters()):
            await asyncio.sleep(0.2)
        number, letter = next(iter(dead.items()))
        assert base64.b64decode(letter["data"]) == b'{"task": 5}'
        replayed = cli(stack, "dead", "replay", str(number))
        assert replayed.returncode == 0, replayed.stderr
        while len(await letters()) < 2:  # it was poison, and dies again
            await asyncio.sleep(0.2)


async def test_a_private_job_leaves_nothing_readable_and_every_key_release_is_a_fact(
    outsider: Outsider, stack: local.StackInfo
) -> None:
    marker = "marker-of-a-private-row"
    secret = outsider.material / "secret.jsonl"
    row = json.dumps({"text": f"the {marker} is good", "label": "positive"})
    secret.write_text((outsider.material / "train.jsonl").read_text() + row + "\n")
    data = outsider.spec()["data"] | {"train": secret.as_uri()}
    spec = outsider.spec(private=True, data=data, deploy={"name": "secret"})
    history = await outsider.history(await outsider.submit(spec))
    assert facts(history)[-1] == "job.deployed"
    answer = await outsider.infer("secret", ["the lens is delightful"])
    assert answer["outputs"][0]["label"] == "positive"
    released = []
    async with asyncio.timeout(20):
        async for fact, event, _ in outsider.events():
            if fact == "key.released":
                released.append(event["principal"])
                if event["principal"] == "inferencer/n1":
                    break
    assert {"trainer/n1", "exporter/n1", "inferencer/n1"} <= set(released)
    stored = b"".join(path.read_bytes() for path in Path(stack.data_dir, "artifacts").rglob("*") if path.is_file())
    assert marker.encode() not in stored
