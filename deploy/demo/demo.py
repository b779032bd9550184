"""An outside system that uses llmos: it imports nothing of llmos and speaks to it with a plain NATS client.

It publishes a fine-tuning job, follows it by events alone until it is deployed, asks the deployed model for
predictions, and prints a summary. Arguments: the bus's URL, the data folder, the base model's reference, the job's id.
"""

import asyncio
import json
import secrets
import statistics
import sys
import time
from pathlib import Path

import nats
from nats.js.api import DeliverPolicy

ENDED = {"deployed", "succeeded", "refused", "rejected", "failed", "cancelled"}
MODEL = "reviews"
REQUESTS = 300
TEXTS = [
    "The battery lasts for two days and the screen is gorgeous.",
    "It stopped working after a week and nobody answered my mails.",
    "Easy to set up, and the sound is far better than I expected.",
    "The menu is confusing and the remote feels cheap.",
]


def say(line: str = "") -> None:
    print(line, flush=True)


def spec(data: Path, base: str) -> dict:
    return {
        "name": "demo-reviews",
        "task": "text-classification",
        "model": {"base": base},
        "data": {part: (data / f"reviews-{part}.jsonl").as_uri() for part in ("train", "validation", "test")},
        "train": {"method": "full", "epochs": 2, "batch_size": 16, "learning_rate": 1e-4, "max_length": 64, "seed": 7},
        "gate": {"accuracy": {"min": 0.8}, "f1": {"min": 0.8}},
        "export": {"precision": "int8"},
        "deploy": {"name": MODEL, "replicas": 1},
        "resources": {"cpus": 2, "memory": "2GiB"},
    }


class Job:
    """One job, followed by its events."""

    def __init__(self, job: str, spec: dict) -> None:
        self.job = job
        self.spec = spec
        self.state = "submitted"
        self.trace = ""
        self.started = time.monotonic()
        self.version: dict = {}
        self.shown = ""

    def hear(self, noun: str, fact: str, event: dict) -> None:
        version = event.get("version")
        about = event.get("job") or (version["job"] if isinstance(version, dict) else "")
        if about != self.job:
            return
        if noun == "job":
            self.state = fact
            if event.get("traceparent"):
                self.trace = event["traceparent"].split("-")[1]
            detail = {k: v for k, v in event.items() if k in ("faults", "problem", "reasons", "metrics", "nodes")}
            self.line(f"job {fact}", json.dumps(detail) if detail else "")
        elif noun == "task" and fact in ("placed", "started", "succeeded", "failed", "lost"):
            metrics = " ".join(f"{k}={v:.4g}" for k, v in sorted(event.get("metrics", {}).items()))
            where = (
                f"on {event['node']}" if fact == "placed" else metrics or event.get("problem", {}).get("message", "")
            )
            self.line(f"{event['kind']} {fact}", where)
        elif noun == "task" and fact == "progressed":
            metrics = event.get("metrics", {})
            parts = [event.get("phase", "")]
            if event.get("steps"):
                parts.append(f"step {event.get('step', 0)}/{event['steps']}")
            parts += [f"{name} {metrics[name]:.3f}" for name in ("loss", "accuracy") if name in metrics]
            if event.get("eta") is not None:
                parts.append(f"ETA {event['eta']:.0f} s")
            self.line(event["kind"], "  ".join(parts), passing=True)
        elif noun == "model" and fact == "exported":
            self.version = event["version"]
            self.line(
                "model registered", f"{self.version['model']} version {self.version['version']}, signed by the vault"
            )
        elif noun == "replica":
            self.line(f"replica {fact}", f"on {event['node']}")

    def line(self, what: str, detail: str, *, passing: bool = False) -> None:
        """Show a line; on a terminal a passing one is overwritten by the next."""
        text = f"{what:<18} {detail}"
        if text == self.shown:
            return
        self.shown = text
        stamped = f"  {time.monotonic() - self.started:6.1f} s  {text}"
        if not sys.stdout.isatty():
            say(stamped)
        else:
            print(f"\r\x1b[K{stamped}", end="" if passing else "\n", flush=True)


