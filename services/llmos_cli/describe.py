"""`llmos describe`: everything about one job, model or node."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from llmos_cli.exits import Exit
from llmos_cli.explanation import print_explanation
from llmos_cli.get import find_node, node_state
from llmos_cli.options import Output, Target
from llmos_cli.printing import duration, moment, numbers, print_fields, print_table, print_value, size

if TYPE_CHECKING:
    from llmos.client import Client
    from llmos.contracts.jobs import Explanation, JobView, TaskView
    from llmos.contracts.models import Candidate, ModelRecord
    from llmos.contracts.nodes import Gpu, NodeView


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
                    return (view := await client.job(name)), await _why(client, view)
                case "model":
                    return await client.model(name)
            return await find_node(client, name)

    found = asyncio.run(ask())
    why = None
    if kind == "job":
        found, why = found
    if output != "table":
        print_value(found, output)
        return Exit.OK
    _PRINT[kind](found)
    if why is not None:
        print(f"\nwhy it waits: {why.summary}")
        print_explanation(why, indent=2)
    return Exit.OK


async def _why(client: "Client", view: "JobView") -> "Explanation | None":
    """What a job that is queued or deploying waits for."""
    return await client.explain(view.job) if view.state in ("queued", "deploying") else None


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
    where = ", ".join(task.nodes) or task.node
    gpus = f" ({len(task.devices)} GPU{'s' * (len(task.devices) != 1)})" if task.devices else ""
    state = f"{task.state}, preempted {task.preemptions}x" if task.preemptions else task.state
    figures = task.metrics or {name: value for name, value in task.progress.items() if value}
    return task.task, state, task.attempt or "", f"{where}{gpus}", took, numbers(figures)


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
                ("task", version.task),
                ("precision", f"{version.precision} for {version.target}"),
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
        if version.candidates:
            print("  tried on the validation split:")
            print_table(
                ["PRECISION", "LATENCY", "SIZE", "METRICS", "PARITY", ""], [_tried(one) for one in version.candidates]
            )


def _tried(one: "Candidate") -> tuple[object, ...]:
    """A row of what `export.precision: auto` measured."""
    rest = {name: value for name, value in one.metrics.items() if name not in ("latency_ms_p50", "size_bytes")}
    latency = f"{one.metrics.get('latency_ms_p50', 0):.2f} ms"
    near: dict[str, float] = {name: one.parity[name] for name in ("agreement", "max_abs_diff") if name in one.parity}
    kept = "kept" if one.chosen else "; ".join(one.reasons)
    return one.precision, latency, size(int(one.metrics.get("size_bytes", 0))), numbers(rest), numbers(near), kept


def print_node(view: "NodeView") -> None:
    """A node: its hardware, its services, what it does."""
    has = view.inventory
    print_fields(
        [
            ("node", view.node),
            ("state", node_state(view)),
            ("reason", view.reason),
            ("services", view.services),
            ("tasks", view.tasks),
            ("replicas", view.replicas),
            ("reserved by", view.reservations),
        ]
    )
    if has is None:
        return
    gpus = [_gpu(view, gpu) for gpu in has.gpus]
    print_fields(
        [
            ("cpus", f"{has.cpus:g}, {view.cpus_leased:g} leased  {has.cpu_model}"),
            ("memory", f"{size(has.memory)}, {size(view.memory_leased)} leased"),
            ("disk", size(has.disk) if has.disk else ""),
            ("driver", " ".join(filter(None, (has.driver, f"CUDA {has.cuda}" if has.cuda else "")))),
            ("system", " ".join(filter(None, (has.os, has.architecture)))),
            ("torch", has.torch),
            ("onnxruntime", f"{has.onnxruntime} {', '.join(has.providers)}".strip()),
            ("labels", [f"{key}={value}" for key, value in has.labels.items()]),
        ]
    )
    if gpus:
        print("gpus:", *(f"  {gpu}" for gpu in gpus), sep="\n")


def _gpu(view: "NodeView", gpu: "Gpu") -> str:
    """A GPU or a MIG slice, and how much of it is leased."""
    milli = view.gpu_milli_leased.get(gpu.id, 1000 if gpu.id in view.gpus_leased else 0)
    held = f", {milli / 10:g} % leased" if 0 < milli < 1000 else ", leased" if milli else ""
    part = f" {gpu.profile} of {gpu.parent}" if gpu.parent else ""
    return f"{gpu.id}: {gpu.model}{part}, {size(gpu.memory)}{held}"


_PRINT: dict[str, Callable[[Any], None]] = {"job": print_job, "model": print_model, "node": print_node}
