"""`llmos simulate replay`: what holds for every trace, and what the published ideas are worth on small ones."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_scheduler.cluster import Device, Machine
from llmos_scheduler.order import HOUR, ORDERS
from llmos_scheduler.queues import Queue
from llmos_scheduler.replay import Arrival, Event, Replay, Setting
from llmos_scheduler.replay_report import averages
from llmos_scheduler.replay_summary import Step, Tally, percentile
from llmos_scheduler.simulate import main
from llmos_scheduler.simulate_replay import line
from llmos_scheduler.work import Places

NODES = [("a", 4), ("b", 2), ("c", 2)]
GPUS = 8
TIMES = st.one_of(st.sampled_from([0, 1, 1000, HOUR, 2 * HOUR]), st.integers(0, 50 * HOUR))


@st.composite
def traces(draw: st.DrawFn, queues: Sequence[str] = ("",)) -> list[Arrival]:
    rows = st.tuples(TIMES, TIMES, st.integers(1, 9), st.integers(0, 2), st.sampled_from(queues), st.none() | TIMES)
    found = draw(st.lists(rows, max_size=15))
    return [
        Arrival(f"j{n}", submitted, duration, gpus, priority, queue, deadline)
        for n, (submitted, duration, gpus, priority, queue, deadline) in enumerate(found)
    ]


SETTINGS = st.builds(
    Setting,
    order=st.sampled_from(sorted(ORDERS)),
    blind=st.booleans(),
    min_run=st.sampled_from([0, HOUR]),
    checkpoint_every=st.sampled_from([0, HOUR // 2]),
    restart_cost=st.sampled_from([0, 1000]),
)


def run(arrivals: Sequence[Arrival], setting: Setting, nodes: Sequence[tuple[str, int]] = NODES) -> list[Event]:
    machines = {name: Machine(0, 0, (Device(""),) * gpus) for name, gpus in nodes}
    return list(Replay(machines, arrivals, setting).events())


def check(arrivals: Sequence[Arrival], events: Sequence[Event], limit: int = GPUS) -> None:
    """Every job that fits ends once; gangs hold all their GPUs, of which nobody else holds any; nobody runs early."""
    holds: dict[str, Places] = {}
    begun: dict[str, int] = {}
    worked: dict[str, int] = {}
    last = 0
    ended = []
    for event in events:
        assert event.time >= last
        last = event.time
        job = event.job
        if event.kind == "rejected":
            assert job.gpus > limit
            continue
        if event.kind == "start":
            assert event.time >= job.submitted
            assert job.id not in holds
            holds[job.id], begun[job.id] = event.places, event.time
            devices = [(node, gpu) for places in holds.values() for node, gpus in places for gpu in gpus]
            assert len(devices) == len(set(devices))
            assert all(gpu < dict(NODES)[node] for node, gpu in devices)
            assert sum(len(gpus) for _, gpus in event.places) == job.gpus
        else:
            assert holds.pop(job.id) == event.places
            worked[job.id] = worked.get(job.id, 0) + event.time - begun[job.id]
        if event.kind == "end":
            ended.append(job.id)
            assert worked[job.id] >= job.duration
    assert not holds
    assert sorted(ended) == sorted(job.id for job in arrivals if job.gpus <= limit)


@settings(max_examples=300, deadline=None)
@given(traces(), SETTINGS)
def test_every_gang_gets_all_its_gpus_alone_and_every_job_ends(arrivals: list[Arrival], setting: Setting) -> None:
    check(arrivals, run(arrivals, setting))


@settings(max_examples=150, deadline=None)
@given(traces(queues=("a", "a/x", "b")), SETTINGS, st.sampled_from(sorted(ORDERS)))
def test_queues_with_quotas_and_limits_end_every_job_too(arrivals: list[Arrival], setting: Setting, order: str) -> None:
    queues = (Queue("a", quota=4), Queue("a/x", order=order, quota=2), Queue("b", weight=2, quota=3, limit=8))
    setting = Setting(setting.order, setting.blind, queues, setting.min_run, setting.checkpoint_every)
    check(arrivals, run(arrivals, setting))


@settings(max_examples=100, deadline=None)
@given(traces(queues=("a", "b")), SETTINGS)
def test_the_same_trace_gives_the_same_bytes(arrivals: list[Arrival], setting: Setting) -> None:
    assert b"".join(map(line, run(arrivals, setting))) == b"".join(map(line, run(list(arrivals), setting)))


@pytest.mark.parametrize("order", ["easy", "priority", "saf", "srsf", "las", "round-robin", "deadline"])
def test_a_large_job_starts_under_an_endless_stream_of_small_ones(order: str) -> None:
    """The stream alone asks for the whole cluster; each of its jobs ranks better when it comes."""
    large = Arrival("large", 0, 20 * HOUR, GPUS, priority=0)
    stream = [Arrival(f"s{n}", n * HOUR // 8, HOUR, 1, priority=2, deadline=(n // 8 + 3) * HOUR) for n in range(12_000)]
    events = run([*stream[:8], large, *stream[8:]], Setting(order, min_run=HOUR // 4))
    started = next(event.time for event in events if event.kind == "start" and event.job is large)
    assert started < stream[-1].submitted


def test_a_preempted_job_keeps_what_its_checkpoint_holds_and_pays_for_its_restart() -> None:
    arrivals = [Arrival("long", 0, 10_000, GPUS), Arrival("short", 3_500, 1_000, GPUS)]
    events = run(arrivals, Setting("srsf", checkpoint_every=1_000, restart_cost=200))
    told = [(event.time, event.kind, event.job.id) for event in events]
    assert told == [
        (0, "start", "long"),
        (3_500, "preemption", "long"),
        (3_500, "start", "short"),
        (4_500, "end", "short"),
        (4_500, "start", "long"),
        (4_500 + 200 + 7_000, "end", "long"),
    ]


def test_gangs_lie_on_as_few_nodes_as_possible() -> None:
    events = run([Arrival("pair", 0, 10, 2), Arrival("four", 0, 10, 4), Arrival("two", 0, 10, 2)], Setting("fifo"))
    assert [event.places for event in events if event.kind == "start"] == [
        (("b", (0, 1)),),
        (("a", (0, 1, 2, 3)),),
        (("c", (0, 1)),),
    ]


def test_a_trace_may_ask_for_models_cpus_and_memory_of_its_nodes(tmp_path: Path) -> None:
    (tmp_path / "nodes.csv").write_text(
        "sn,gpu,model,cpu_milli,memory_mib\nx,2,A,4000,64\ny,2,B,8000,64\nz,4,B,4000,64\n"
    )
    jobs = "1,0,10,2,B,8000,1\n2,0,10,1,A|C,0,0\n3,0,10,6,B,0,0\n4,0,10,1,A,8000,0\n"
    (tmp_path / "jobs.csv").write_text("job_id,submit_time,duration,num_gpu,gpu_spec,cpu_milli,memory_mib\n" + jobs)
    out = tmp_path / "out.jsonl"
    files = ["--nodes", str(tmp_path / "nodes.csv"), "--jobs", str(tmp_path / "jobs.csv"), "--out", str(out)]
    assert main(["replay", *files, "--policy", "fifo"]) == 0
    events = [json.loads(text) for text in out.read_text().splitlines()]
    assert {event["job_id"]: sorted(event["placement"]) for event in events if event["event"] == "start"} == {
        "1": ["y"],
        "2": ["x"],
    }
    assert [event["job_id"] for event in events if event["event"] == "rejected"] == ["3", "4"]


def test_the_summary_counts_what_happened() -> None:
    arrivals = [Arrival("x", 0, 20_000, GPUS, 1), Arrival("y", 0, 20_000, GPUS, 0, deadline=30_000)]
    tally = Tally(GPUS)
    for event in run([*arrivals, Arrival("huge", 0, 1, 9)], Setting("fifo")):
        tally.add(event)
    summary = tally.summary("fifo", False)
    assert (summary.jobs, summary.rejected, summary.preemptions) == (2, 1, 0)
    assert (summary.average_jct_s, summary.p99_jct_s, summary.makespan_s) == (30.0, 40.0, 40.0)
    assert (summary.bounded_slowdown, summary.utilisation, summary.fairness_jain) == (1.5, 1.0, 0.9)
    assert (summary.deadlines, summary.deadlines_met) == (1, 0)
    assert [(name, waits.average_s) for name, waits in summary.waiting_by_priority.items()] == [("0", 20.0), ("1", 0.0)]
    assert tally.course() == [Step(0, 8, 1), Step(20_000, 8, 0), Step(40_000, 0, 0)]
    assert averages(tally.course(), lambda step: step.waiting, columns=4) == [1.0, 1.0, 0.0, 0.0]
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0


TRACE = "job_id,submit_time,duration,num_gpu,priority,queue\n1,0,30,8,0,lab\n2,0,10,8,1,shop\n2,0,10,8,1,shop\n"


def replay(tmp_path: Path, trace: str, *options: str) -> int:
    (tmp_path / "jobs.csv").write_text(trace)
    return main(["replay", "--nodes", "1x8", "--jobs", str(tmp_path / "jobs.csv"), *options])


def test_the_command_writes_events_a_summary_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = tmp_path / "events.jsonl", tmp_path / "report.html"
    (tmp_path / "queues.csv").write_text("queue,policy,quota\nlab,fifo,8\nshop,srsf,0\n")
    options = ("--out", str(out), "--report", str(page), "--json", "--queues", str(tmp_path / "queues.csv"))
    assert replay(tmp_path, TRACE, *options) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["average_jct_s"] == 35.0
    assert summary["waiting_by_queue"]["shop"] == {"jobs": 1, "average_s": 30.0, "p99_s": 30.0}
    events = [json.loads(text) for text in out.read_text().splitlines()]
    assert [(event["time"], event["event"], event["job_id"]) for event in events] == [
        (0, "start", "1"),
        (30, "end", "1"),
        (30, "start", "2"),
        (40, "end", "2"),
    ]
    html = page.read_text()
    assert html.count("<svg") == 4  # in use, waiting, by priority, slowdown by queue
    assert "http" not in html
    assert "<script" not in html


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(TRACE)
    command = f"{sys.executable} -m llmos_scheduler.simulate replay --nodes 1x8 --jobs jobs.csv"
    shell = ["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"]
    done = subprocess.run(shell, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_several_policies_are_compared_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    trace = "job_id,submit_time,duration,num_gpu,priority\n1,0,30,8,0\n2,0,10,8,1\n"
    assert replay(tmp_path, trace, "--policy", "fifo,srsf", "--report", str(page)) == 0
    rows = {row[:25].strip(): row[25:].split() for row in capsys.readouterr().out.splitlines()}
    assert rows[""] == ["fifo", "srsf"]
    assert rows["Average JCT"] == ["35", "s", "25", "s"]
    assert rows["Waiting, priority 1"] == ["30", "s", "0", "s"]
    html = page.read_text()
    assert html.count("<polyline") == 2 * 2
    assert "<td class=best>25 s</td>" in html
    assert replay(tmp_path, trace, "--policy", "fifo,srsf", "--json") == 0
    assert [found["policy"] for found in json.loads(capsys.readouterr().out)] == ["fifo", "srsf"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--policy", "fifo,sjf"], "there is no policy 'sjf'; choose of fifo, easy"),
        (["--policy", "fifo,saf", "--out", "x"], "--out holds the events of one policy"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], word: str
) -> None:
    try:
        code = replay(tmp_path, TRACE, *options)
    except SystemExit as end:
        code = int(end.code or 0)
    assert (code, word in capsys.readouterr().err) == (2, True)


def test_a_trace_whose_durations_would_last_years_is_in_milliseconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = "job_id,submit_time,duration,num_gpu\n1,0,200000000,1\n"
    assert replay(tmp_path, trace, "--json") == 0
    assert json.loads(capsys.readouterr().out)["average_jct_s"] == 200_000.0
    assert replay(tmp_path, trace, "--json", "--time-unit", "s") == 0
    assert json.loads(capsys.readouterr().out)["average_jct_s"] == 200_000_000.0


@pytest.mark.parametrize(
    ("trace", "word"),
    [
        ("job_id,submit_time,duration\n1,0,1\n", "no column num_gpu"),
        ("job_id,submit_time,duration,num_gpu\n", "no jobs"),
        ("job_id,submit_time,duration,num_gpu\n1,0,x,1\n", "line 2, duration: 'x' is no number"),
        ("job_id,submit_time,duration,num_gpu\n1,0,nan,1\n", "line 2, duration"),
        ("job_id,submit_time,duration,num_gpu\n1,0,1,0\n", "line 2, num_gpu"),
        ("job_id,submit_time,duration,num_gpu\n1,0,1,1.5\n", "no whole number"),
        ("job_id,submit_time,duration,num_gpu\n1,0,1,1\n1,0,2,1\n", "line 3, job_id: '1' was another job"),
        ("job_id,submit_time,duration,num_gpu,queue\n1,0,1,1,a//b\n", "no path"),
    ],
)
def test_a_wrong_trace_is_refused_with_its_place(
    trace: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(tmp_path, trace) == 2
    assert word in capsys.readouterr().err
