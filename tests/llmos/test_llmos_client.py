"""The SDK on a real bus, with a scripted scheduler and inferencer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from llmos.artifacts import get_manifest, open_store
from llmos.bus import Bus
from llmos.client import Client
from llmos.contracts import deployments, jobs, models, tasks
from llmos.errors import Busy, NotFound, Problem, Rejected, Unreachable
from llmos.history import fold_deployments
from llmos.testing.scripted import NODE, ScriptedInferencer, ScriptedScheduler, playing, refused, rejected, version_of

SPEC: dict[str, Any] = {"name": "intents", "model": {"base": "hf:a/b"}, "data": {"train": "file:///rows.jsonl"}}


@pytest.fixture
async def client(nats_url: str, tmp_path: Path) -> AsyncIterator[Client]:
    async with await Client.connect(nats_url, artifacts=(tmp_path / "artifacts").as_uri()) as client:
        yield client


@pytest.fixture
async def scheduler(bus: Bus) -> AsyncIterator[ScriptedScheduler]:
    scheduler = ScriptedScheduler(bus)
    async with playing(scheduler):
        yield scheduler


async def test_a_job_can_be_followed_from_its_first_fact_to_its_end(
    client: Client, scheduler: ScriptedScheduler
) -> None:
    job = await client.submit(SPEC)
    events = [event async for event in client.events(job)]
    assert isinstance(events[0], jobs.JobAdmitted)
    assert isinstance(events[-1], jobs.JobDeployed)
    assert {type(event) for event in events} >= {tasks.TaskProgressed, tasks.TaskSucceeded, models.ModelExported}


async def test_events_of_other_jobs_are_not_shown(client: Client, scheduler: ScriptedScheduler) -> None:
    other, job = await client.submit(SPEC), await client.submit(SPEC)
    assert (await client.wait(other)).state == "deployed"
    exported = [event async for event in client.events(job) if isinstance(event, models.ModelExported)]
    assert [event.version.job for event in exported] == [job]


async def test_another_tenant_that_uses_a_jobs_id_is_told_so_and_disturbs_nobody(client: Client, bus: Bus) -> None:
    spec = jobs.JobSpec("intents", jobs.ModelSource("hf:a/b"), jobs.DataSource("file:///a"))
    await bus.emit(jobs.JobAdmitted("job-1", spec, 1.0))
    await bus.emit(jobs.JobRejected("job-1", "other", [jobs.Fault("", "the job id job-1 is taken")]))
    await bus.emit(jobs.JobSucceeded("job-1", "default", "intents", 1))
    assert [type(event) async for event in client.events("job-1")] == [jobs.JobAdmitted, jobs.JobSucceeded]
    assert isinstance(await client.verdict("job-1", "default", 5), jobs.JobAdmitted)
    assert isinstance(await client.verdict("job-1", "other", 5), jobs.JobRejected)
    assert await client.verdict("job-2", "default", 0.1) is None


async def test_one_id_of_two_tenants_is_two_submissions(nats_url: str, scheduler: ScriptedScheduler) -> None:
    async with await Client.connect(nats_url, "a") as a, await Client.connect(nats_url, "b") as b:
        await a.submit(SPEC, "job-1")
        await b.submit(SPEC, "job-1")
        async with asyncio.timeout(10):
            while len(scheduler.heard) < 2:
                await asyncio.sleep(0.01)


async def test_waiting_gives_the_job_as_it_ended(client: Client, scheduler: ScriptedScheduler) -> None:
    scheduler.story = refused
    view = await client.wait(await client.submit(SPEC), timeout=10)
    assert (view.state, view.reasons) == ("refused", ["accuracy 0.50 is below 0.90"])


async def test_a_rejected_job_names_every_fault(client: Client, scheduler: ScriptedScheduler) -> None:
    scheduler.story = rejected
    view = await client.wait(await client.submit(SPEC), timeout=10)
    assert [str(fault) for fault in view.faults] == [
        f"file:///rows.jsonl:{line}: no 'label'; there is 'text'" for line in (2, 7)
    ]


async def test_waiting_too_long_is_busy_and_the_job_goes_on(client: Client, scheduler: ScriptedScheduler) -> None:
    gate = asyncio.Event()
    scheduler.story = lambda job, spec: iter([gate, jobs.JobSucceeded(job, spec.tenant, spec.name, 1)])
    job = await client.submit(SPEC)
    with pytest.raises(Busy, match="has not ended within"):
        await client.wait(job, timeout=0.3)
    gate.set()
    assert (await client.wait(job, timeout=10)).state == "succeeded"


async def test_submitting_one_id_twice_makes_one_job(client: Client, scheduler: ScriptedScheduler) -> None:
    assert await client.submit(SPEC, "job-1") == await client.submit(SPEC, "job-1") == "job-1"
    await client.wait("job-1", timeout=10)
    assert len(scheduler.heard) == 1


async def test_a_submission_carries_its_tenant_and_starts_a_trace(nats_url: str, scheduler: ScriptedScheduler) -> None:
    async with await Client.connect(nats_url, "acme") as client:
        await client.wait(await client.submit(SPEC, "job-1"), timeout=10)
    subject, headers, body = scheduler.heard[0]
    assert subject == "llmos.job.submit.acme.job-1"
    assert body["tenant"] == "acme"
    assert headers["traceparent"].startswith("00-")


async def test_a_tenant_that_is_no_word_still_reaches_the_scheduler_to_be_listed_as_a_fault(
    client: Client, scheduler: ScriptedScheduler
) -> None:
    job = await client.submit({**SPEC, "tenant": 7})
    first = await anext(client.events(job))
    assert isinstance(first, jobs.JobRejected)


async def test_a_spec_may_be_given_as_a_struct(client: Client, scheduler: ScriptedScheduler) -> None:
    spec = jobs.JobSpec("intents", jobs.ModelSource("hf:a/b"), jobs.DataSource("file:///rows.jsonl"), tenant="acme")
    assert (await client.wait(await client.submit(spec), timeout=10)).tenant == "acme"


async def test_jobs_nodes_and_reasons_are_answered_by_the_scheduler(
    client: Client, scheduler: ScriptedScheduler
) -> None:
    job = await client.submit(SPEC)
    await client.wait(job, timeout=10)
    assert [view.job for view in await client.jobs(state="deployed")] == [job]
    assert [node.node for node in await client.nodes()] == [NODE]
    assert "GPU" in (await client.explain(job)).summary


async def test_cancelling_ends_a_job_and_tells_who_asked(client: Client, scheduler: ScriptedScheduler) -> None:
    placed = tasks.TaskPlaced("job-1-check", "job-1", "default", "check", 1, 1, NODE)
    scheduler.story = lambda job, spec: iter([placed, asyncio.Event()])
    await client.submit(SPEC, "job-1")
    async with aclosing(client.events("job-1")) as events:
        assert isinstance(await anext(events), jobs.JobAdmitted)
        await client.cancel("job-1", "no longer needed", requested_by="ada")
        assert isinstance([event async for event in events][-1], jobs.JobCancelled)
    assert scheduler.cancelled == [jobs.CancelRequested("job-1", "ada", "no longer needed")]


@pytest.mark.parametrize("job", ["job-none", "not a word", "a.b", "*"])
async def test_what_does_not_exist_is_not_found(client: Client, scheduler: ScriptedScheduler, job: str) -> None:
    with pytest.raises(NotFound):
        await client.job(job)


async def test_without_a_scheduler_a_question_is_busy_not_silent(client: Client) -> None:
    with pytest.raises(Busy, match="scheduler did not answer"):
        await client.bus.call("scheduler", "jobs", jobs.JobsRequested(), timeout=0.3)


async def test_registered_models_are_listed_by_name(client: Client, bus: Bus) -> None:
    assert await client.models() == []
    spec = jobs.JobSpec("intents", jobs.ModelSource("hf:a/b"), jobs.DataSource("file:///a"))
    record = models.ModelRecord("intents", "default", [version_of("job-1", spec)])
    await bus.bucket("models").put("intents", record)
    assert await client.models() == [record]
    assert await client.model("intents") == record
    with pytest.raises(NotFound, match="no model 'other'"):
        await client.model("other")


async def test_a_deployed_model_answers_every_text_in_order(client: Client, bus: Bus) -> None:
    inferencer = ScriptedInferencer(bus, "intents")
    await inferencer.deploy()
    async with playing(inferencer):
        answer = await client.infer("intents", ["good day", "bad day"], top=1)
    assert [output.label for output in answer.outputs] == ["yes", "no"]
    assert inferencer.requests[0].top == 1
    assert inferencer.requests[0].deadline is not None


async def test_asking_what_is_not_deployed_is_not_found_at_once(client: Client) -> None:
    with pytest.raises(NotFound, match="nothing is deployed as 'intents'"):
        await client.infer("intents", ["good"])


async def test_asking_a_silent_replica_is_busy_after_the_timeout(client: Client, bus: Bus) -> None:
    inferencer = ScriptedInferencer(bus, "intents", silent=True)
    await inferencer.deploy()
    async with playing(inferencer):
        with pytest.raises(Busy, match="no replica of intents answered"):
            await client.infer("intents", ["good"], timeout=0.5)


async def test_a_problem_in_an_answer_is_raised(client: Client, bus: Bus) -> None:
    problem = Problem("rejected", "a text is too long", "Shorten it.", "inputs[0]")
    inferencer = ScriptedInferencer(bus, "intents", problem=problem)
    await inferencer.deploy()
    async with playing(inferencer):
        with pytest.raises(Rejected) as raised:
            await client.infer("intents", ["good"])
    assert raised.value.problem == problem


async def test_deployments_tell_how_far_each_replica_is(client: Client, bus: Bus) -> None:
    assert await client.deployments() == []
    await ScriptedInferencer(bus, "intents").deploy()
    (view,) = await client.deployments()
    assert (view.deployment, view.version, view.replicas) == ("intents", 1, {NODE: "ready"})
    assert await client.deployments("other") == []


def test_a_replica_that_was_told_to_change_is_assigned_until_it_says_ready() -> None:
    version = version_of("j", jobs.JobSpec("m", jobs.ModelSource("hf:a/b"), jobs.DataSource("file:///a")), 2)
    assigned = [deployments.ReplicaAssigned("m", node, 2, version=version) for node in ("a", "b")]
    gone = deployments.ReplicaAssigned("m", "c", 2, desired="absent")
    old = deployments.ReplicaReady("m", "default", "a", 1, "m", 1)
    failed = deployments.ReplicaFailed("m", "default", "b", 2, Problem("error", "no memory"))
    (view,) = fold_deployments([*assigned, gone], [failed, old])
    assert view.replicas == {"a": "assigned", "b": "failed"}


def test_a_replica_stays_ready_when_the_version_that_it_replaced_is_unloaded_after_it() -> None:
    version = version_of("j", jobs.JobSpec("m", jobs.ModelSource("hf:a/b"), jobs.DataSource("file:///a")), 2)
    assigned = deployments.ReplicaAssigned("m", "a", 2, version=version)
    ready = deployments.ReplicaReady("m", "default", "a", 2, "m", 2)
    replaced = deployments.ReplicaUnloaded("m", "default", "a", 2, 1, "replaced by version 2")
    for_room = deployments.ReplicaUnloaded("m", "default", "a", 2, 2, "unloaded to make room")
    assert fold_deployments([assigned], [ready, replaced])[0].replicas == {"a": "ready"}
    assert fold_deployments([assigned], [ready, for_room])[0].replicas == {"a": "unloaded"}


async def test_an_uploaded_file_is_named_by_its_digest(client: Client, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "label": "b"}\n')
    reference = await client.upload(rows)
    assert reference.startswith("artifact:sha256:")
    store = open_store((tmp_path / "artifacts").as_uri())
    assert await store.get_bytes(reference.removeprefix("artifact:")) == rows.read_bytes()


async def test_an_uploaded_directory_becomes_a_tree(client: Client, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    reference = await client.upload(tmp_path / "model")
    store = open_store((tmp_path / "artifacts").as_uri())
    assert [file.path for file in (await get_manifest(store, reference.removeprefix("artifact:"))).files] == [
        "config.json"
    ]


async def test_uploading_what_is_not_there_or_nowhere_says_so(client: Client, nats_url: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no file"):
        await client.upload(tmp_path / "none")
    async with await Client.connect(nats_url) as storeless:
        with pytest.raises(Rejected, match="no artifact store"):
            await storeless.upload(tmp_path)


async def test_connecting_to_nobody_is_unreachable_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLMOS_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("LLMOS_NATS_URL", raising=False)
    with pytest.raises(Unreachable, match="llmos up"):
        await Client.connect()
    with pytest.raises(Unreachable, match="llmos up"):
        await Client.connect("nats://127.0.0.1:1", within=0.5)


async def test_the_environment_names_the_bus(monkeypatch: pytest.MonkeyPatch, nats_url: str) -> None:
    monkeypatch.setenv("LLMOS_NATS_URL", nats_url)
    async with await Client.connect() as client:
        assert client.bus.connected
