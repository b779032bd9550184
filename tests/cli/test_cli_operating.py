"""What an operator does: cordon and drain nodes, divide the cluster into queues, reserve nodes, plan a job."""

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from llmos.bus import Bus
from llmos.client import Client
from llmos.contracts import jobs, nodes, queues
from llmos.testing.commands import Commands
from llmos.testing.scripted import NODE, ScriptedScheduler, rejected
from llmos_cli.get import gpus_of, node_state
from llmos_cli.queues import differences
from llmos_cli.reservations import read_time

QUEUES = "queues:\n- name: students\n  quota: 2\n- name: research\n  policy: srsf\n  weight: 2\n"


async def test_a_node_is_cordoned_with_a_reason_and_takes_work_again(
    llmos: Commands, scheduler: ScriptedScheduler
) -> None:
    done = await llmos.run("cordon", NODE, "--reason", "loud fan", USER="ann")
    assert (done.code, done.out) == (0, f"{NODE} is cordoned: nothing is on it\n")
    assert scheduler.asked == [nodes.CordonRequested(NODE, False, "loud fan", "cli/ann")]
    listed = await llmos.run("get", "nodes", "-o", "wide")
    assert "cordoned" in listed.out and "loud fan" in listed.out
    assert (await llmos.run("uncordon", NODE)).out == f"{NODE} takes work\n"
    assert (await llmos.run("cordon", "none")).code == 3


async def test_draining_waits_until_nothing_is_left_and_tells_what_is(
    llmos: Commands, scheduler: ScriptedScheduler
) -> None:
    scheduler.node = msgspec.structs.replace(scheduler.node, tasks=["j-train"], replicas=["reviews"])
    assert (await llmos.run("drain", NODE)).out == f"{NODE} drains: 2 things still on it\n"
    late = await llmos.run("drain", NODE, "--wait", "--timeout", "0.1")
    assert (late.code, late.out) == (5, "")
    process = await llmos.start("drain", NODE, "--wait")
    assert await process.stderr.readline() == f"still on {NODE}: j-train, reviews\n".encode()
    scheduler.node = msgspec.structs.replace(scheduler.node, tasks=[], replicas=[])
    done = await process.done()
    assert (done.code, done.out) == (0, f"{NODE} is drained: nothing is on it\n")


async def test_draining_does_not_wait_for_replicas_that_no_other_node_could_serve(
    llmos: Commands, scheduler: ScriptedScheduler
) -> None:
    scheduler.node = msgspec.structs.replace(scheduler.node, replicas=["reviews"])
    done = await llmos.run("drain", NODE, "--wait")
    assert (done.code, done.out) == (0, f"{NODE} drains: 1 thing still on it\n")
    assert done.err == f"reviews stays on {NODE}: no other node serves\n"


async def test_queues_are_applied_from_a_file_after_showing_what_changes(
    llmos: Commands, scheduler: ScriptedScheduler, tmp_path: Path
) -> None:
    (tmp_path / "queues.yaml").write_text(QUEUES)
    scheduler.queues = [queues.QueueView("students", quota=1), queues.QueueView("old", limit=4)]
    tried = await llmos.run("queues", "apply", "-f", "queues.yaml", "--dry-run")
    assert tried.code == 0
    assert tried.err.splitlines() == [
        "- old: limit 4 → none",
        "+ research: policy none → srsf, weight 1 → 2",
        "~ students: quota 1 → 2",
        "note: the quotas guarantee 2 GPUs, and the nodes that are here now have 0",
    ]
    assert scheduler.asked == []
    assert (await llmos.run("queues", "apply", "-f", "-", stdin=QUEUES, USER="ann")).code == 0
    wanted = [queues.QueueSettings("students", quota=2), queues.QueueSettings("research", "srsf", 2.0)]
    assert scheduler.asked == [queues.SetQueuesRequested(wanted, "cli/ann")]
    again = await llmos.run("queues", "apply", "-f", "queues.yaml")
    assert again.err.startswith("nothing changes")
    assert len(scheduler.asked) == 1
    lines = (await llmos.run("queues")).out.splitlines()
    assert [line.split()[:2] for line in lines] == [["QUEUE", "POLICY"], ["students", "priority"], ["research", "srsf"]]
    assert (await llmos.run("get", "queue", "research", "-o", "json")).json()["weight"] == 2


