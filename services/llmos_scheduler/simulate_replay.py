"""`llmos simulate replay …`: the command line of `replay`. Events go to a file, the figures to stdout."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import msgspec

from llmos_scheduler.order import ORDERS
from llmos_scheduler.replay import Event, Replay, Setting
from llmos_scheduler.replay_report import render
from llmos_scheduler.replay_summary import Summary, Tally
from llmos_scheduler.replay_trace import read_cluster, read_jobs, read_queues


class Commands(Protocol):
    """What `argparse` returns for sub-commands."""

    def add_parser(self, name: str, *, help: str, allow_abbrev: bool) -> argparse.ArgumentParser: ...


def add_parser(commands: Commands) -> None:
    """Make `replay` one of the simulator's commands; its options carry `run`."""
    parser = commands.add_parser("replay", help="Replay a trace of jobs in virtual time.", allow_abbrev=False)
    option = parser.add_argument
    option("--nodes", required=True, help="8x8 (8 nodes of 8 GPUs), or a CSV file: sn,gpu")
    option(
        "--jobs", type=Path, required=True, help="CSV: job_id,submit_time,duration,num_gpu[,priority,queue,deadline]"
    )
    option("--queues", type=Path, help="CSV: queue[,policy,weight,quota,limit]; a queue's name is its path, a/b")
    option("--policy", choices=list(ORDERS), help="of queues that name none (default: srsf, with --blind las)")
    option("--blind", action="store_true", help="don't tell the scheduler how long jobs take")
    option("--time-unit", choices=["auto", "s", "ms"], default="auto", help="of the jobs file (auto: ms if a job "
           "would take more than three years in seconds); everything else is in seconds")  # fmt: skip
    option("--min-run", type=_seconds, default=0, metavar="S", help="a job is not preempted earlier (default 0)")
    option("--checkpoint-every", type=_seconds, default=0, metavar="S", help="preemption loses what ran since the last "
           "checkpoint (default 0: a job saves first, nothing is lost)")  # fmt: skip
    option("--restart-cost", type=_seconds, default=0, metavar="S", help="what a resumed job spends first (default 0)")
    option("--out", type=Path, help="JSON lines, one a start, preemption, end (or rejected job)")
    option("--report", type=Path, help="an HTML page: utilisation and queue over time, waiting by priority")
    option("--json", action="store_true", help="the summary as JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Replay, and write what was asked for. Raises `LlmosError` for wrong input, `OSError` for files."""
    policy = options.policy or ("las" if options.blind else "srsf")
    setting = Setting(
        order=policy,
        blind=options.blind,
        queues=tuple(read_queues(options.queues)) if options.queues else (),
        min_run=options.min_run,
        checkpoint_every=options.checkpoint_every,
        restart_cost=options.restart_cost,
    )
    replay = Replay(read_cluster(options.nodes), read_jobs(options.jobs, options.time_unit), setting)
    tally = Tally(replay.gangs.total)
    with ExitStack() as stack:
        out = stack.enter_context(options.out.open("wb")) if options.out else None
        for event in replay.events():
            tally.add(event)
            if out is not None:
                out.write(line(event))
    summary = tally.summary(policy, options.blind)
    if options.report:
        options.report.write_text(render(summary, tally.course()), encoding="utf-8")
    if options.json:
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
    else:
        sys.stdout.writelines(table(summary))


def line(event: Event) -> bytes:
    """An event as JSON; times in seconds, `placement` maps nodes to indexes of their GPUs."""
    job = event.job
    found: dict[str, Any] = {"time": event.time / 1000, "event": event.kind, "job_id": job.id, "num_gpu": job.gpus}
    if event.kind != "rejected":
        found["placement"] = event.places
    if event.kind == "end":
        found |= {"submit_time": job.submitted / 1000, "jct": (event.time - job.submitted) / 1000}
    return msgspec.json.encode(found) + b"\n"


def table(summary: Summary) -> Iterator[str]:
    """The summary for people, a line each."""
    cells: dict[str, Any] = msgspec.to_builtins(summary)
    width = max(map(len, cells))
    for name, value in cells.items():
        if not isinstance(value, dict):
            yield f"{name:<{width}}  {value}\n"
    for name in ("waiting_by_priority", "waiting_by_queue"):
        yield f"{name}\n"
        for key, waiting in cells[name].items():
            yield f"  {key or '(none)':<{width - 2}}  {waiting['jobs']} jobs, average {waiting['average_s']:.0f} s, " \
                  f"p99 {waiting['p99_s']:.0f} s\n"  # fmt: skip


def _seconds(text: str) -> int:
    value = float(text)
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1e9 seconds")
    return round(value * 1000)
