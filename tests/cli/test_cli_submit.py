"""`llmos submit`: what is published, what is said, how it exits."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.artifacts import open_store
from llmos.contracts import jobs, tasks
from llmos.testing.commands import Commands
from llmos.testing.scripted import NODE, ScriptedScheduler, Step, refused, rejected


async def test_a_submitted_job_prints_its_id_and_nothing_else(
    llmos: Commands, scheduler: ScriptedScheduler, spec_file: Path
) -> None:
    done = await llmos.run("submit", str(spec_file))
    assert done.code == 0, done.err
    assert done.out.strip() in scheduler.jobs
    _, headers, body = scheduler.heard[0]
    assert body["train"] == {"learning_rate": 5e-5}
    assert headers["traceparent"].startswith("00-")


async def test_data_beside_the_spec_goes_into_the_artifact_store(
    llmos: Commands, scheduler: ScriptedScheduler, spec_file: Path, tmp_path: Path
) -> None:
    store_url = (tmp_path / "store").as_uri()
    done = await llmos.run("submit", str(spec_file), LLMOS_ARTIFACTS=store_url)
    assert done.code == 0, done.err
    reference = scheduler.heard[0][2]["data"]["train"]
    stored = await open_store(store_url).get_bytes(reference.removeprefix("artifact:"))
    assert stored == (tmp_path / "rows.jsonl").read_bytes()
    assert "stored rows.jsonl" in done.err


async def test_without_a_store_the_path_becomes_absolute(
    llmos: Commands, scheduler: ScriptedScheduler, spec_file: Path
) -> None:
    await llmos.run("submit", str(spec_file))
    assert scheduler.heard[0][2]["data"]["train"] == spec_file.with_name("rows.jsonl").as_uri()


async def test_fields_can_be_set_and_the_spec_can_come_from_stdin(
    llmos: Commands, scheduler: ScriptedScheduler
) -> None:
    spec = '{"name": "a", "model": {"base": "hf:a/b"}, "data": {"train": "hf:c/d"}}'
    options = ("--set", "name=b", "--set", "train.epochs=2", "-o", "json", "--id", "job-9")
    done = await llmos.run("submit", "-", *options, stdin=spec)
    assert done.json() == {"job": "job-9", "state": "queued"}
    assert (scheduler.heard[0][2]["name"], scheduler.heard[0][2]["train"]) == ("b", {"epochs": 2})


async def test_a_dry_run_needs_no_stack_and_publishes_nothing(llmos: Commands, spec_file: Path) -> None:
    done = await llmos.run("submit", str(spec_file), "--dry-run", "--set", "priority=90")
    assert done.code == 0, done.err
    spec = json.loads(done.out)
    assert (spec["priority"], spec["data"]["train"]) == (90, spec_file.with_name("rows.jsonl").as_uri())


async def test_every_fault_of_a_spec_is_found_without_a_stack(llmos: Commands, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: a b\ntrain:\n  epochs: 0\n  epoch: 1\nmodel:\n  base: ./none\n")
    for arguments in (("--dry-run",), ()):
        done = await llmos.run("submit", "job.yaml", *arguments)
        assert (done.code, done.out) == (2, "")
        places = [line.split(": ")[1:3] for line in done.err.splitlines() if line.startswith("error: ")]
        assert places == [
            ["job.yaml:1", "data"],
            ["job.yaml:1", "name"],
            ["job.yaml:3", "train.epochs"],
            ["job.yaml:4", "train.epoch"],
            ["job.yaml:6", "model.base"],
        ]


async def test_a_rejected_spec_is_2_and_every_fault_names_its_line(
    llmos: Commands, scheduler: ScriptedScheduler, spec_file: Path
) -> None:
    faults = [jobs.Fault("train.learning_rate", "must be at most 1"), jobs.Fault("deploy.name", "is missing")]
    scheduler.story = lambda job, spec: iter([jobs.JobRejected(job, spec.tenant, faults)])
    done = await llmos.run("submit", str(spec_file))
    assert (done.code, done.out) == (2, "")
    assert f"error: {spec_file}:7: train.learning_rate: must be at most 1" in done.err
    assert f"error: {spec_file}:1: deploy.name: is missing" in done.err


async def test_faults_of_the_data_name_the_file_that_was_sent(
    llmos: Commands, scheduler: ScriptedScheduler, spec_file: Path
) -> None:
    scheduler.story = rejected
    done = await llmos.run("submit", str(spec_file), "--wait")
    assert done.code == 2
    assert f"error: {spec_file.with_name('rows.jsonl')}:7: no 'label'" in done.err


async def test_a_wrong_file_is_2_before_anything_is_published(
    llmos: Commands, scheduler: ScriptedScheduler, tmp_path: Path
) -> None:
    wrong = {
        "name: a\nname: b\n": "job.yaml:2:1: 'name' is given twice",
        "model: {base: ./none}\ndata: {train: none.csv}\n": "job.yaml:2: data.train: there is no file",
    }
    for text, expected in wrong.items():
        (tmp_path / "job.yaml").write_text(text)
        done = await llmos.run("submit", "job.yaml")
        assert (done.code, done.out) == (2, "")
        assert expected in done.err
    (tmp_path / "job.yaml").write_bytes(b"name: \xff\n")
    assert (await llmos.run("submit", "job.yaml")).code == 2
    assert scheduler.heard == []


async def test_a_spec_file_that_is_not_there_is_3(llmos: Commands) -> None:
    done = await llmos.run("submit", "none.yaml")
    assert done.code == 3
    assert "there is no file none.yaml" in done.err


async def test_waiting_shows_progress_on_stderr_and_the_job_on_stdout(
    llmos: Commands, scheduler: ScriptedScheduler, spec_file: Path
) -> None:
    done = await llmos.run("submit", str(spec_file), "--wait", "-o", "json")
    assert done.code == 0, done.err
    assert done.json()["state"] == "deployed"
    assert "train, step 1/2, loss 1" in done.err
    assert "deployed: intents version 1 on scripted" in done.err


async def test_waiting_for_a_refused_job_is_1_with_the_reason(
    llmos: Commands, scheduler: ScriptedScheduler, spec_file: Path
) -> None:
    scheduler.story = refused
    done = await llmos.run("submit", str(spec_file), "--wait")
    assert done.code == 1
    assert "accuracy 0.50 is below 0.90" in done.out


@pytest.mark.parametrize("output", ["table", "json"])
async def test_a_closed_pipe_does_not_hide_how_the_job_ended(
    llmos: Commands, scheduler: ScriptedScheduler, spec_file: Path, output: str
) -> None:
    scheduler.story = refused
    process = await llmos.start("submit", str(spec_file), "--wait", "-o", output)
    process.stdout._transport.close()  # type: ignore[attr-defined]  # the reader goes away before anything is written
    done = await process.done()
    assert (done.code, "error" in done.err) == (1, False)


async def test_a_file_that_is_not_on_this_machine_is_noted_since_a_node_may_have_it(
    llmos: Commands, scheduler: ScriptedScheduler, spec_file: Path
) -> None:
    done = await llmos.run("submit", str(spec_file), "--set", "model.base=file:///nowhere/model")
    assert done.code == 0
    assert "note: model.base: there is no file /nowhere/model on this machine" in done.err


def forever(job: str, spec: jobs.JobSpec) -> Iterator[Step]:
    yield tasks.TaskPlaced(f"{job}-check", job, spec.tenant, "check", 1, 1, NODE)
    yield asyncio.Event()


async def test_waiting_longer_than_the_timeout_is_5_and_the_job_goes_on(
    llmos: Commands, scheduler: ScriptedScheduler, spec_file: Path
) -> None:
    scheduler.story = forever
    done = await llmos.run("submit", str(spec_file), "--wait", "--timeout", "0.3", "--id", "job-1")
    assert done.code == 5
    assert "it goes on" in done.err
    assert scheduler.cancelled == []


async def test_ctrl_c_while_waiting_leaves_the_job_running_and_says_how_to_cancel_it(
    llmos: Commands, scheduler: ScriptedScheduler, spec_file: Path
) -> None:
    scheduler.story = forever
    process = await llmos.start("submit", str(spec_file), "--wait", "--id", "job-1")
    async for line in process.stderr:
        if b"placed on" in line:
            break
    process.send(signal.SIGINT)
    done = await process.done()
    assert done.code == 130
    assert "job-1 goes on" in done.err
    assert "llmos cancel job-1" in done.err
    assert "Traceback" not in done.err
    assert scheduler.cancelled == []
    assert scheduler.jobs["job-1"].state not in jobs.ENDED


async def test_a_job_is_published_even_when_no_scheduler_answers(
    llmos: Commands, nats_url: str, spec_file: Path
) -> None:
    done = await llmos.run("submit", str(spec_file), "-o", "json", LLMOS_NATS_URL=nats_url)
    assert (done.code, done.json()["state"]) == (0, "submitted")
    assert "has not answered yet" in done.err
