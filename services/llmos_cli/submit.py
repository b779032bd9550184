"""`llmos submit`: read a spec, bring its files along, publish it, and tell what becomes of it."""

import asyncio
import time
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from llmos_cli.exits import Exit, nobody_reads, say
from llmos_cli.options import Output, Target
from llmos_cli.printing import print_value, size

if TYPE_CHECKING:
    from llmos.client import Client
    from llmos.contracts.jobs import Fault, JobView
    from llmos_cli.specfile import SpecFile

ANSWER_WITHIN_S = 2.0
GOOD = {"succeeded", "deployed"}


def submit(
    file: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    set: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    wait: Annotated[bool, Parameter(name=["--wait", "-w"], negative="")] = False,
    timeout: float | None = None,
    dry_run: Annotated[bool, Parameter(name="--dry-run", negative="")] = False,
    id: str | None = None,
    output: Output = "table",
    target: Target = Target(),
) -> int:
    """Submit a job; prints its id.

    Paths in the spec count from the spec's file; files and directories of this machine are stored as artifacts first.

    Parameters
    ----------
    file
        The spec as YAML or JSON; - reads it from stdin.
    set
        Set a field: --set train.epochs=1 --set gate.accuracy.min=0.9.
    wait
        Show progress until the job has ended; Ctrl-C leaves it running.
    timeout
        With --wait: give up waiting after so many seconds.
    dry_run
        Only read and check the spec, print it as it would be published, and publish nothing.
    id
        The job's id; submitting one id twice makes one job.
    """
    from llmos_cli.prepare import prepare, reject

    ready = prepare(file, set or [], target)
    if ready.faults:
        return reject(ready.read.locate(ready.faults))
    if dry_run:
        print_value(ready.resolved, output)
        return Exit.OK
    submission = _Submission(ready.read, ready.spec, ready.found, id, wait, timeout, output)
    try:
        return asyncio.run(submission.run(target))
    except KeyboardInterrupt:
        if submission.job:
            say(f"\n{submission.job} goes on. Follow it: llmos logs -f {submission.job}")
            say(f"Cancel it: llmos cancel {submission.job}")
        return Exit.INTERRUPTED


class _Submission:
    """One job on its way; `job` is its id once it is published."""

    def __init__(
        self,
        read: "SpecFile",
        spec: dict[str, Any],
        found: dict[str, Path],
        id: str | None,
        wait: bool,
        timeout: float | None,
        output: str,
    ) -> None:
        self.job = ""
        self._read = read
        self._spec = spec
        self._found = found
        self._stored: dict[str, Path] = {}  # reference, as the job names it → the file here
        self._id = id
        self._wait = wait
        self._timeout = timeout
        self._output = output

    async def run(self, target: Target) -> int:
        from llmos_cli import spec_references

        async with await target.connect() as client:
            if client.artifacts:
                references = await spec_references.upload(self._found, lambda path: _upload(client, path))
            else:
                references = {field: path.as_uri() for field, path in self._found.items()}
            self._stored = {references[field]: path for field, path in self._found.items()}
            self.job = await client.submit(spec_references.replace(self._spec, references), self._id)
            return await (self._follow(client) if self._wait else self._hear(client))

    async def _hear(self, client: "Client") -> int:
        """Print the id, unless the scheduler rejects the spec at once."""
        from llmos.contracts.jobs import JobRejected

        said = await client.verdict(self.job, client.tenant_of(self._spec), ANSWER_WITHIN_S)
        if isinstance(said, JobRejected):
            return self._rejected(said.faults)
        if said is None:
            say("the scheduler has not answered yet; the job waits on the bus")
        if self._output == "table":
            print(self.job)
        else:
            print_value({"job": self.job, "state": "queued" if said else "submitted"}, self._output)
        return Exit.OK

    async def _follow(self, client: "Client") -> int:
        from llmos.errors import Busy
        from llmos_cli.describe import print_job
        from llmos_cli.watch import watch

        say(f"job {self.job}")
        try:
            facts = client.events(self.job, client.tenant_of(self._spec))
            async with asyncio.timeout(self._timeout), aclosing(facts):
                await watch(facts, time.monotonic)
        except TimeoutError:
            raise Busy(
                f"{self.job} has not ended within {self._timeout:g} s", remedy=f"llmos logs -f {self.job}; it goes on."
            ) from None
        view = await client.ended(self.job)
        try:
            if self._output != "table":
                print_value(view, self._output)
            elif view.state != "rejected":
                print_job(view)
        except BrokenPipeError:
            nobody_reads()
        return self._rejected(view.faults) if view.state == "rejected" else _exit(view)

    def _rejected(self, faults: "list[Fault]") -> int:
        from llmos_cli.prepare import reject
        from llmos_cli.spec_references import name_files

        in_data = [fault for fault in faults if fault.line is not None or fault.path in self._stored]
        in_spec = self._read.locate(fault for fault in faults if fault not in in_data)
        return reject([*in_spec, *map(str, name_files(in_data, self._stored))])


def _exit(view: "JobView") -> int:
    return Exit.OK if view.state in GOOD else Exit.FAILED


async def _upload(client: "Client", path: Path) -> str:
    reference = await client.upload(path)
    what = "directory" if path.is_dir() else size(path.stat().st_size)
    say(f"stored {path.name} ({what}) as {reference[:29]}…")
    return reference
