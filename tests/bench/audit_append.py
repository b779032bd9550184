"""How fast the audit log takes entries, each batch synced and signed; how large its proofs are.

    python tests/bench/audit_append.py [--entries 100000] [--batch 256] [--bus] [--dir DIR]

The writer alone by default; with `--bus`, the service hearing a real nats-server that already holds the events.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import msgspec

from llmos import service
from llmos.auditfiles import log_directory, verifier_key_file
from llmos.auditlog import inclusion_proof, read_entries, verify_log, verify_proof
from llmos.bus import Bus
from llmos.contracts.audit import LogEntry
from llmos.contracts.envelope import Envelope
from llmos.contracts.subjects import event_row, event_subject
from llmos.contracts.tasks import TaskProgressed
from llmos.natsserver import NatsServer
from llmos_audit.config import AuditConfig
from llmos_audit.identity import open_log
from llmos_audit.service import serve


def event(number: int) -> TaskProgressed:
    return TaskProgressed(
        f"j{number % 50}-train", f"j{number % 50}", "acme", "train", 1, "n1", "training", step=number, steps=10_000,
        fraction=0.5, metrics={"loss": 0.123456 + number, "accuracy": 0.91, "learning_rate": 5e-5},
    )  # fmt: skip


def message(number: int) -> tuple[str, dict[str, str], bytes]:
    said = event(number)
    envelope = Envelope(
        f"e{number}", "llmos/trainer/n1", event_row(said).ce_type, said.task, "2026-11-23T17:00:00.123456Z",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )  # fmt: skip
    headers = envelope.to_headers() | {"Nats-Msg-Id": envelope.id}
    return event_subject(said), headers, msgspec.json.encode(said)


def write(data_dir: Path, count: int, batch: int) -> float:
    """Seconds to append `count` entries."""
    entries = [
        LogEntry(n, subject, headers, data.decode())
        for n in range(1, count + 1)
        for subject, headers, data in [message(n)]
    ]
    writer, files = open_log(data_dir, "llmos/bench")
    start = time.perf_counter()
    for at in range(0, count, batch):
        writer.append(entries[at : at + batch])
    took = time.perf_counter() - start
    files.close()
    return took


async def hear(data_dir: Path, count: int) -> float:
    """Seconds for the service to bring a stream of `count` events into its log."""
    nats = await NatsServer(data_dir / "nats").start()
    try:
        bus = await Bus.connect(nats.url, source="bench/n1")
        for at in range(1, count + 1, 500):
            said = (message(number) for number in range(at, min(at + 500, count + 1)))
            await asyncio.gather(*(bus.store(subject, data, headers) for subject, headers, data in said))
        await bus.close()
        config = AuditConfig(nats_url=nats.url, node="bench", data_dir=data_dir)
        start = time.perf_counter()
        async with service.running("audit", config, serve):
            while not (log_directory(data_dir) / "checkpoint").exists() or not read_entries(
                log_directory(data_dir), count - 1, 1
            ):
                await asyncio.sleep(0.01)
            return time.perf_counter() - start
    finally:
        await nats.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--bus", action="store_true")
    parser.add_argument("--dir", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        data_dir = Path(folder)
        if args.bus:
            import uvloop

            took = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(hear(data_dir, args.entries))
        else:
            took = write(data_dir, args.entries, args.batch)
        directory, key = log_directory(data_dir), verifier_key_file(data_dir).read_text()
        start = time.perf_counter()
        report = verify_log(directory, key)
        verified = time.perf_counter() - start
        proof = inclusion_proof(directory, args.entries // 2)
        verify_proof(proof, key)
        stored = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        how = "through the bus" if args.bus else f"writer alone, batches of {args.batch}"
        print(f"{how}: {args.entries / took:,.0f} entries/s ({args.entries} in {took:.2f} s), synced and signed")
        hashes = len(proof.hashes)
        print(f"on disk: {stored / args.entries:.0f} B an entry; proof: {hashes} hashes, {32 * hashes} B")
        print(f"verified: {report.ok}, {args.entries / verified:,.0f} entries/s; root {report.root}")


if __name__ == "__main__":
    main()
