"""Reading commands: tables for people, JSON and YAML for programs, 3 for what is not there."""

import asyncio
import json
import signal

import msgspec
import pytest
import yaml

from llmos.bus import Bus
from llmos.client import Client
from llmos.contracts import jobs, models
from llmos.contracts.models import Candidate, ModelRecord, ModelVersion
from llmos.testing.commands import Commands
from llmos.testing.scripted import NODE, ScriptedInferencer, ScriptedScheduler, playing, version_of
from llmos_cli.describe import print_model

SPEC = {"name": "intents", "model": {"base": "hf:a/b"}, "data": {"train": "file:///rows.jsonl"}}


async def make_job(bus: Bus, job: str = "job-1") -> str:
    client = Client(bus)
    await client.submit(SPEC, job)
    await client.wait(job, timeout=20)
    return job


async def test_jobs_are_listed_as_table_json_and_yaml(llmos: Commands, scheduler: ScriptedScheduler, bus: Bus) -> None:
    await make_job(bus)
    table = (await llmos.run("get", "jobs")).out.splitlines()
    assert table[0].split() == ["JOB", "NAME", "STATE", "PRIORITY", "AGE", "MODEL", "ACCURACY"]
    assert table[1].split()[:4] == ["job-1", "intents", "deployed", "50"]
    listed = (await llmos.run("get", "jobs", "-o", "json")).json()
    assert [job["job"] for job in listed] == ["job-1"]
    assert yaml.safe_load((await llmos.run("get", "jobs", "-o", "yaml")).out) == listed
    assert (await llmos.run("get", "job", "job-1", "-o", "json")).json()["state"] == "deployed"
    assert (await llmos.run("get", "jobs", "--state", "failed", "-o", "json")).json() == []


async def test_an_empty_list_says_so_on_stderr(llmos: Commands, scheduler: ScriptedScheduler) -> None:
    done = await llmos.run("get", "models")
    assert (done.code, done.err) == (0, "no models\n")


async def test_models_nodes_and_deployments_are_listed(llmos: Commands, scheduler: ScriptedScheduler, bus: Bus) -> None:
    spec = jobs.JobSpec("intents", jobs.ModelSource("hf:a/b"), jobs.DataSource("file:///a"))
    await bus.bucket("models").put("intents", models.ModelRecord("intents", "default", [version_of("job-1", spec)]))
    await ScriptedInferencer(bus, "intents").deploy()
    assert (await llmos.run("get", "models")).out.splitlines()[1].split()[:3] == ["intents", "1", "fp32"]
    assert (await llmos.run("get", "nodes")).out.splitlines()[1].split()[:3] == [NODE, "ready", "0/2"]
    assert (await llmos.run("get", "deployments")).out.splitlines()[1].split()[:3] == ["intents", "intents@1", "1/1"]
    assert "  labels:      no, yes" in (await llmos.run("describe", "model", "intents")).out
    assert "memory:        8.0 GiB" in (await llmos.run("describe", "node", NODE)).out


async def test_a_job_is_described_with_why_it_ended(llmos: Commands, scheduler: ScriptedScheduler, bus: Bus) -> None:
    scheduler.story = lambda job, spec: iter([jobs.JobRefused(job, "default", ["accuracy 0.5 is below 0.9"])])
    await make_job(bus)
    done = await llmos.run("describe", "job", "job-1")
    assert done.code == 0
    assert "state:         refused" in done.out
    assert "  accuracy 0.5 is below 0.9" in done.out


async def test_what_is_not_there_is_3(llmos: Commands, scheduler: ScriptedScheduler) -> None:
    lines = (
        "get job none", "get model none", "get node none", "get deployment none", "describe job a.b", "cancel none",
        "explain none", "logs none", "infer none x", "dead show 7", "audit verify",
    )  # fmt: skip
    for done in await asyncio.gather(*(llmos.run(*line.split()) for line in lines)):
        assert (done.code, done.out) == (3, ""), done
        assert done.err.startswith("error: ")


async def test_without_a_scheduler_a_question_is_5(llmos: Commands, nats_url: str) -> None:
    done = await llmos.run("get", "jobs", LLMOS_NATS_URL=nats_url)
    assert done.code == 5
    assert "scheduler did not answer" in done.err


async def test_a_job_is_explained_and_cancelled(llmos: Commands, scheduler: ScriptedScheduler, bus: Bus) -> None:
    scheduler.story = lambda job, spec: iter([asyncio.Event()])
    await Client(bus).submit(SPEC, "job-1")
    await anext(Client(bus).events("job-1"))
    explained = await llmos.run("explain", "job-1")
    assert "job-1 is queued: it waits for a node with 1 GPU" in explained.out
    assert "what helps:\n  Add a node." in explained.out
    assert (await llmos.run("cancel", "job-1", "--reason", "wrong data")).code == 0
    assert scheduler.cancelled[0].reason == "wrong data"
    assert scheduler.cancelled[0].requested_by.startswith("cli/")


async def test_cancelling_what_has_ended_says_so_and_is_1(
    llmos: Commands, scheduler: ScriptedScheduler, bus: Bus
) -> None:
    await make_job(bus)
    done = await llmos.run("cancel", "job-1")
    assert (done.code, done.out, done.err) == (1, "", "job-1 had ended before: deployed; nothing was cancelled\n")
    assert (await llmos.run("cancel", "job-1", "-o", "json")).json()["state"] == "deployed"


