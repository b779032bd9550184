"""The README's programs, run as they stand there: a plain client publishes a job and follows it to `deployed`."""

import asyncio
import json
import os
import re
import secrets
import sys
from pathlib import Path

import pytest

from llmos import local
from outsider import Outsider

pytestmark = pytest.mark.system
README = Path(__file__).parents[2] / "README.md"


def block(language: str) -> str:
    found = re.search(rf"<!-- tested: {language} -->\n```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    assert found
    return found[1]


async def test_the_python_program_follows_its_job_to_deployed(
    outsider: Outsider, stack: local.StackInfo, tmp_path: Path
) -> None:
    program, spec = tmp_path / "publish.py", tmp_path / "job.json"
    program.write_text(block("python"))
    assert "llmos" not in re.findall(r"^(?:import|from) (\S+)", program.read_text(), re.MULTILINE)
    spec.write_text(json.dumps(outsider.spec(deploy={"name": "readme"})))
    job = "readme-" + secrets.token_hex(4)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", program, spec, job),
        env=os.environ | {"NATS_URL": stack.nats_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert [line.split()[0] for line in out.decode().splitlines()] == ["admitted", "deployed"]


def test_the_example_spec_is_valid() -> None:
    from llmos.specs import check_spec

    found = re.search(r"```json\n(.*?)```", README.read_text(), re.DOTALL)
    assert found
    spec, faults = check_spec(found[1].encode(), tenant="default", now=0.0)
    assert not faults
    assert spec is not None
