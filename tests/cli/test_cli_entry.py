"""The entry point: help, versions, exit codes, and errors in two lines."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from llmos import __version__
from llmos.errors import Busy, Fatal, LlmosError, NotFound, Rejected, Unreachable
from llmos.testing.commands import Commands
from llmos_cli.app import COMMANDS
from llmos_cli.exits import Exit, exit_code

HEAVY = ("nats", "opentelemetry", "structlog", "yaml", "rich.progress", "llmos.client", "torch", "onnxruntime")


async def test_help_lists_every_command_and_the_exit_codes(llmos: Commands) -> None:
    done = await llmos.run("--help")
    assert done.code == 0
    assert all(f" {name} " in done.out for name in COMMANDS)
    assert "130 interrupted" in done.out


async def test_every_command_has_a_help_of_its_own(llmos: Commands) -> None:
    helps = await asyncio.gather(*(llmos.run(name, "--help") for name in COMMANDS))
    for name, done in zip(COMMANDS, helps, strict=True):
        assert (done.code, done.err) == (0, ""), name
        assert f"llmos {name}" in done.out


async def test_the_version_is_the_packages(llmos: Commands) -> None:
    assert (await llmos.run("--version")).out.strip() == __version__


def test_help_imports_nothing_heavy() -> None:
    show = f"print(*(set({HEAVY}) & set(sys.modules)))"
    program = f"import sys; from llmos_cli.__main__ import main; main(['--help']); {show}"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == ""


async def test_a_wrong_command_line_is_2_with_one_line_and_a_remedy(llmos: Commands) -> None:
    wrong = (
        "nonsense", "get", "get pods", "submit", "get jobs --limit many", "get jobs -o xml", "dead show x",
        "run nonsense", "up --services nonsense", "infer intents", "audit prove", "submit --nonsense job.yaml",
    )  # fmt: skip
    for done in await asyncio.gather(*(llmos.run(*line.split()) for line in wrong)):
        assert (done.code, done.out) == (2, ""), done
        assert done.err.startswith("error: ")
        assert "  try: " in done.err


async def test_without_a_stack_it_is_4_and_says_how_to_start_one(llmos: Commands) -> None:
    lines = ("get jobs", "status", "down", "cancel j", "dead list")
    for done in await asyncio.gather(*(llmos.run(*line.split()) for line in lines)):
        assert (done.code, done.out) == (4, ""), done
        assert "llmos up" in done.err


async def test_a_bus_that_does_not_answer_is_4_within_seconds(llmos: Commands) -> None:
    done = await llmos.run("get", "jobs", "--nats-url", "nats://127.0.0.1:1")
    assert done.code == 4
    assert "127.0.0.1:1" in done.err
    assert len(done.err.splitlines()) == 2


def test_a_reader_that_closes_the_pipe_early_is_no_error(spec_file: Path) -> None:
    command = f"{sys.executable} -m llmos_cli submit {spec_file} --dry-run | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Rejected("x"), Exit.USAGE),
        (NotFound("x"), Exit.NOT_FOUND),
        (Unreachable("x"), Exit.UNREACHABLE),
        (Busy("x"), Exit.BUSY),
        (Fatal("x"), Exit.USAGE),
        (TimeoutError(), Exit.BUSY),
        (LlmosError("x"), Exit.FAILED),
        (ValueError("x"), Exit.FAILED),
        (KeyboardInterrupt(), Exit.INTERRUPTED),
    ],
)
def test_every_error_has_its_exit_code(error: BaseException, code: Exit) -> None:
    assert exit_code(error) == code


def test_the_exit_codes_are_those_that_scripts_rest_on() -> None:
    assert {code.name: code.value for code in Exit} == {
        "OK": 0, "FAILED": 1, "USAGE": 2, "NOT_FOUND": 3, "UNREACHABLE": 4, "BUSY": 5, "INTERRUPTED": 130,
    }  # fmt: skip
