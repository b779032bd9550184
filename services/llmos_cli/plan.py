"""`llmos plan`: what would become of a job if it were submitted now. Nothing is done."""

import asyncio
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from llmos_cli.exits import Exit
from llmos_cli.explanation import print_explanation
from llmos_cli.options import Output, Target
from llmos_cli.printing import print_value

if TYPE_CHECKING:
    from llmos.contracts.jobs import Explanation


def plan(
    *,
    file: Annotated[str, Parameter(name=["--file", "-f"], allow_leading_hyphen=True)],
    set: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    output: Output = "table",
    target: Target = Target(),
) -> int:
    """Say whether a job would start now, where, and whom it would preempt; else what it would wait for, and how long.

    Nothing is submitted and no data is read: it is the training (or the export, where nothing is trained) that is
    planned. The exit code is 0 for an answer, 2 for a spec that would be rejected.

    Parameters
    ----------
    file
        The spec as YAML or JSON; - reads it from stdin.
    set
        Set a field, as in `llmos submit`.
    """
    from llmos_cli.prepare import prepare, reject

    ready = prepare(file, set or [], target)
    if ready.faults:
        return reject(ready.read.locate(ready.faults))

    async def ask() -> "Explanation":
        async with await target.connect() as client:
            return await client.plan(ready.resolved, tenant=client.tenant_of(ready.resolved))

    answer = asyncio.run(ask())
    if output != "table":
        print_value(answer, output)
        return Exit.OK
    print(answer.summary)
    print_explanation(answer)
    return Exit.OK
