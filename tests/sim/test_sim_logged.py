"""A running system's events, read back as what really happened: jobs, their work, nodes and queues."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from llmos.contracts import jobs, nodes, queues, subjects, tasks
from llmos.errors import Problem, Rejected
from llmos_scheduler.cluster import Shape
from llmos_scheduler.logged import Log, fold, read_lines
from llmos_scheduler.queues import Queue
from llmos_scheduler.replay import Replay, Setting
from llmos_scheduler.replay_logged import bare, fitted, trace_of
from llmos_scheduler.replay_summary import Tally
from llmos_scheduler.simulate import main

SPEC = jobs.JobSpec("intents", jobs.ModelSource("hf:a/b"), jobs.DataSource("file:///rows"))


def line(at: float, event: Struct) -> bytes:
    kind = subjects.event_row(event).ce_type
    return msgspec.json.encode({"sequence": 1, "time": at, "type": kind, "data": event}) + b"\n"


def history(*facts: tuple[float, Struct]) -> Log:
    ordered = sorted(facts, key=lambda fact: fact[0])
    return fold(read_lines([line(at, event) for at, event in ordered], "events.jsonl"))


def task(job: str = "j", kind: tasks.Kind = "train", lease: int = 1, node: str = "n") -> dict[str, object]:
    return {"task": f"{job}-{kind}", "job": job, "tenant": "default", "kind": kind, "lease": lease, "node": node}


def placed(lease: int = 1, **more: object) -> Struct:
    return tasks.TaskPlaced(**task(lease=lease), attempt=1, **more)  # type: ignore[arg-type]


def said(kind: type[Struct], lease: int = 1, **more: object) -> Struct:
    return kind(**task(lease=lease), **more)


def admitted(spec: jobs.JobSpec = SPEC, job: str = "j") -> Struct:
    return jobs.JobAdmitted(job, spec, 0.0)


CHECKED = tasks.TaskSucceeded(**task(kind="check", lease=9), metrics={"rows_train": 100.0})  # type: ignore[arg-type]


def test_a_job_is_ready_when_it_was_checked_and_its_work_is_the_time_it_ran() -> None:
    log = history((1, admitted()), (3, CHECKED), (10, placed(devices=["a", "b"])), (70, said(tasks.TaskSucceeded)))
    (job,) = log.worked()
    assert (job.ready, job.ended, job.work, job.rows, job.guessed) == (3_000, 70_000, 60_000, 100.0, False)
    assert job.leases[0].places == {"n": ("a", "b")}
    assert (log.first, log.last, log.facts) == (1_000, 70_000, 4)


def test_a_preempted_run_counts_and_a_lost_one_counts_up_to_its_checkpoint() -> None:
    log = history(
        (0, admitted()),
        (0, placed(1)), (10, said(tasks.TaskCancelled, 1)),
        (20, placed(2)), (27, tasks.TaskCheckpointed("j-train", "j", "default", 2, 5, "sha256:a")),
        (30, said(tasks.TaskLost, 2, reason="gone")),
        (40, placed(3)), (41, said(tasks.TaskFailed, 3, problem=Problem("error", "x"))),
        (50, placed(4)), (55, said(tasks.TaskSucceeded, 4)),
    )  # fmt: skip
    (job,) = log.worked()
    assert job.work == 10_000 + 7_000 + 0 + 5_000
    assert [lease.outcome for lease in job.leases] == ["stopped", "failed", "failed", "done"]


def test_what_a_lease_that_is_over_says_changes_nothing() -> None:
    log = history(
        (0, admitted()), (0, placed(1)), (5, said(tasks.TaskLost, 1, reason="gone")), (6, placed(2)),
        (8, said(tasks.TaskSucceeded, 1)), (20, said(tasks.TaskSucceeded, 2)),
    )  # fmt: skip
    assert log.worked()[0].ended == 20_000


def test_a_job_that_goes_on_is_guessed_from_its_like_or_from_what_it_did() -> None:
    ended = [
        fact
        for number in (1, 2)
        for fact in (
            (number, admitted(job=f"old-{number}")),
            (number, tasks.TaskPlaced(**task(f"old-{number}"), attempt=1)),  # type: ignore[arg-type]
            (number + 50, tasks.TaskSucceeded(**task(f"old-{number}"))),  # type: ignore[arg-type]
        )
    ]
    other = msgspec.structs.replace(SPEC, name="other", model=jobs.ModelSource("hf:c/d"))
    log = history(
        *ended, (60, admitted()), (61, CHECKED), (61, admitted(other, "k")),
        (61, tasks.TaskPlaced(**task("k"), attempt=1)), (70, placed()),
    )  # fmt: skip
    works = {job.id: (job.work, job.guessed) for job in log.worked()}
    assert works["j"] == (50_000, True)
    assert works["k"] == (9_000, True)


def test_a_job_that_was_never_ready_is_left_out() -> None:
    assert history((0, admitted()), (5, jobs.JobCancelled("j", "default"))).worked() == []


def test_nothing_is_trained_so_the_export_is_the_work() -> None:
    spec = msgspec.structs.replace(SPEC, train=jobs.TrainSettings(method="none"))
    export = task(kind="export", lease=2)
    log = history(
        (0, admitted(spec)), (1, CHECKED), (2, tasks.TaskPlaced(**export, attempt=1)),  # type: ignore[arg-type]
        (9, tasks.TaskSucceeded(**export)),  # type: ignore[arg-type]
    )  # fmt: skip
    assert [(job.kind, job.work) for job in log.worked()] == [("export", 7_000)]


def test_a_gang_holds_the_devices_of_all_its_members() -> None:
    members = [tasks.Member("n", ["a"]), tasks.Member("m", ["b"])]
    log = history((0, admitted()), (1, placed(members=members, devices=["a"])), (2, said(tasks.TaskSucceeded)))
    assert log.worked()[0].leases[0].places == {"n": ("a",), "m": ("b",)}


def test_nodes_that_took_work_and_the_newest_queues_are_kept() -> None:
    inventory = nodes.Inventory(cpus=8, memory=1 << 30)
    log = history(
        *((0, nodes.NodeInventoried(name, 1, inventory)) for name in ("n", "m")),
        (1, nodes.WorkerJoined("n", "trainer", ["check", "train"])),
        (1, nodes.WorkerJoined("m", "inferencer", ["serve"])),
        (2, queues.QueuesChanged([queues.QueueSettings("a")])), (3, queues.QueuesChanged([queues.QueueSettings("b")])),
    )  # fmt: skip
    assert (list(log.nodes), [queue.name for queue in log.queues]) == (["n"], ["b"])


def test_unknown_facts_and_bodies_are_passed_over_and_a_broken_line_is_named() -> None:
    unknown = b'{"time": 1, "type": "llmos.x.y.v1", "data": {}}\n'
    unreadable = b'{"time": 2, "type": "llmos.job.admitted.v1", "data": 7}\n'
    assert fold(read_lines([unknown, b"\n", unreadable], "x")).facts == 2
    with pytest.raises(Rejected, match=r"^events.jsonl, line 2: "):
        fold(read_lines([line(1, admitted()), b"{\n"], "events.jsonl"))


def shared_history() -> list[tuple[float, Struct]]:
    """A node of two GPUs: `long` has both, `short` waits for it; `late` goes on."""
    inventory = nodes.Inventory(cpus=8, memory=8 << 30, gpus=[nodes.Gpu(f"g{n}", "H100", 1 << 30, n) for n in (0, 1)])
    facts: list[tuple[float, Struct]] = [
        (100, nodes.NodeInventoried("n", 1, inventory)),
        (100, nodes.WorkerJoined("n", "trainer", ["check", "train"])),
        (100, queues.QueuesChanged([queues.QueueSettings("default", "srsf")])),
    ]
    for place, (job, begin, end, gpus) in enumerate(
        (("long", 110, 210, 2), ("short", 210, 220, 1), ("late", 220, 0, 1))
    ):
        spec = msgspec.structs.replace(SPEC, name=job, priority=50 + place, resources=jobs.ResourceRequest(gpus=gpus))
        where: dict[str, Any] = task(job, lease=place + 1)
        facts += [
            (110, admitted(spec, job)),
            (110, tasks.TaskSucceeded(**{**where, "task": f"{job}-check", "kind": "check"})),
            (begin, tasks.TaskPlaced(**where, attempt=1, devices=["g0", "g1"][:gpus])),
        ]
        if end:
            facts.append((end, tasks.TaskSucceeded(**where)))
    return [*facts, (230, nodes.NodeLost("other"))]


def test_what_really_happened_is_told_in_the_terms_of_a_replay() -> None:
    trace = trace_of(history(*shared_history()))
    assert ({name: len(machine.devices) for name, machine in trace.nodes.items()}, trace.unit) == ({"n": 2}, "GPUs")
    assert trace.guessed == {"late"}
    assert [(job.id, job.submitted, job.duration, job.gpus) for job in trace.arrivals] == [
        ("long", 10_000, 100_000, 2), ("short", 10_000, 10_000, 1), ("late", 10_000, 77_500, 1),
    ]  # fmt: skip
    tally = Tally(2, trace.guessed)
    for event in trace.events:
        tally.add(event)
    summary = tally.summary("really", True)
    assert (summary.jobs, summary.average_jct_s) == (2, 105.0)


def test_a_history_is_replayed_beside_what_really_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"".join(line(at, event) for at, event in sorted(shared_history(), key=lambda fact: fact[0])))
    assert main(["replay", "--from-log", str(file), "--json"]) == 0
    really, planned = json.loads(capsys.readouterr().out)
    assert (really["policy"], really["average_jct_s"]) == ("really", 105.0)
    assert (planned["policy"], planned["average_jct_s"]) == ("priority", (10 + 77.5 + 100) / 2)
    assert main(["replay", "--from-log", str(file), "--nodes", "2x2", "--policy", "fifo"]) == 0
    out = capsys.readouterr().out
    assert "15 events, 3 jobs on 1 node; 1 had not ended: they load the cluster, and are not counted." in out


def test_shares_labels_and_models_are_replayed_as_they_were_asked_for() -> None:
    gpus = [nodes.Gpu(f"g{n}", "H100", 80 << 30, n) for n in (0, 1)]
    facts: list[tuple[float, Struct]] = [
        (0, nodes.NodeInventoried("n", 1, nodes.Inventory(8, 64 << 30, gpus=gpus, labels={"zone": "a"}))),
        (0, nodes.WorkerJoined("n", "trainer", ["check", "train"])),
    ]
    half = jobs.ResourceRequest(gpus=1, gpu_milli=500)
    elsewhere = jobs.ResourceRequest(gpus=1, labels={"zone": "b"})
    for lease, (job, wants) in enumerate((("a", half), ("b", half), ("c", elsewhere)), 1):
        where: dict[str, Any] = task(job, lease=lease)
        spec = msgspec.structs.replace(SPEC, name=job, resources=wants)
        facts += [(0, admitted(spec, job)), (1, tasks.TaskPlaced(**where, attempt=1, devices=["g0"]))]
        facts.append((11, tasks.TaskSucceeded(**where)))
    trace = trace_of(history(*facts))
    assert [job.milli for job in trace.arrivals] == [500, 500, 1000]
    events = list(Replay(trace.nodes, trace.arrivals, Setting("priority")).events())
    assert [(event.kind, event.job.id) for event in events][:3] == [("rejected", "c"), ("start", "a"), ("start", "b")]
    tally = Tally(2)
    for event in events:
        tally.add(event)
    assert max(step.busy for step in tally.course()) == 1.0
    assert [bare(job).shape for job in trace.arrivals][2] == Shape(gpus=1)


def test_quotas_that_other_nodes_can_not_keep_are_cut_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "events.jsonl"
    settings = queues.QueuesChanged([queues.QueueSettings("a", quota=6), queues.QueueSettings("default", quota=2)])
    facts = sorted([*shared_history(), (105.0, settings)], key=lambda fact: fact[0])
    file.write_bytes(b"".join(line(at, event) for at, event in facts))
    assert main(["replay", "--from-log", str(file)]) == 0
    assert "so all were cut alike" in capsys.readouterr().out
    assert [queue.quota for queue in fitted([Queue("a", quota=6), Queue("b", quota=2), Queue("c")], 4)] == [3, 1, None]
    assert fitted([Queue("a", quota=6)], 6) == (Queue("a", quota=6),)


def test_a_history_without_work_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "events.jsonl").write_bytes(line(1, admitted()))
    assert main(["replay", "--from-log", str(tmp_path / "events.jsonl")]) == 2
    assert "none of the 1 jobs" in capsys.readouterr().err
    assert main(["replay", "--from-log", str(tmp_path / "none.jsonl")]) == 2
