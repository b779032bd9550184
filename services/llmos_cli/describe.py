"""`llmos describe`: everything about one job, model or node."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from llmos_cli.exits import Exit
from llmos_cli.get import find_node
from llmos_cli.options import Output, Target
from llmos_cli.printing import duration, moment, numbers, print_fields, print_table, print_value, size

if TYPE_CHECKING:
    from llmos.contracts.jobs import JobView, TaskView
    from llmos.contracts.models import ModelRecord
    from llmos.contracts.nodes import NodeView


def describe(
    kind: Literal["job", "model", "node"],
    name: str,
    /,
    *,
    output: Output = "table",
    target: Target = Target(),
) -> int:
    """Tell everything about one thing.

    Parameters
    ----------
    kind
        job, model or node.
    name
        Which one.
    """

    async def ask() -> Any:
        async with await target.connect() as client:
            match kind:
                case "job":
                    return await client.job(name)
                case "model":
                    return await client.model(name)
            return await find_node(client, name)

    found = asyncio.run(ask())
    if output == "table":
        _PRINT[kind](found)
    else:
        print_value(found, output)
    return Exit.OK


def print_job(view: "JobView") -> None:
    """A job, its tasks, and why it ended."""
    took = duration(view.ended_at - view.submitted_at) if view.ended_at else ""
    print_fields(
        [
            ("job", view.job),
            ("name", view.name),
            ("state", view.state),
            ("tenant", view.tenant),
            ("queue", f"{view.queue}, priority {view.priority}"),
            ("submitted", moment(view.submitted_at)),
            ("ended", f"{moment(view.ended_at)}, after {took}" if took else ""),
            ("model", f"{view.model} version {view.version}" if view.version else ""),
            ("metrics", numbers(view.metrics)),
            ("trace", view.trace),
            ("problem", view.problem.message if view.problem else ""),
            ("remedy", view.problem.remedy if view.problem else ""),
        ]
    )
    for title, lines in (("reasons", view.reasons), ("faults", [str(fault) for fault in view.faults])):
        if lines:
            print(f"{title}:", *(f"  {line}" for line in lines), sep="\n")
    if view.tasks:
        print()
        print_table(["TASK", "STATE", "ATTEMPT", "NODE", "TOOK", "METRICS"], [_task_row(task) for task in view.tasks])


def _task_row(task: "TaskView") -> tuple[object, ...]:
    took = duration(task.ended_at - task.started_at) if task.ended_at and task.started_at else ""
    return task.task, task.state, task.attempt or "", task.node, took, numbers(task.metrics or task.progress)


def print_model(record: "ModelRecord") -> None:
    """A model and each of its versions, the newest first."""
    print_fields([("model", record.name), ("tenant", record.tenant)])
    for version in reversed(record.versions):
        print(f"\nversion {version.version}")
        print_fields(
            [
                ("made", f"{moment(version.created_at)} by {version.job}"),
                ("from", version.base),
                ("labels", version.labels),
                ("precision", version.precision),
                ("size", f"{size(version.size)} (the trained model: {size(version.source_size)})"),
                ("exported", numbers(version.metrics)),
                ("trained", numbers(version.source)),
                ("parity", numbers(version.parity)),
                ("artifact", version.artifact),
                ("signed by", version.signature.key if version.signature else ""),
                ("private", "yes" if version.private else ""),
            ],
            indent=2,
        )


def print_node(view: "NodeView") -> None:
    """A node: its hardware, its services, what it does."""
    has = view.inventory
    print_fields([("node", view.node), ("alive", view.alive), ("services", view.services), ("tasks", view.tasks)])
    if has is None:
        return
    gpus = [f"{gpu.model} ({size(gpu.memory)}{', leased' * (gpu.id in view.gpus_leased)})" for gpu in has.gpus]
    print_fields(
        [
            ("cpus", f"{has.cpus:g}, {view.cpus_leased:g} leased  {has.cpu_model}"),
            ("memory", f"{size(has.memory)}, {size(view.memory_leased)} leased"),
            ("disk", size(has.disk) if has.disk else ""),
            ("gpus", gpus),
            ("driver", " ".join(filter(None, (has.driver, f"CUDA {has.cuda}" if has.cuda else "")))),
            ("system", " ".join(filter(None, (has.os, has.architecture)))),
            ("torch", has.torch),
            ("onnxruntime", f"{has.onnxruntime} {', '.join(has.providers)}".strip()),
            ("labels", [f"{key}={value}" for key, value in has.labels.items()]),
        ]
    )


_PRINT: dict[str, Callable[[Any], None]] = {"job": print_job, "model": print_model, "node": print_node}
