"""`llmos simulate replay …`: the command line of `replay`: one trace or one system's history, under one policy or more.

Events go to a file, the figures to stdout, side by side if there are several.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import msgspec

from llmos.errors import Rejected
from llmos_scheduler.charts import spans
from llmos_scheduler.order import ORDERS
from llmos_scheduler.replay import Event, Replay, Setting
from llmos_scheduler.replay_log import NEWEST, read_log
from llmos_scheduler.replay_logged import bare, fitted
from llmos_scheduler.replay_report import FIGURES, Run, render
from llmos_scheduler.replay_summary import Summary, Tally
from llmos_scheduler.replay_trace import read_cluster, read_jobs, read_queues

REALLY = "really"  # the name of what happened, beside the policies


class Commands(Protocol):
    """What `argparse` returns for sub-commands."""

    def add_parser(self, name: str, *, help: str, allow_abbrev: bool) -> argparse.ArgumentParser: ...


def add_parser(commands: Commands) -> None:
    """Make `replay` one of the simulator's commands; its options carry `run`."""
    parser = commands.add_parser("replay", help="Replay a trace, or a system's own history.", allow_abbrev=False)
    option = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--jobs", type=Path, help="CSV: job_id,submit_time,duration,num_gpu[,priority,queue,deadline]")
    what.add_argument("--from-log", nargs="?", const=NEWEST, metavar="FILE|URL", help="a running system's history, "
           "beside what really happened: a file of `llmos get events -o json`, or its bus (default: LLMOS_NATS_URL, or "
           "the stack that runs here)")  # fmt: skip
    option("--nodes", help="8x8 (8 nodes of 8 GPUs), or a CSV file: sn,gpu (with --from-log: those of the history)")
    option("--queues", type=Path, help="CSV: queue[,policy,weight,quota,limit]; a queue's name is its path, a/b (with "
           "--from-log: those of the history)")  # fmt: skip
    option("--policy", type=_policies, metavar="NAME[,NAME…]", help=f"of queues that name none: {', '.join(ORDERS)} "
           "(default: srsf; with --blind las, with --from-log priority); several are compared")  # fmt: skip
    option("--blind", action="store_true", help="don't tell the scheduler how long jobs take")
    option("--time-unit", choices=["auto", "s", "ms"], default="auto", help="of the jobs file (auto: ms if a job "
           "would take more than three years in seconds); everything else is in seconds")  # fmt: skip
    option("--min-run", type=_seconds, default=0, metavar="S", help="a job is not preempted earlier (default 0)")
    option("--checkpoint-every", type=_seconds, default=0, metavar="S", help="preemption loses what ran since the last "
           "checkpoint (default 0: a job saves first, nothing is lost)")  # fmt: skip
    option("--restart-cost", type=_seconds, default=0, metavar="S", help="what a resumed job spends first (default 0)")
    option("--out", type=Path, help="JSON lines, one a start, preemption, end (or rejected job); for one policy")
    option("--report", type=Path, help="an HTML page: figures, utilisation, queues, waiting, fairness")
    option("--json", action="store_true", help="the summary as JSON instead of a table (a list if there are several)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Replay, and write what was asked for. Raises `LlmosError` for wrong input, `OSError` for files."""
    policies = options.policy or ["priority" if options.from_log else "las" if options.blind else "srsf"]
    if options.out and len(policies) > 1:
        raise Rejected("--out holds the events of one policy", remedy=f"Choose of {', '.join(policies)}.")
    runs: list[Run] = []
    unit, note, aside = "GPUs", "Durations were unknown to the scheduler." if options.blind else "", frozenset[str]()
    if options.from_log:
        log = read_log(options.from_log)
        trace = log.trace
        unit, aside, arrivals = trace.unit, trace.guessed, trace.arrivals
        nodes = trace.nodes
        if options.nodes:
            nodes, arrivals = read_cluster(options.nodes), [bare(arrival) for arrival in arrivals]
        queues = fitted(trace.queues, sum(len(machine.devices) for machine in nodes.values()))
        if queues != trace.queues:
            note = f"The quotas add up to more than these nodes have, so all were cut alike. {note}"
        really = Tally(sum(len(machine.devices) for machine in trace.nodes.values()), aside)
        for event in trace.events:
            really.add(event)
        runs.append(Run(REALLY, really.summary(REALLY, True), really))
        note = f"{log.told} {note}"
    else:
        if not options.nodes:
            raise Rejected("--nodes is missing", remedy="Give 8x8 (8 nodes of 8 GPUs), or a CSV file: sn,gpu.")
        nodes, arrivals, queues = read_cluster(options.nodes), read_jobs(options.jobs, options.time_unit), ()
    if options.queues:
        queues = tuple(read_queues(options.queues))
    for policy in policies:
        setting = Setting(
            order=policy,
            blind=options.blind,
            queues=queues,
            min_run=options.min_run,
            checkpoint_every=options.checkpoint_every,
            restart_cost=options.restart_cost,
        )
        replay = Replay(nodes, arrivals, setting)
        tally = Tally(replay.gpus, aside)
        with ExitStack() as stack:
            out = stack.enter_context(options.out.open("wb")) if options.out else None
            for event in replay.events():
                tally.add(event)
                if out is not None:
                    out.write(line(event))
        runs.append(Run(policy, tally.summary(policy, options.blind), tally))
    if options.report:
        options.report.write_text(render(runs, unit, note.strip()), encoding="utf-8")
    _print([run.summary for run in runs], note.strip(), as_json=options.json)


def _print(summaries: Sequence[Summary], note: str, *, as_json: bool) -> None:
    if as_json:
        found: Any = summaries[0] if len(summaries) == 1 else summaries
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    elif len(summaries) == 1:
        sys.stdout.writelines(table(summaries[0]))
    else:
        sys.stdout.writelines(comparison(summaries))
        sys.stdout.write(f"{note}\n" if note else "")


def line(event: Event) -> bytes:
    """An event as JSON; times in seconds, `placement` maps nodes to indexes of their GPUs."""
    job = event.job
    found: dict[str, Any] = {"time": event.time / 1000, "event": event.kind, "job_id": job.id, "num_gpu": job.gpus}
    if event.kind != "rejected":
        found["placement"] = dict(event.places)
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


def comparison(summaries: Sequence[Summary]) -> Iterator[str]:
    """Several summaries side by side, a figure a line."""
    rows = [["", *(summary.policy for summary in summaries)]]
    rows += [[figure.name, *told] for figure in FIGURES if (told := figure.row(summaries))]
    for name in sorted({name for summary in summaries for name in summary.waiting_by_priority}, key=int):
        waits = [summary.waiting_by_priority.get(name) for summary in summaries]
        rows.append([f"Waiting, priority {name}", *spans([wait.average_s if wait else 0.0 for wait in waits])])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip() + "\n"


def _policies(text: str) -> list[str]:
    found = [name.strip() for name in text.split(",") if name.strip()]
    for name in found:
        if name not in ORDERS:
            raise argparse.ArgumentTypeError(f"there is no policy {name!r}; choose of {', '.join(ORDERS)}")
    if not found:
        raise argparse.ArgumentTypeError(f"no policy is named; choose of {', '.join(ORDERS)}")
    return list(dict.fromkeys(found))


def _seconds(text: str) -> int:
    value = float(text)
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1e9 seconds")
    return round(value * 1000)
