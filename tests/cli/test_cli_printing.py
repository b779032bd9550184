"""What people read: numbers, durations, and one line an event."""

import asyncio
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from llmos.contracts import deployments, jobs, leader, models, nodes, queues, subjects, tasks
from llmos.errors import Problem
from llmos.testing.commands import Commands
from llmos.testing.scripted import NODE, ScriptedScheduler, deployed, refused, rejected, version_of
from llmos_cli.printing import duration, number, print_fields, print_table, size
from llmos_cli.telling import tell
from llmos_cli.watch import watch

SPEC = jobs.JobSpec("intents", jobs.ModelSource("hf:a/b"), jobs.DataSource("file:///a"))
TOLD_TO_NOBODY = {"inference", "key", "manifest"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-1, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (270_000, "3 d 3 h"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (23_173_530, "22.1 MiB"), (2**50, "1024.0 TiB")],
)
def test_a_size_is_in_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert size(count) == text


def test_a_number_keeps_what_stands_before_its_point() -> None:
    assert [number(value) for value in (0.123456, 99.96, 91_690_000.0, -0.5)] == ["0.1235", "99.96", "91690000", "-0.5"]


def test_columns_are_as_wide_as_their_longest_cell(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["A", "LONG"], [("wide cell", True), (None, 0.123456), (["x", "y"], "a\nb")])
    assert capsys.readouterr().out == "A           LONG\nwide cell   yes\n-           0.1235\nx, y        a b\n"


def test_empty_fields_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields([("a", 1), ("b", ""), ("c", None), ("d", []), ("e", False)])
    assert capsys.readouterr().out == "a:             1\ne:             no\n"


def test_every_fact_of_a_job_or_the_cluster_is_told_in_one_line_but_checkpoints() -> None:
    where: dict[str, Any] = {
        "task": "j-train",
        "job": "j",
        "tenant": "default",
        "kind": "train",
        "lease": 1,
        "node": NODE,
    }
    events = [
        *deployed("j", SPEC), *rejected("j", SPEC), *refused("j", SPEC),
        jobs.JobAdmitted("j", SPEC, 1.0), jobs.JobCancelling("j", "default", "ada"), jobs.JobCancelled("j", "default"),
        jobs.JobFailed("j", "default", Problem("error", "no\n memory")), jobs.JobSucceeded("j", "default", "m", 1),
        tasks.TaskFailed(**where, problem=Problem("error", "out of memory"), retryable=False),
        tasks.TaskCancelled(**where), tasks.TaskPreempting(**where, by="job-9", reason="its quota"),
        tasks.TaskLost(**where, reason="no sign of life"), tasks.TaskRejected("t", "j", "default", 1, NODE),
        tasks.TaskRefused("t", "j", "default", 1, NODE, ["too bad"]),
        deployments.DeploymentChanged("d", "default", 1, "j", version_of("j", SPEC), [NODE]),
        models.ModelRefused("m", "j", "default", ["too bad"]),
        deployments.ReplicaReady("d", "default", NODE, 1, "m", 1),
        deployments.ReplicaFailed("d", "default", NODE, 1, Problem("error", "bad signature")),
        nodes.NodeInventoried(NODE, 1, nodes.Inventory(2, 1 << 30)), nodes.WorkerJoined(NODE, "trainer"),
        nodes.WorkerLost(NODE, "trainer"), nodes.NodeLost(NODE), nodes.NodeCordoned(NODE, True, "ada", "a fan"),
        nodes.NodeUncordoned(NODE), queues.QueuesChanged([]), queues.ReservationMade("r", [NODE]),
        queues.ReservationEnded("r"), leader.LeaderElected("i", 1),
    ]  # fmt: skip
    told = {type(event): tell(event) for event in events if isinstance(event, msgspec.Struct)}
    assert all(line and "\n" not in line for line in told.values())
    silent = {tasks.TaskCheckpointed, deployments.ReplicaUnloaded}
    of_jobs = {row.type for row in subjects.EVENTS if row.pattern.split(".")[2] not in TOLD_TO_NOBODY}
    assert of_jobs - set(told) - silent == set()


async def test_plain_progress_is_told_at_each_phase_and_then_every_five_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    where: dict[str, Any] = {
        "task": "j-train",
        "job": "j",
        "tenant": "default",
        "kind": "train",
        "lease": 1,
        "node": NODE,
    }
    times = iter([0.0, 1.0, 4.0, 6.0, 6.0])

    async def events() -> AsyncIterator[msgspec.Struct]:
        for step in (1, 2, 3, 4):
            yield tasks.TaskProgressed(**where, phase="train", step=step, steps=9, eta=61.0, metrics={"loss": 0.5})
        yield jobs.JobDeployed("j", "default", "m", 1, [NODE])

    await watch(events(), lambda: next(times))
    assert capsys.readouterr().err.splitlines() == [
        "train, step 1/9, loss 0.5, 1 min 1 s left",
        "train, step 4/9, loss 0.5, 1 min 1 s left",
        "deployed: m version 1 on scripted",
    ]


async def test_on_a_terminal_a_bar_shows_the_running_task(
    llmos: Commands, scheduler: ScriptedScheduler, spec_file: os.PathLike[str]
) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "llmos_cli", "submit", str(spec_file), "--wait"]
    env = llmos.env | {"TERM": "xterm-256color", "COLUMNS": "120"}
    process = await asyncio.create_subprocess_exec(*command, env=env, stderr=slave, stdout=subprocess.PIPE)
    os.close(slave)
    seen = b""
    loop = asyncio.get_running_loop()
    while True:
        try:
            seen += await loop.run_in_executor(None, os.read, master, 65_536)
        except OSError:  # the terminal's other end is closed
            break
    out, _ = await process.communicate()
    os.close(master)
    assert process.returncode == 0
    assert b"deployed: intents version 1 on scripted" in seen
    assert b"step 2/2" in seen
    assert "━".encode() in seen
    assert b"state:         deployed" in out
