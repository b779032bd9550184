"""Running `llmos` as a user does: the real entry point as a process, with exit code, stdout and stderr."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

WITHIN_S = 60.0


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed, as JSON."""
        return msgspec.json.decode(self.out)


class Running:
    """A command that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdout is not None and process.stderr is not None
        self.stdout = process.stdout
        self.stderr = process.stderr

    def send(self, signal: int) -> None:
        """Send it a signal."""
        self._process.send_signal(signal)

    async def done(self, stdin: str = "") -> Done:
        """Its end, and what it printed from here on."""
        out, err = await asyncio.wait_for(self._process.communicate(stdin.encode()), WITHIN_S)
        assert self._process.returncode is not None
        return Done(self._process.returncode, out.decode(), err.decode())


class Commands:
    """Runs commands in a directory, with nothing of the developer's own settings; `close` kills what still runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("LLMOS_", "NATS_"))}
        self.env |= {"LLMOS_DATA_DIR": str(directory / "data"), "COLUMNS": "200"}
        self._started: list[asyncio.subprocess.Process] = []

    async def start(self, *arguments: str, **env: str) -> Running:
        """Start `llmos ARGUMENTS`; `env` adds settings."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llmos_cli", *arguments,
            env=self.env | env, cwd=self.directory, stdin=pipe, stdout=pipe, stderr=pipe,
        )  # fmt: skip
        self._started.append(process)
        return Running(process)

    async def run(self, *arguments: str, stdin: str = "", **env: str) -> Done:
        """Run `llmos ARGUMENTS` to its end. A traceback on stderr fails the test."""
        done = await (await self.start(*arguments, **env)).done(stdin)
        assert "Traceback" not in done.err, done.err
        return done

    async def close(self) -> None:
        """Kill what still runs."""
        for process in self._started:
            if process.returncode is None:
                process.kill()
                await process.wait()
