"""`llmos logs`: the logs of this machine's services, or the events of a job."""

import asyncio
import time
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from llmos.errors import NotFound
from llmos_cli.exits import Exit
from llmos_cli.options import Output, Target
from llmos_cli.printing import moment

if TYPE_CHECKING:
    from msgspec import Struct

    from llmos.bus import Heard

POLL_S = 0.2
LINES = 50
TAIL_BYTES = 1 << 20  # how far back the last lines of a log are looked for


def logs(
    name: str | None = None,
    /,
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative="")] = False,
    lines: Annotated[int | None, Parameter(name=["--lines", "-n"])] = None,
    output: Output = "table",
    target: Target = Target(),
) -> int:
    """Show the last lines of the stack's logs (of one service, or of all), or the events of a job.

    Parameters
    ----------
    name
        A service of this machine, or a job; without it, every service.
    follow
        Go on as new lines or events come; a job's events end with the job.
    lines
        How many lines of each log (50), or of the job's events (all).
    """
    folder = _folder(target)
    files = sorted(folder.glob("*.log")) if folder else []
    if name is not None:
        files = [file for file in files if file.stem == name]
        if not files:
            return asyncio.run(_job(name, follow, lines, output, target))
    if not files:
        raise NotFound("there are no logs of a stack here", remedy="Start one with `llmos up`, or name a job.")
    _services(files, follow, LINES if lines is None else lines)
    return Exit.OK


def _folder(target: Target) -> Path | None:
    """Where the services of this machine's stack log, or logged before it stopped; `None` if another stack is meant."""
    from llmos import local

    if stack := target.stack():
        return Path(stack.data_dir) / "logs"
    if target.nats_url or local.find_stack(target.data_dir):
        return None
    return (target.data_dir or local.default_data_dir()) / "logs"


async def _job(job: str, follow: bool, lines: int | None, output: str, target: Target) -> int:
    import msgspec

    from llmos.history import ENDS, follow_job, read_job, tenant_in
    from llmos_cli.telling import tell

    def line_of(heard: "Heard", event: "Struct") -> str:
        if output != "table":
            fact = {"sequence": heard.sequence, "time": heard.time, "type": heard.envelope.type, "data": event}
            return msgspec.json.encode(fact).decode()
        told = tell(event)
        return told and f"{moment(heard.time)}  {told}"

    def show(told: str) -> None:
        if told:
            print(told, flush=True)

    async with await target.connect() as client:
        known = await read_job(client.bus, job)
        if not known:
            raise NotFound(f"there is no service or job {job!r}", remedy="See `llmos status` and `llmos get jobs`.")
        told = [line for heard, event in known if (line := line_of(heard, event))]
        for line in told if lines is None else told[max(0, len(told) - lines) :]:
            show(line)
        if follow and not isinstance(known[-1][1], ENDS):
            last = known[-1][0]
            async with aclosing(follow_job(client.bus, job, last.sequence + 1, tenant=tenant_in(last))) as facts:
                async for heard, event in facts:
                    show(line_of(heard, event))
    return Exit.OK


def _services(files: list[Path], follow: bool, lines: int) -> None:
    width = max(len(file.stem) for file in files) if len(files) > 1 else 0
    positions = {file: _start_of_last(file, lines) for file in files}
    while True:
        for file in files:
            with file.open("rb") as log:
                if log.seek(0, 2) < positions[file]:
                    positions[file] = 0  # it was full, and begins anew
                log.seek(positions[file])
                for line in log:
                    if not line.endswith(b"\n"):
                        break  # it is being written
                    positions[file] += len(line)
                    text = line.decode(errors="replace").rstrip("\n")
                    print(f"{file.stem:>{width}} | {text}" if width else text, flush=True)
        if not follow:
            return
        time.sleep(POLL_S)


def _start_of_last(file: Path, lines: int) -> int:
    """Where the last lines of a file begin, in bytes."""
    with file.open("rb") as log:
        size = log.seek(0, 2)
        log.seek(max(0, size - TAIL_BYTES))
        found = log.read(TAIL_BYTES).splitlines(keepends=True)
    unfinished = len(found.pop()) if found and not found[-1].endswith(b"\n") else 0
    return size - unfinished - sum(map(len, found[-lines:] if lines > 0 else []))