async def follow(js: nats.js.JetStreamContext, job: Job) -> None:
    events = await js.subscribe("llmos.evt.>", ordered_consumer=True, deliver_policy=DeliverPolicy.NEW)
    await js.publish(f"llmos.job.submit.default.{job.job}", json.dumps(job.spec).encode())
    while job.state not in ENDED:
        try:
            message = await events.next_msg(timeout=120)
        except nats.errors.TimeoutError:
            raise SystemExit(f"no event for 120 s; the job is {job.state}") from None
        _, _, noun, fact, _, _ = message.subject.split(".")
        job.hear(noun, fact, json.loads(message.data))
    await events.unsubscribe()


async def ask(nc: nats.NATS, answers: asyncio.Queue, client: str, texts: list[str], trace: str) -> dict:
    request = secrets.token_hex(8)
    headers = {"Nats-Msg-Id": request} | ({"traceparent": trace} if trace else {})
    body = json.dumps({"client": client, "inputs": texts}).encode()
    await nc.jetstream().publish(f"llmos.infer.{MODEL}.interactive.{request}", body, headers=headers)
    while True:
        message = await asyncio.wait_for(answers.get(), 30)
        if message.subject.endswith(request):
            return json.loads(message.data)


async def predict(nc: nats.NATS, data: Path, trace: str) -> dict:
    client = "demo-" + secrets.token_hex(4)
    answers: asyncio.Queue = asyncio.Queue()
    await nc.subscribe(f"llmos.reply.{client}.*", cb=answers.put)
    answer = await ask(nc, answers, client, TEXTS, trace)
    if answer.get("problem"):
        raise SystemExit(f"the model did not answer: {answer['problem']}")
    for text, output in zip(TEXTS, answer["outputs"], strict=True):
        say(f"  {output['label']:>8} {output['score']:.3f}  {text}")
    rows = [json.loads(line) for line in (data / "reviews-test.jsonl").read_text().splitlines()]
    latencies, right = [], 0
    for number in range(REQUESTS):
        row = rows[number % len(rows)]
        began = time.perf_counter()
        answer = await ask(nc, answers, client, [row["text"]], "")
        latencies.append((time.perf_counter() - began) * 1000)
        right += number < len(rows) and answer["outputs"][0]["label"] == row["label"]
    quantiles = statistics.quantiles(latencies, n=100)
    return {"p50_ms": quantiles[49], "p99_ms": quantiles[98], "accuracy": right / min(len(rows), REQUESTS)}


def summary(job: Job, served: dict) -> None:
    version = job.version
    exported, source = version["metrics"], version["source"]
    say(f"  {'':<22}{'trained':>12}{'exported (ONNX)':>18}")
    for name in ("accuracy", "f1", "loss"):
        if name in exported:
            say(f"  {name:<22}{source.get(name, float('nan')):>12.4f}{exported[name]:>18.4f}")
    say(f"  {'artifact size':<22}{version['source_size'] / 2**20:>8.1f} MiB{version['size'] / 2**20:>14.1f} MiB")
    say(f"  {'largest difference':<22}{'':>12}{version['parity'].get('max_abs_diff', 0):>18.2g}")
    say(f"  gate                  accuracy ≥ 0.8, f1 ≥ 0.8: passed, {version['model']} version {version['version']}")
    times = f"p50 {served['p50_ms']:.1f} ms, p99 {served['p99_ms']:.1f} ms"
    say(f"  served                {REQUESTS} requests one by one: {times}, accuracy {served['accuracy']:.3f}")
    say(f"  trace id              {job.trace}")


async def main(url: str, data: Path, base: str, id: str) -> int:
    nc = await nats.connect(url)
    job = Job(id, spec(data, base))
    say(f"Publishing job {job.job} as JSON on llmos.job.submit.default.{job.job}")
    await follow(nc.jetstream(), job)
    if job.state != "deployed":
        say(f"The job ended as {job.state}, not as deployed.")
        return 1
    say("\nPredictions, answered over the bus by the inferencer from the exported ONNX model")
    trace = f"00-{job.trace}-{secrets.token_hex(8)}-01" if job.trace else ""
    served = await predict(nc, data, trace)
    say("\nSummary")
    summary(job, served)
    await nc.close()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3], sys.argv[4])))
    except KeyboardInterrupt:
        say("\nInterrupted: the job is cancelled, and everything is stopped.")
        sys.exit(130)
