"""Forked children: messages, every kind of end, and nothing left behind when a parent is killed."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmos.errors import Fatal
from llmos.forking import Template

ROOM = """
import os, signal, sys, time
LOADED_BY = os.getpid()

def echo(args, channel):
    channel.send(args)
    channel.send(os.environ["COLOUR"].encode())
    channel.send(f"{LOADED_BY} {os.getppid()} {os.getpid()}".encode())

def large(args, channel):
    for size in (0, 1, 3_000_000):
        channel.send(bytes(size))

def obey(args, channel):
    channel.send(b"ready")
    while b"stop" not in channel.received():
        time.sleep(0.01)
    channel.send(b"stopped")

def raises(args, channel):
    channel.send(b"before")
    raise ValueError("no such label: 'x'")

def leaves(args, channel):
    sys.exit(7)

def sleeps(args, channel):
    channel.send(b"ready")
    time.sleep(60)

def leaves_a_grandchild(args, channel):
    if os.fork() == 0:
        time.sleep(5)
        os._exit(0)
    channel.send(b"done")
"""


@pytest.fixture
async def template(tmp_path: Path) -> AsyncIterator[Template]:
    (tmp_path / "forked_room.py").write_text(ROOM)
    template = Template(["forked_room"], env={"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
    yield template
    await template.stop()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


async def gone(*pids: int) -> bool:
    for _ in range(200):
        if not any(alive(pid) for pid in pids):
            return True
        await asyncio.sleep(0.025)
    return False


async def test_a_child_gets_its_arguments_and_environment_and_what_the_template_loaded(template: Template) -> None:
    child = await template.fork("forked_room:echo", b"\x00\n\xff", env={"COLOUR": "red"})
    args, colour, pids = [message async for message in child]
    assert (args, colour) == (b"\x00\n\xff", b"red")
    assert pids.decode().split() == [str(template.pid), str(template.pid), str(child.pid)]
    assert (await child.wait()).ok
    assert "COLOUR" not in os.environ


async def test_messages_of_any_size_arrive_whole_and_in_order(template: Template) -> None:
    child = await template.fork("forked_room:large")
    assert [len(message) async for message in child] == [0, 1, 3_000_000]


async def test_a_message_to_the_child_is_received_while_it_works(template: Template) -> None:
    child = await template.fork("forked_room:obey")
    messages = aiter(child)
    assert await anext(messages) == b"ready"
    await child.send(b"stop")
    assert await anext(messages) == b"stopped"
    assert (await child.wait()).ok


async def test_an_exception_is_an_exit_with_its_traceback_and_keeps_the_messages_before_it(template: Template) -> None:
    child = await template.fork("forked_room:raises")
    ended = await child.wait()
    assert (ended.code, ended.signal) == (1, "")
    assert "Traceback" in ended.error and str(ended) == "exit code 1: ValueError: no such label: 'x'"
    assert [message async for message in child] == [b"before"]


async def test_a_target_that_does_not_exist_is_an_exit_too(template: Template) -> None:
    assert "no attribute 'nowhere'" in str(await (await template.fork("forked_room:nowhere")).wait())


async def test_an_exit_code_is_kept(template: Template) -> None:
    assert (await (await template.fork("forked_room:leaves")).wait()).code == 7


@pytest.mark.parametrize(("how", "name"), [("terminate", "SIGTERM"), ("kill", "SIGKILL")])
async def test_a_signal_is_named_in_the_exit(template: Template, how: str, name: str) -> None:
    child = await template.fork("forked_room:sleeps")
    await anext(aiter(child))
    await getattr(child, how)()
    ended = await child.wait()
    assert not ended.ok and ended.signal == name
    await child.kill()  # once it is gone, a signal goes nowhere


async def test_many_children_run_at_once_and_each_keeps_its_own_messages(template: Template) -> None:
    async def one(number: int) -> list[bytes]:
        child = await template.fork("forked_room:echo", str(number).encode(), env={"COLOUR": str(-number)})
        return [message async for message in child][:2]

    got = await asyncio.gather(*(one(number) for number in range(12)))
    assert got == [[str(number).encode(), str(-number).encode()] for number in range(12)]


async def test_a_child_that_leaves_a_process_of_its_own_still_ends(template: Template) -> None:
    child = await template.fork("forked_room:leaves_a_grandchild")
    assert (await asyncio.wait_for(child.wait(), 4)).ok
    assert [message async for message in child] == [b"done"]


async def test_when_the_template_dies_its_children_die_and_the_next_fork_starts_a_new_one(template: Template) -> None:
    child = await template.fork("forked_room:sleeps")
    await anext(aiter(child))
    first = template.pid
    os.kill(first, signal.SIGKILL)
    assert (await child.wait()).signal == "SIGKILL"
    assert await gone(first, child.pid)
    again = await template.fork("forked_room:echo", env={"COLOUR": "red"})
    assert (await again.wait()).ok and template.pid != first


async def test_stop_leaves_no_process(template: Template) -> None:
    child = await template.fork("forked_room:sleeps")
    pids = (template.pid, child.pid)
    await template.stop()
    assert (await child.wait()).signal == "SIGKILL"
    assert await gone(*pids)


async def test_a_module_that_cannot_be_imported_is_named() -> None:
    template = Template(["no_such_module_anywhere"])
    with pytest.raises(Fatal, match="no_such_module_anywhere"):
        await template.start()
    assert template.pid == 0


async def test_nothing_survives_a_service_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "forked_room.py").write_text(ROOM)
    (tmp_path / "service.py").write_text(
        "import asyncio\nfrom llmos.forking import Template\n"
        "async def main():\n"
        "    template = Template(['forked_room'])\n"
        "    child = await template.fork('forked_room:sleeps')\n"
        "    await anext(aiter(child))\n"
        "    print(template.pid, child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    service = await asyncio.create_subprocess_exec(
        sys.executable, str(tmp_path / "service.py"), stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip
    assert service.stdout is not None
    pids = [int(pid) for pid in (await service.stdout.readline()).split()]
    assert len(pids) == 2 and all(alive(pid) for pid in pids)
    service.kill()
    await service.wait()
    assert await gone(*pids)


def test_it_works_on_uvloop_as_services_run_on_it(tmp_path: Path) -> None:
    (tmp_path / "forked_room.py").write_text(ROOM)

    async def main() -> None:
        template = Template(["forked_room"], env={"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
        killed = await template.fork("forked_room:sleeps")
        await anext(aiter(killed))
        await killed.kill()
        assert (await killed.wait()).signal == "SIGKILL"
        large = await template.fork("forked_room:large")
        assert [len(message) async for message in large] == [0, 1, 3_000_000]
        sleeper = await template.fork("forked_room:sleeps")
        os.kill(template.pid, signal.SIGKILL)
        assert (await sleeper.wait()).signal == "SIGKILL"
        assert "no such label" in (await (await template.fork("forked_room:raises")).wait()).error
        await template.stop()

    pytest.importorskip("uvloop").run(main())
