"""A running system's events, read back as what really happened: jobs, their work, nodes and queues."""

import msgspec
import pytest
from msgspec import Struct

from llmos.contracts import jobs, nodes, queues, subjects, tasks
from llmos.errors import Problem, Rejected
from llmos_scheduler.logged import Log, fold, read_lines

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
