"""The one-machine stack: it becomes ready, restarts what dies, stops whole, and says what is wrong."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos import local
from llmos.errors import Fatal, NotFound, Rejected

SERVICES = ("vault", "audit")


def wait_for(condition: object, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def is_ready(data: Path) -> bool:
    return local.find_stack(data) is not None and local.status(data).ready


def group(data: Path) -> list[int]:
    """Every process whose environment names the data directory, or that runs the stack's nats-server."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(data).encode() in text and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def service_pid(data: Path, name: str) -> int:
    for pid in group(data):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if f"llmos_{name}".encode() in command:
            return pid
    return 0


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    data = tmp_path / "stack"
    yield data
    if local.find_stack(data) is not None:
        local.down(data)


def up(data: Path, **more: object) -> None:
    local.up(local.UpOptions(data_dir=data, services=SERVICES, detach=True, **more))  # type: ignore[arg-type]


def test_a_stack_comes_up_and_goes_down_whole(data: Path) -> None:
    up(data)
    assert is_ready(data)
    info = local.status(data).stack
    assert info.services == ["vault", "audit"]
    local.down(data)
    assert local.find_stack(data) is None
    wait_for(lambda: group(data) == [], 5)
    with pytest.raises(NotFound, match="llmos up"):
        local.down(data)


def test_a_killed_service_is_started_again_and_the_bus_keeps_its_port(data: Path) -> None:
    up(data)
    before = service_pid(data, "vault")
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: service_pid(data, "vault") not in (0, before))
    url = local.status(data).stack.nats_url
    local.down(data)
    up(data)
    assert local.status(data).stack.nats_url == url


def test_a_second_stack_in_one_place_is_refused(data: Path) -> None:
    up(data)
    with pytest.raises(Fatal, match="runs in"):
        local.up(local.UpOptions(data_dir=data, services=SERVICES, quiet=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_within_ten_seconds(data: Path, number: signal.Signals) -> None:
    up(data)
    began = time.monotonic()
    os.kill(local.status(data).stack.pid, number)
    wait_for(lambda: group(data) == [], 10)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("after", [0.3, 0.8, 1.5])
def test_a_stack_that_is_stopped_while_it_starts_leaves_nobody(data: Path, after: float) -> None:
    code = f"from llmos import local; from pathlib import Path; local.up(local.UpOptions(data_dir=Path({str(data)!r}), "
    process = subprocess.Popen([sys.executable, "-c", f"{code}services={SERVICES!r}, quiet=True))"])
    wait_for(lambda: (data / "run" / "up.lock").exists() or process.poll() is not None)
    time.sleep(after)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) in (0, -signal.SIGTERM)
    wait_for(lambda: group(data) == [], 10)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_no_service_outlives_a_killed_stack(data: Path) -> None:
    up(data)
    os.kill(local.status(data).stack.pid, signal.SIGKILL)
    wait_for(lambda: group(data) == [], 20)


def test_a_service_that_can_never_start_ends_the_stack_with_its_own_words(data: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        began = time.monotonic()
        options = local.UpOptions(data_dir=data, services=("gateway",), http_port=taken.getsockname()[1], detach=True)
        with pytest.raises(Fatal, match="gateway can't start"):
            local.up(options)
        assert time.monotonic() - began < 30
    wait_for(lambda: group(data) == [], 10)


def test_an_unknown_service_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="vault"):
        local.up(local.UpOptions(data_dir=tmp_path, services=("nonsense",)))
    with pytest.raises(Rejected, match="vault"):
        local.run_service("nonsense")


def test_a_server_that_cannot_be_found_is_named_with_the_remedies(tmp_path: Path) -> None:
    program = (
        "import sys; sys.executable = '/nowhere/python'\n"
        "from llmos import natsserver\n"
        "try: natsserver.find_server()\n"
        "except Exception as error: print(error)"
    )
    env = {"PATH": "/nowhere", "PYTHONPATH": str(Path(local.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert "NATS_URL" in done.stdout
    assert "llmos[local]" in done.stdout