async def test_every_fault_of_a_queues_file_names_its_line(
    llmos: Commands, scheduler: ScriptedScheduler, tmp_path: Path
) -> None:
    (tmp_path / "q.yaml").write_text("queus: 1\nqueues:\n- name: a\n  policy: srfs\n- name: a\n  quota: -1\n")
    done = await llmos.run("queues", "apply", "-f", "q.yaml")
    assert done.code == 2
    assert done.err.splitlines() == [
        "error: q.yaml:1: queus: no such field; a file of queues has only queues",
        "error: q.yaml:4: queues[0].policy: there is no policy 'srfs'; did you mean srsf?",
        "error: q.yaml:5: queues[1].name: 'a' is queues[0] already",
        "error: q.yaml:6: queues[1].quota: must be at least 0 GPUs, not -1",
        "  try: correct all 4 and try again.",
    ]
    assert (await llmos.run("queues", "apply", "-f", "none.yaml")).code == 3
    assert (await llmos.run("queues", "apply", "-f", "-", stdin="[1]")).err.startswith("error: stdin: a file of queues")
    assert scheduler.asked == []


def test_a_queue_that_says_only_defaults_is_no_difference() -> None:
    assert list(differences([], [queues.QueueSettings("a")])) == []


async def test_nodes_are_reserved_for_a_while_and_set_free(llmos: Commands, scheduler: ScriptedScheduler) -> None:
    done = await llmos.run("reserve", "exam", "--nodes", "a, b", "--queue", "students", "--end", "+2h")
    assert done.code == 0, done.err
    assert done.out.startswith("exam keeps a, b for queue students, now until ")
    (asked,) = scheduler.asked
    assert isinstance(asked, queues.ReserveRequested)
    assert asked.nodes == ["a", "b"]
    assert abs((asked.end or 0) - time.time() - 7200) < 60
    assert (await llmos.run("get", "reservations")).out.splitlines()[1].split()[:4] == ["exam", "yes", "a,", "b"]
    assert (await llmos.run("unreserve", "exam")).out == "exam has ended\n"
    assert (await llmos.run("unreserve", "exam")).code == 3


async def test_a_reservation_that_makes_no_sense_is_2_before_anything_is_asked(
    llmos: Commands, scheduler: ScriptedScheduler
) -> None:
    wrong = {
        "reserve x --nodes a": "nobody is named",
        "reserve x --nodes , --queue q": "--nodes names no node",
        "reserve x --nodes a --queue q --end 2026-01-01": "has no time zone",
        "reserve x --nodes a --queue q --end soon": "is no time",
        "reserve x --nodes a --queue q --start +2h --end +1h": "not after its beginning",
    }
    for line, why in wrong.items():
        done = await llmos.run(*line.split())
        assert (done.code, why in done.err) == (2, True), done
    assert scheduler.asked == []


def test_times_are_absolute_with_a_zone_or_ahead_of_now() -> None:
    assert read_time("", "--end", 5.0) is None
    assert read_time("+90m", "--end", 5.0) == 5.0 + 5400
    assert read_time("2026-12-01T09:00+01:00", "--end", 5.0) == read_time("2026-12-01T08:00Z", "--end", 5.0)


async def test_a_job_is_planned_and_not_submitted(
    llmos: Commands, scheduler: ScriptedScheduler, spec_file: Path
) -> None:
    done = await llmos.run("plan", "-f", str(spec_file), "--set", "priority=90")
    assert done.code == 0, done.err
    assert done.out.splitlines()[:3] == [
        "It would wait.", "waits for:", "  resources  2 GPUs, 1 of 2 are free; held by job-7",
    ]  # fmt: skip
    assert done.out.splitlines()[3].startswith("earliest start: in about 1 min")
    (asked,) = scheduler.asked
    assert isinstance(asked, jobs.PlanRequested)
    assert (asked.spec["name"], asked.spec["priority"], asked.tenant) == ("intents", 90, "default")
    answer = (await llmos.run("plan", "-f", str(spec_file), "-o", "json")).json()
    assert answer["waits_for"][0]["held_by"] == ["job-7"]
    assert scheduler.heard == []


