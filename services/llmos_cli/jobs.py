"""`llmos cancel` and `llmos explain`."""

import asyncio
from typing import TYPE_CHECKING

from llmos_cli.exits import Exit, say
from llmos_cli.explanation import print_explanation
from llmos_cli.options import Output, Target, who
from llmos_cli.printing import print_value

if TYPE_CHECKING:
    from llmos.contracts.jobs import Explanation, JobView


def cancel(
    job: str,
    /,
    *,
    reason: str = "",
    output: Output = "table",
    target: Target = Target(),
) -> int:
    """Cancel a job: its running work stops at the next step. Repeating it changes nothing.

    The exit code is 1 if the job had ended in another way before.

    Parameters
    ----------
    job
        The job's id.
    reason
        Why, for the history.
    """

    from llmos.contracts.jobs import ENDED

    async def ask() -> "JobView":
        async with await target.connect() as client:
            return await client.cancel(job, reason, requested_by=who())

    view = asyncio.run(ask())
    late = view.state in ENDED and view.state != "cancelled"
    if output != "table":
        print_value(view, output)
    elif not late:
        print(f"{view.job} is {view.state}")
    if late:
        say(f"{view.job} had ended before: {view.state}; nothing was cancelled")
    return Exit.FAILED if late else Exit.OK


def explain(
    job: str,
    /,
    *,
    output: Output = "table",
    target: Target = Target(),
) -> int:
    """Say why a job waits, or what it does, and what would help.

    Parameters
    ----------
    job
        The job's id.
    """

    async def ask() -> "Explanation":
        async with await target.connect() as client:
            return await client.explain(job)

    answer = asyncio.run(ask())
    if output != "table":
        print_value(answer, output)
    else:
        print(f"{answer.job} is {answer.state}: {answer.summary}")
        print_explanation(answer)
    return Exit.OK
