"""`llmos up`, `status`, `logs`, `down` on real services, and `llmos audit` on the log that they leave."""

import asyncio
import signal
from pathlib import Path

from llmos.bus import Bus
from llmos.contracts.jobs import JobCancelled
from llmos.testing.commands import Commands


async def test_a_stack_comes_up_is_seen_and_goes_down_and_its_audit_log_verifies(llmos: Commands) -> None:
    up = await llmos.run("up", "--detach", "--services", "audit")
    assert up.code == 0, up.err
    try:
        status = await llmos.run("status", "-o", "json")
        assert (status.code, status.json()["services"]) == (0, [{"service": "audit", "ready": True}])
        await say_something(status.json()["stack"]["nats_url"])
        assert (await llmos.run("get", "models")).err == "no models\n"
        shown = await llmos.run("logs", "audit")
        assert (shown.code, "audit" in shown.out) == (0, True)
        again = await llmos.run("up", "--detach", "--services", "audit")
        assert (again.code, "already" in again.err) == (2, True)
    finally:
        down = await llmos.run("down")
    assert down.code == 0, down.err
    assert (await llmos.run("status")).code == 4
    left = await llmos.run("logs", "audit")
    assert (left.code, "stopping" in left.out) == (0, True)
    await check_audit(llmos)


async def test_a_log_is_followed_beyond_the_moment_in_which_it_begins_anew(llmos: Commands, tmp_path: Path) -> None:
    log = tmp_path / "data" / "logs" / "talker.log"
    log.parent.mkdir(parents=True)
    log.write_text("one of many lines\n" * 5)
    llmos.env["LLMOS_DATA_DIR"] = str(tmp_path / "data")
    process = await llmos.start("logs", "talker", "-f", "-n", "1")
    assert await process.stdout.readline() == b"one of many lines\n"
    log.rename(log.with_name("talker.log.1"))  # as the stack does with one that is full
    log.write_text("anew\n")
    async with asyncio.timeout(10):
        assert await process.stdout.readline() == b"anew\n"
    process.send(signal.SIGINT)
    assert (await process.done()).code == 130


async def say_something(nats_url: str) -> None:
    bus = await Bus.connect(nats_url, source="test/node")
    for number in range(3):
        await bus.emit(JobCancelled(f"job-{number}", "default"), id=f"event-{number}")
    await asyncio.sleep(0.5)  # the log is signed in batches
    await bus.close()


async def check_audit(llmos: Commands) -> None:
    remembered = llmos.directory / "remembered"
    verified = await llmos.run("audit", "verify", "--remember", str(remembered), "-o", "json")
    assert verified.code == 0, verified.out
    report = verified.json()["report"]
    assert (report["ok"], report["size"], report["problems"]) == (True, 3, [])
    entries = (await llmos.run("audit", "show", "--start", "1", "-o", "json")).json()
    assert [(entry["index"], entry["entry"]["subject"]) for entry in entries] == [
        (number, f"llmos.evt.job.cancelled.default.job-{number}") for number in (1, 2)
    ]
    proof = await llmos.run("audit", "prove", "event-1")
    assert proof.json()["index"] == 1
    checked = await llmos.run("audit", "prove", "--check", "-", stdin=proof.out)
    assert checked.code == 0
    assert checked.out.startswith("entry 1 of 3 of ")
    forged = await llmos.run("audit", "prove", "--check", "-", stdin=proof.out.replace("job-1", "job-7"))
    assert (forged.code, "DOES NOT HOLD" in forged.out) == (1, True)
    change_an_entry(llmos.directory / "data" / "audit")
    tampered = await llmos.run("audit", "verify", "--remember", str(remembered))
    assert tampered.code == 1
    assert "DOES NOT VERIFY" in tampered.out
    assert "entry 1" in tampered.out


def change_an_entry(log: Path) -> None:
    (bundle,) = [file for file in (log / "tile" / "entries").rglob("*") if file.is_file()]
    bundle.write_bytes(bundle.read_bytes().replace(b"job-1", b"job-9"))


async def test_a_stack_in_the_foreground_ends_with_ctrl_c(llmos: Commands) -> None:
    process = await llmos.start("up", "--services", "audit")
    async for line in process.stderr:
        if b"ready: bus" in line:
            break
    process.send(signal.SIGINT)
    done = await process.done()
    assert done.code == 0
    assert "stopped" in done.err


async def test_logs_of_services_are_prefixed_and_followed(llmos: Commands) -> None:
    await llmos.run("up", "--detach", "--services", "audit")
    try:
        folder = llmos.directory / "data" / "logs"
        (folder / "other.log").write_text("".join(f"line {number}\n" for number in range(100)) + "half a li")
        shown = await llmos.run("logs", "-n", "2")
        lines = [line.split() for line in shown.out.splitlines() if "line" in line]
        assert lines == [["other", "|", "line", "98"], ["other", "|", "line", "99"]]
        process = await llmos.start("logs", "other", "-f", "-n", "1")
        assert await process.stdout.readline() == b"line 99\n"
        with (folder / "other.log").open("a") as log:
            log.write("ne\n")
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"half a line\n"
        process.send(signal.SIGINT)
        assert (await process.done()).code == 130
    finally:
        await llmos.run("down")
