"""One export in a child process: started, listened to, held to its memory and its time, and ended whatever happens."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from llmos.cancel import cancel
from llmos.errors import Busy, LlmosError, Rejected
from llmos.forking import Child, Template
from llmos_exporter.exporting import TARGET, out_of_memory
from llmos_exporter.orders import ExportOrder, Failed, Finished, Progressed, decode_report

LOOK_EVERY_S = 0.5


async def export(
    template: Template, order: ExportOrder, on_progress: Callable[[Progressed], None], *, memory: int, limit_s: float
) -> Finished:
    """Run an order in a child; what it measured. `memory` in bytes, 0 for no limit.

    When this returns or raises, and when it is cancelled, no child is left. Raises `Rejected` for what another attempt
    can't mend, `Busy` for a child that died or took too long.
    """
    child = await template.fork(TARGET, msgspec.json.encode(order))
    watching = asyncio.create_task(_watch(child, memory, limit_s))
    end: Finished | Failed | None = None
    try:
        async for message in child:
            report = decode_report(message)
            if isinstance(report, Progressed):
                on_progress(report)
            else:
                end = report
        ended = await child.wait()
    finally:
        await _to_its_end(asyncio.create_task(_finish(child, watching)))
    if watching.done() and not watching.cancelled() and (broken := watching.result()):
        raise broken
    if isinstance(end, Finished) and ended.ok:
        return end
    if isinstance(end, Failed):
        problem = end.problem
        kind = Busy if end.retryable else Rejected
        raise kind(problem.message, remedy=problem.remedy, code=problem.code, param=problem.param)
    raise Busy(f"the export ended without a result: {ended}", code="child_died", remedy="See the exporter's log.")


async def _watch(child: Child, memory: int, limit_s: float) -> LlmosError | None:
    """Kill the child when it uses more than it may; why."""
    until = asyncio.get_running_loop().time() + limit_s
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        broken: LlmosError | None = None
        if memory and (used := private_memory(child.pid)) > memory:
            problem = out_of_memory()
            broken = Rejected(
                f"{problem.message}: {used >> 20} MiB of {memory >> 20} MiB",
                remedy=problem.remedy, code=problem.code, param=problem.param,
            )  # fmt: skip
        elif asyncio.get_running_loop().time() > until:
            broken = Busy(
                f"the export took longer than {limit_s:g} s",
                code="too_slow",
                remedy="Ask for more cpus, shorten data.test, or raise LLMOS_EXPORT_LIMIT_S.",
            )
        if broken is not None:
            await child.kill()
            return broken


def private_memory(pid: int) -> int:
    """The bytes that only this process holds: neither what it shares with the template, nor what lies in a file.

    0 where nobody can tell.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) << 10


async def _finish(child: Child, watching: "asyncio.Task[LlmosError | None]") -> None:
    if not watching.done():
        await cancel(watching)
    await child.kill()
    await child.wait()


async def _to_its_end(task: "asyncio.Task[None]") -> None:
    """Wait for a task though this one be cancelled, even again and again."""
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
