"""An encoder (6 layers, 384 wide) at 64 clients: llmos through the bus, LitServe and Ray Serve over HTTP, and the bare
onnxruntime loop, with the same ONNX file, the same texts (16–128 tokens, mixed) and the same threads, in turns.

`python tests/bench/encoder_peers.py [--seconds 8] [--rounds 2] [--peers DIR]`: the peers are installed from PyPI into
DIR (a temporary directory, if none is given).
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from inferencer_stand import Stand

from llmos.contracts.inference import Input
from llmos_inferencer.config import usable_cores
from llmos_inferencer.encoding.labels import Classifier
from llmos_inferencer.engine import Means, load

CLIENTS = 64
PEERS = ["litserve", "ray[serve]", "onnxruntime==1.32.0", "tokenizers", "numpy"]
SENTENCE = "my card was declined at the station this morning and nobody could tell why it would not work any more"
Ask = Callable[[str], Awaitable[object]]


def texts() -> list[str]:
    """Texts of 16 to 128 tokens, evenly mixed."""
    chance = random.Random(7)
    return [" ".join(chance.choices(SENTENCE.split(), k=chance.randint(14, 126))) for _ in range(512)]


async def hammer(ask: Ask, seconds: float, given: list[str], clients: int = CLIENTS) -> tuple[float, list[float]]:
    """Requests a second and each one's latency in seconds, as so many clients see them."""
    taken: list[float] = []
    until = time.perf_counter() + seconds
    next_text = iter(range(1 << 30))

    async def client() -> None:
        while (started := time.perf_counter()) < until:
            await ask(given[next(next_text) % len(given)])
            taken.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return len(taken) / (time.perf_counter() - started), taken


class Http:
    """A lean HTTP/1.1 client with connections that are kept, so that not a client library is measured."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, text: str) -> Any:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        body = json.dumps({"text": text}).encode()
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        length = next((int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length")), None)
        answer = json.loads(await reader.readexactly(length) if length is not None else await _chunks(reader))
        assert lines[0].split()[1] == b"200", answer
        self._idle.append((reader, writer))
        return answer

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A body in chunks."""
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:size]
    await reader.readexactly(2)
    return body


def bare(engine: Classifier, given: list[str], seconds: float) -> tuple[float, int]:
    """Texts a second of the bare session at its best batch (tokenised before), and that batch."""
    rows = [each.rows[0] for each in engine.prepare([Input(text=text) for text in given])]
    best = (0.0, 0)
    for batch in (1, 2, 4, 8, 16, 32):
        done, at, started = 0, 0, time.perf_counter()
        while time.perf_counter() - started < seconds / 4:
            engine.run(rows[at : at + batch])
            done, at = done + batch, (at + batch) % (len(rows) - batch)
        best = max(best, (done / (time.perf_counter() - started), batch))
    return best


async def peer(kind: str, python: Path, artifact: Path, ready_within: float = 90.0) -> tuple[Any, Http]:
    """Start a peer; its process and a client that got an answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).with_name("encoder_peer.py")
    process = await asyncio.create_subprocess_exec(
        str(python), str(script), kind, str(artifact), str(port), str(usable_cores()),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    client = Http(port)
    try:
        async with asyncio.timeout(ready_within):
            while True:
                try:
                    await client.ask("ready?")
                    return process, client
                except (OSError, AssertionError, asyncio.IncompleteReadError, ValueError):
                    await asyncio.sleep(0.3)
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        raise


async def measure(precision: str, given: argparse.Namespace, python: Path) -> dict[str, Any]:
    found: dict[str, Any] = defaultdict(lambda: {"rps": [], "latency": []})
    asked = texts()
    with tempfile.TemporaryDirectory() as folder:
        stand = Stand(Path(folder))
        try:
            artifact = await stand.prepare(precision)
            engine = load(artifact, Means(usable_cores()))
            assert isinstance(engine, Classifier)
            for _ in range(given.rounds):
                rate, batch = await asyncio.to_thread(bare, engine, asked, given.seconds)
                found["bare"]["rps"].append(rate)
                found["bare"]["batch"] = batch
                await stand.start()
                await hammer(stand.ask, 1.0, asked)
                await note(found["llmos"], stand.ask, given.seconds, asked)
                one_rate, one = await hammer(stand.ask, given.seconds / 2, asked[:32], 1)
                alone = await asyncio.to_thread(latency_of, engine, asked[:32], int(one_rate * given.seconds / 4) + 32)
                found["llmos"].setdefault("one_ms", []).append(1000 * statistics.median(one))
                found["bare"].setdefault("one_ms", []).append(1000 * alone)
                await stand.stop()
                for kind in given.against:
                    process, client = await peer(kind, python, artifact)
                    try:
                        await hammer(client.ask, 1.0, asked)
                        await note(found[kind], client.ask, given.seconds, asked)
                    finally:
                        client.close()
                        os.killpg(process.pid, signal.SIGTERM)
                        await process.wait()
        finally:
            await stand.close()
    return found


async def note(into: dict[str, Any], ask: Ask, seconds: float, asked: list[str]) -> None:
    rate, taken = await hammer(ask, seconds, asked)
    into["rps"].append(rate)
    into["latency"] += taken


def latency_of(engine: Classifier, asked: list[str], times: int) -> float:
    """The median of a bare call for one text, tokenising included, in seconds."""
    taken = []
    for at in range(times):
        started = time.perf_counter()
        engine.answer([asked[at % len(asked)]])
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def show(precision: str, found: dict[str, Any]) -> dict[str, Any]:
    rates = {name: statistics.median(each["rps"]) for name, each in found.items()}
    tails = {
        name: [1000 * float(np.quantile(each["latency"], share)) for share in (0.5, 0.99)]
        for name, each in found.items()
        if each["latency"]
    }
    print(f"\n{precision}, {CLIENTS} clients, {usable_cores()} threads (bare: batches of {found['bare']['batch']})")
    for name, rate in rates.items():
        p50, p99 = tails.get(name, ["", ""])
        ms = f"p50 {p50:7.1f} ms   p99 {p99:7.1f} ms" if p50 else " " * 31
        print(f"  {name:9} {rate:8.1f} requests/s   {ms}   llmos is {rates['llmos'] / rate:.2f}x")
    more = statistics.median(found["llmos"]["one_ms"]) - statistics.median(found["bare"]["one_ms"])
    print(f"  one client: {more:.2f} ms over the bare call (limit 2.0)")
    checks = {"bare": rates["llmos"] / rates["bare"] >= 0.9, "one client": more <= 2.0}
    for name in tails:
        if name != "llmos":
            checks[f"{name} rate"] = rates["llmos"] / rates[name] >= 1.5
            checks[f"{name} p99"] = tails["llmos"][1] / tails[name][1] <= 0.7
            print(f"  p99 is {tails['llmos'][1] / tails[name][1]:.2f}x that of {name} (limit 0.7)")
    for name, holds in checks.items():
        print(f"  {'ok  ' if holds else 'MISS'} {name}")
    return {"precision": precision, "rates": rates, "ms": tails, "one_client_ms": more, "checks": checks}


def install(folder: Path) -> Path:
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS], check=True)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", nargs="*", default=["int8", "fp32"])
    parser.add_argument("--against", nargs="*", default=["litserve", "ray"])
    parser.add_argument("--peers", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        python = install(given.peers or Path(folder) / "peers") if given.against else Path(sys.executable)
        results = [show(each, asyncio.run(measure(each, given, python))) for each in given.precision]
    print(msgspec.json.encode(results).decode())
    return 0 if all(all(each["checks"].values()) for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