async def test_a_deployed_model_is_asked_with_words_and_files(
    llmos: Commands, scheduler: ScriptedScheduler, bus: Bus
) -> None:
    inferencer = ScriptedInferencer(bus, "intents")
    await inferencer.deploy()
    async with playing(inferencer):
        table = await llmos.run("infer", "intents", "good day", "bad day")
        assert [line.split()[0] for line in table.out.splitlines()] == ["LABEL", "yes", "no"]
        done = await llmos.run("infer", "intents", "-f", "-", "-o", "json", stdin="a good one\n\nanother\n" * 40)
    answer = done.json()
    assert (answer["model"], answer["version"], len(answer["outputs"])) == ("intents", 1, 80)
    assert [len(request.inputs) for request in inferencer.requests] == [2, 64, 16]


async def test_a_jobs_events_are_its_log(llmos: Commands, scheduler: ScriptedScheduler, bus: Bus) -> None:
    await make_job(bus)
    lines = (await llmos.run("logs", "job-1")).out.splitlines()
    assert "admitted: intents, priority 50" in lines[0]
    assert "deployed: intents version 1 on scripted" in lines[-1]
    facts = [json.loads(line) for line in (await llmos.run("logs", "job-1", "-f", "-o", "json")).out.splitlines()]
    assert [facts[0]["type"], facts[-1]["type"]] == ["llmos.job.admitted.v1", "llmos.job.deployed.v1"]
    assert [fact["sequence"] for fact in facts] == sorted(fact["sequence"] for fact in facts)
    assert (await llmos.run("logs", "job-1", "-n", "2")).out.splitlines() == lines[-2:]
    assert (await llmos.run("logs", "job-1", "-n", "0")).out == ""


async def test_following_a_job_ends_with_the_job(llmos: Commands, scheduler: ScriptedScheduler, bus: Bus) -> None:
    gate = asyncio.Event()
    scheduler.story = lambda job, spec: iter([gate, jobs.JobSucceeded(job, "default", "intents", 1)])
    await Client(bus).submit(SPEC, "job-1")
    await anext(Client(bus).events("job-1"))
    process = await llmos.start("logs", "job-1", "-f")
    assert b"admitted" in await process.stdout.readline()
    gate.set()
    done = await process.done()
    assert "succeeded" in done.out
    assert done.code == 0


async def test_ctrl_c_ends_following_with_130(llmos: Commands, scheduler: ScriptedScheduler, bus: Bus) -> None:
    scheduler.story = lambda job, spec: iter([asyncio.Event()])
    await Client(bus).submit(SPEC, "job-1")
    await anext(Client(bus).events("job-1"))
    process = await llmos.start("logs", "job-1", "-f")
    await process.stdout.readline()
    process.send(signal.SIGINT)
    done = await process.done()
    assert (done.code, done.err) == (130, "")


async def test_a_dead_message_is_listed_shown_and_published_again(llmos: Commands, bus: Bus, nats_url: str) -> None:
    llmos.env["LLMOS_NATS_URL"] = nats_url
    assert (await llmos.run("dead", "list")).err == "no dead letters\n"
    await Client(bus).submit(SPEC, "job-1")
    taken = bus.work("JOBS", "scheduler", "llmos.job.submit.*.*", msgspec.Raw, slots=lambda: 1)
    async for delivery in taken:
        await delivery.dead("it can't be read")
        break
    (letter,) = (await llmos.run("dead", "list", "-o", "json")).json()
    number = str(letter["number"])
    assert letter["letter"]["reason"] == "it can't be read"
    shown = await llmos.run("dead", "show", number)
    assert "it can't be read" in shown.out
    assert 'payload:\n{"tenant":"default","name":"intents"' in shown.out
    scheduler = ScriptedScheduler(bus)
    async with playing(scheduler), asyncio.timeout(30):
        for _ in range(2):
            assert (await llmos.run("dead", "replay", number)).code == 0
        while len(scheduler.heard) < 2:
            await asyncio.sleep(0.01)
    assert [(subject, body["name"]) for subject, _, body in scheduler.heard] == [
        ("llmos.job.submit.default.job-1", "intents")
    ] * 2


def test_what_auto_measured_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    tried = [
        Candidate("fp32", {"accuracy": 0.93, "latency_ms_p50": 4.2, "size_bytes": 2048.0}, {"agreement": 1.0}),
        Candidate(
            "int8", {"accuracy": 0.92, "latency_ms_p50": 1.1, "size_bytes": 1024.0}, {"agreement": 0.99}, [], True
        ),
        Candidate("int4", {"accuracy": 0.5}, reasons=["accuracy is 0.5"]),
    ]
    version = ModelVersion("m", 1, "default", "text-classification", "sha256:0", "job", 0.0, "int8", candidates=tried)
    print_model(ModelRecord("m", "default", [version]))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:4] == ["int8", "1.10", "ms", "1.0"] and line.endswith("kept") for line in lines)
    assert any(line.startswith("int4") and line.endswith("accuracy is 0.5") for line in lines)
    assert any(line.split() == ["precision:", "int8", "for", "cpu"] for line in lines)