async def test_a_plan_of_a_wrong_spec_is_2_with_every_fault(llmos: Commands, spec_file: Path) -> None:
    done = await llmos.run("plan", "-f", str(spec_file), "--set", "priority=900", "--set", "nonsense=1")
    assert done.code == 2
    assert "priority: must be at most 100" in done.err and "nonsense: no such field" in done.err


async def test_describing_a_job_that_waits_says_why(llmos: Commands, scheduler: ScriptedScheduler, bus: Bus) -> None:
    scheduler.story = lambda job, spec: iter([asyncio.Event()])
    spec = {"name": "intents", "model": {"base": "hf:a/b"}, "data": {"train": "file:///rows.jsonl"}}
    await Client(bus).submit(spec, "job-1")
    await anext(Client(bus).events("job-1"))
    done = await llmos.run("describe", "job", "job-1")
    assert "why it waits: it waits for a node with 1 GPU\n  why:\n    scripted: 0 GPUs" in done.out
    assert (await llmos.run("describe", "job", "job-1", "-o", "json")).json()["state"] == "queued"


async def test_events_are_exported_one_a_line(llmos: Commands, scheduler: ScriptedScheduler, bus: Bus) -> None:
    assert (await llmos.run("get", "events")).out == ""
    scheduler.story = rejected
    spec = {"name": "intents", "model": {"base": "hf:a/b"}, "data": {"train": "file:///rows.jsonl"}}
    await Client(bus).submit(spec, "job-1")
    await Client(bus).wait("job-1", timeout=20)
    (fact,) = [msgspec.json.decode(line) for line in (await llmos.run("get", "events", "-o", "json")).out.splitlines()]
    assert (fact["sequence"], fact["type"], fact["data"]["job"]) == (1, "llmos.job.rejected.v1", "job-1")
    assert "job-1" in (await llmos.run("get", "events")).out


@pytest.mark.parametrize(
    ("view", "word"),
    [
        (nodes.NodeView("a", False, cordoned=True), "away"),
        (nodes.NodeView("a", True, cordoned=True, draining=True, tasks=["t"]), "draining"),
        (nodes.NodeView("a", True, cordoned=True, draining=True), "drained"),
        (nodes.NodeView("a", True, cordoned=True), "cordoned"),
        (nodes.NodeView("a", True), "ready"),
    ],
)
def test_a_nodes_state_is_one_word(view: nodes.NodeView, word: str) -> None:
    assert node_state(view) == word


def test_alike_gpus_and_slices_are_shown_together_with_what_is_leased() -> None:
    gpus = [nodes.Gpu(f"g{index}", "H100", 80 << 30, index) for index in range(2)]
    gpus += [nodes.Gpu("m0", "A100", 10 << 30, 2, parent="GPU-9", profile="1g.10gb")]
    view = nodes.NodeView("a", True, nodes.Inventory(8, 1 << 30, gpus=gpus), gpu_milli_leased={"g0": 1000, "g1": 250})
    assert gpus_of(view) == ["2 x H100 (1.25 leased)", "1 x A100 1g.10gb"]


async def test_preemptions_and_members_of_a_gang_are_described(
    llmos: Commands, scheduler: ScriptedScheduler, bus: Bus
) -> None:
    view = jobs.JobView(
        "j", "n", "default", "q", "training", 50, time.time(),
        tasks=[jobs.TaskView("j-train", "train", "running", 1, "a", nodes=["a", "b"], devices=["g"], preemptions=2)],
    )  # fmt: skip
    scheduler.jobs["j"] = view
    line = (await llmos.run("describe", "job", "j")).out.splitlines()[-1]
    assert "running, preempted 2x" in line and "a, b (1 GPU)" in line
