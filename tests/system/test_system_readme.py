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


async def test_the_commands_of_a_shared_cluster_work_as_they_stand_there(
    outsider: Outsider, stack: local.StackInfo, tmp_path: Path
) -> None:
    (tmp_path / "queues.yaml").write_text(block("yaml"))
    (tmp_path / "job.yaml").write_text(json.dumps(outsider.spec(deploy=None)))
    await outsider.history(await outsider.submit(outsider.spec(deploy=None)))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in block("console").splitlines():
        process = await asyncio.create_subprocess_shell(
            line.removeprefix("$ "),
            cwd=tmp_path,
            env=os.environ | {"LLMOS_DATA_DIR": stack.data_dir, "PATH": path},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(120):
            out, err = await process.communicate()
        assert process.returncode == 0, (line, out.decode(), err.decode())
    assert "<svg" in (tmp_path / "what-if.html").read_text()


def test_the_example_spec_is_valid() -> None:
    from llmos.specs import check_spec

    found = re.search(r"```json\n(.*?)```", README.read_text(), re.DOTALL)
    assert found
    spec, faults = check_spec(found[1].encode(), tenant="default", now=0.0)
    assert not faults
    assert spec is not None
