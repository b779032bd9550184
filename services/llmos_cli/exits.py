"""Exit codes, and how an error becomes two lines on stderr: what was wrong, and what to do."""

import os
import sys
from enum import IntEnum

from llmos.errors import Busy, Fatal, NotFound, Rejected, Unreachable


class Exit(IntEnum):
    """The exit codes of `llmos`; they are stable, scripts may rest on them."""

    OK = 0
    FAILED = 1  # the job ended without success, a verification failed, or llmos itself went wrong
    USAGE = 2  # the command line, the spec or another input is wrong
    NOT_FOUND = 3
    UNREACHABLE = 4  # no stack answers
    BUSY = 5  # a time-out, or try again later
    INTERRUPTED = 130


def exit_code(error: BaseException) -> Exit:
    """The exit code of an error. The order matters: `NotFound` is a `Rejected`."""
    codes: tuple[tuple[type[BaseException], Exit], ...] = (
        (Unreachable, Exit.UNREACHABLE),
        (NotFound, Exit.NOT_FOUND),
        (Rejected, Exit.USAGE),
        (Busy, Exit.BUSY),
        (Fatal, Exit.USAGE),  # a setting that is missing or wrong
        (TimeoutError, Exit.BUSY),
        (KeyboardInterrupt, Exit.INTERRUPTED),
    )
    return next((code for kind, code in codes if isinstance(error, kind)), Exit.FAILED)


def debugging() -> bool:
    """Whether `LLMOS_DEBUG` asks for tracebacks."""
    return os.environ.get("LLMOS_DEBUG", "") not in ("", "0")


def nobody_reads() -> None:
    """Drop what is still written to stdout, whose reader has gone: the interpreter's last flush would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(line: str) -> None:
    """One line for a person, on stderr: stdout is for what a program reads."""
    print(line, file=sys.stderr, flush=True)


def report(what: str, remedy: str = "") -> None:
    """Say what was wrong and, on a second line, what to do."""
    say(f"error: {what}")
    if remedy:
        say(f"  try: {remedy}")
