"""`python -m llmos_scheduler.simulate …` (`llmos simulate …`): the scheduler on a trace, without a bus."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import msgspec

from llmos.errors import LlmosError
from llmos_scheduler import simulate_replay
from llmos_scheduler.cluster import WHOLE
from llmos_scheduler.ranking import RANKINGS
from llmos_scheduler.saturate import Arrival, Saturation, saturate
from llmos_scheduler.traces import read_nodes, read_tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one simulation; 0, or 2 if its input is wrong (two lines on stderr say why)."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except LlmosError as error:
        return _refuse(error.problem.message, error.problem.remedy)
    except BrokenPipeError:  # whoever read has enough; the interpreter's last flush must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _refuse(f"{error.filename}: {error.strerror}")
    except UnicodeDecodeError as error:
        return _refuse(f"the trace is not UTF-8 text: {error.reason} at byte {error.start}")
    return 0


def _refuse(message: str, remedy: str = "") -> int:
    sys.stderr.write(f"error: {message}\n" + (f"  try: {remedy}\n" if remedy else ""))
    return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(_refuse(message, f"{self.prog} --help"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="llmos simulate", description="Try the scheduler on a trace.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fill = commands.add_parser("saturate", help="Fill a cluster: tasks arrive in random order and never leave.")
    fill.add_argument("--nodes", type=Path, required=True, help="CSV: sn,cpu_milli,memory_mib,gpu,model")
    fill.add_argument(
        "--tasks", type=Path, required=True, help="CSV: name,cpu_milli,memory_mib,num_gpu,gpu_milli[,gpu_spec]"
    )
    fill.add_argument("--demand", type=_demand, default=1.3, help="GPUs to ask for, over the cluster's (default 1.3)")
    fill.add_argument("--seed", type=int, default=0, help="of the arrival order and of the order of nodes (default 0)")
    fill.add_argument("--policy", choices=list(RANKINGS), default="gradient")
    fill.add_argument("--out", type=Path, help="JSON lines, one an arrival: task, node or null, gpus (indexes), milli")
    fill.add_argument("--json", action="store_true", help="the summary as JSON instead of a table")
    fill.set_defaults(run=_saturate)
    simulate_replay.add_parser(commands)
    return parser


def _demand(text: str) -> float:
    value = float(text) if text.replace(".", "", 1).isdigit() else -1.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, at most 100")
    return value


def _saturate(options: argparse.Namespace) -> None:
    nodes, tasks = read_nodes(options.nodes), read_tasks(options.tasks)
    with ExitStack() as stack:
        out = stack.enter_context(options.out.open("wb")) if options.out else None

        def tell(run: Saturation, arrival: Arrival) -> None:
            if out is not None:
                out.write(line(run, arrival))

        run = saturate(nodes, tasks, demand=options.demand, seed=options.seed, policy=options.policy, tell=tell)
    summary = {
        "policy": options.policy,
        "seed": options.seed,
        "nodes": len(run.nodes),
        "gpus": run.cluster.capacity // WHOLE,
        "arrived": run.arrived,
        "placed": run.placed,
        **{f"allocation_at_{demand}_percent": round(100 * share, 2) for demand, share in run.allocation.items()},
    }
    if options.json:
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
    else:
        width = max(len(name) for name in summary)
        sys.stdout.writelines(f"{name:<{width}}  {value}\n" for name, value in summary.items())


def line(run: Saturation, arrival: Arrival) -> bytes:
    """An arrival as JSON. `milli` is of each of its GPUs, 0 if it asks for none; a lost task has node null, no GPUs."""
    shape, placement = arrival.shape, arrival.placement
    found = {
        "task": arrival.task,
        "node": run.nodes[placement.node] if placement else None,
        "gpus": placement.gpus if placement else (),
        "milli": shape.milli if shape.gpus else 0,
    }
    return msgspec.json.encode(found) + b"\n"


if __name__ == "__main__":
    sys.exit(main())
