"""`llmos queues`: how the cluster is divided, and `llmos queues apply` to change it."""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from llmos_cli.exits import Exit, say
from llmos_cli.options import Cluster, Output, who
from llmos_cli.printing import number, print_table, print_value

if TYPE_CHECKING:
    from llmos.contracts.nodes import NodeView
    from llmos.contracts.queues import QueueSettings, QueueView

EXAMPLE = """Example of a file; quota are GPUs that are guaranteed, limit is the most, weight divides the rest:
queues:
- {name: students, quota: 2, weight: 1}
- {name: research, quota: 4, weight: 2}
- {name: research/vision, policy: srsf, limit: 4}"""
app = App(name="queues", help="Show the queues.", help_format="plaintext")
SETTINGS = ("policy", "weight", "quota", "limit")


@app.default
def queues(*, output: Output = "table", cluster: Cluster = Cluster()) -> int:
    """Show every queue: its settings, what it holds, what it borrows, who waits."""

    async def ask() -> tuple["list[QueueView]", "list[NodeView]"]:
        async with await cluster.connect() as client:
            return await client.queues(), await client.nodes()

    found, nodes = asyncio.run(ask())
    if output != "table":
        print_value(found, output)
        return Exit.OK
    print_table(*table(found, gpus_of(nodes)))
    if not found:
        say("no queues")
    return Exit.OK


@app.command(help_epilogue=EXAMPLE)
def apply(
    *,
    file: Annotated[str, Parameter(name=["--file", "-f"], allow_leading_hyphen=True)],
    dry_run: Annotated[bool, Parameter(name="--dry-run", negative="")] = False,
    output: Output = "table",
    cluster: Cluster = Cluster(),
) -> int:
    """Set all queues as the file says, after showing what changes. A queue that it does not list goes back to defaults.

    Parameters
    ----------
    file
        YAML or JSON: `queues:` with a list of name, policy, weight, quota, limit; - reads stdin.
    dry_run
        Only check the file and show what would change.
    """
    from llmos.queuespecs import check_queues
    from llmos_cli.prepare import read_text, reject
    from llmos_cli.specfile import read_spec

    name = "stdin" if file == "-" else file
    read = read_spec(read_text(file), name, as_json=Path(file).suffix == ".json", what="a file of queues")
    wanted, faults = check_queues(read.spec.get("queues"))
    faults += [_unknown(field) for field in read.spec if field != "queues"]
    if faults:
        return reject(read.locate(faults))

    async def ask() -> "list[QueueView]":
        async with await cluster.connect() as client:
            known = await client.queues()
            changes = list(differences(known, wanted))
            for line in changes or ["nothing changes"]:
                say(line)
            _note_shortage(wanted, gpus_of(await client.nodes()))
            if dry_run or not changes:
                return known
            return await client.set_queues(wanted, requested_by=who())

    found = asyncio.run(ask())
    if output != "table":
        print_value(found, output)
    return Exit.OK


def _unknown(field: str) -> Any:
    from llmos.contracts.jobs import Fault

    return Fault(field, "no such field; a file of queues has only queues")


def _note_shortage(wanted: "Sequence[QueueSettings]", gpus: int) -> None:
    from llmos.queuespecs import guaranteed

    if (sure := guaranteed(wanted)) > gpus:
        say(f"note: the quotas guarantee {sure} GPUs, and the nodes that are here now have {gpus}")


def gpus_of(nodes: "Iterable[NodeView]") -> int:
    """GPUs of the nodes that are alive."""
    return sum(len(node.inventory.gpus) for node in nodes if node.alive and node.inventory)


def differences(known: "Iterable[QueueView]", wanted: "Iterable[QueueSettings]") -> Iterable[str]:
    """What setting the queues changes, a line each: `+` is new, `-` goes back to defaults, `~` changes."""
    before, after = ({queue.name: _settings(queue) for queue in queues} for queues in (known, wanted))
    plain = _settings_of_nobody()
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, plain), after.get(name, plain)
        if old == new:
            continue
        mark = "+" if old == plain else "-" if new == plain else "~"
        changed = [f"{key} {old[key]} → {new[key]}" for key in SETTINGS if old[key] != new[key]]
        yield f"{mark} {name}: {', '.join(changed)}"


def _settings(queue: "QueueView | QueueSettings") -> dict[str, str]:
    found = {"policy": queue.policy, "weight": number(queue.weight), "quota": queue.quota, "limit": queue.limit}
    return {key: "none" if value in (None, "") else str(value) for key, value in found.items()}


def _settings_of_nobody() -> dict[str, str]:
    from llmos.contracts.queues import QueueSettings

    return _settings(QueueSettings(""))


def table(found: "Sequence[QueueView]", gpus: int) -> Any:
    """Header and rows; `gpus` is what the cluster has."""
    rows = [
        (
            view.name,
            view.policy or "priority",
            view.weight,
            f"{number(view.gpus)} ({view.gpus / gpus:.0%})" if gpus else number(view.gpus),
            view.average,
            view.quota,
            number(max(0.0, view.gpus - (view.quota or 0))),
            view.limit,
            view.running,
            view.waiting,
        )
        for view in found
    ]
    return ["QUEUE", "POLICY", "WEIGHT", "GPUS", "AVERAGE", "QUOTA", "BORROWED", "LIMIT", "RUNNING", "WAITING"], rows
