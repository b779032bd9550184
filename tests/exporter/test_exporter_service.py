"""The exporter as a service on a real nats-server, beside a scripted vault: assignments in, facts and versions out."""

import asyncio
import base64
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from msgspec import Struct

from llmos.artifacts import ArtifactStore, get_manifest, get_tree, open_store, put_tree
from llmos.bus import Bus
from llmos.cancel import cancel
from llmos.contracts import subjects
from llmos.contracts.envelope import Envelope
from llmos.contracts.jobs import Bound, DataSource, DeploySettings, ExportSettings, JobSpec, ModelSource, TrainSettings
from llmos.contracts.keys import KeyAnswered, KeyRequested, SignAnswered, SignRequested
from llmos.contracts.models import ModelExported, ModelRecord, ModelRefused, ServingContract, Statement
from llmos.contracts.nodes import Heartbeat
from llmos.contracts.tasks import (
    TaskAssigned,
    TaskCancelled,
    TaskFailed,
    TaskProgressed,
    TaskRefused,
    TaskStarted,
    TaskStopRequested,
    TaskSucceeded,
)
from llmos.errors import Busy
from llmos.forking import Template
from llmos.keyring import release_context
from llmos.natsserver import NatsServer
from llmos.sealing import StreamingCipher, new_streaming_keyset, seal_to
from llmos.service import running
from llmos.signing import SigningKey, verify
from llmos_exporter import process
from llmos_exporter.config import ExporterConfig
from llmos_exporter.orders import ExportOrder
from llmos_exporter.service import serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

NODE = "n1"
KEY = SigningKey("vault", b"k" * 32)
DATA_KEY = new_streaming_keyset()
FINAL = (TaskSucceeded, TaskFailed, TaskRefused, TaskCancelled)


class Stack:
    """One nats-server, one store, one vault and one exporter for all tests; each test has jobs of its own."""

    def __init__(self, bus: Bus, store: ArtifactStore, inputs: dict[str, str], data: Path) -> None:
        self.bus = bus
        self.store = store
        self.inputs = inputs
        self.data = data
        self.vault_open = asyncio.Event()
        self.vault_open.set()

    async def on_sign(self, request: SignRequested, _: Envelope) -> SignAnswered:
        await self.vault_open.wait()
        return SignAnswered(KEY.sign(request.statement))

    async def on_key(self, request: KeyRequested, _: Envelope) -> KeyAnswered:
        sealed = seal_to(base64.b64decode(request.recipient), DATA_KEY, release_context(request, 1))
        return KeyAnswered(request.tenant, 1, base64.b64encode(sealed).decode())

    async def assign(self, job: str, *, lease: int = 1, memory: int = 0, **changes: Any) -> TaskAssigned:
        """Publish an assignment of the export task of a job."""
        inputs = changes.pop("inputs", self.inputs)
        settings: dict[str, Any] = {"tenant": "acme", "train": TrainSettings(max_length=32)} | changes
        spec = JobSpec(name=job, model=ModelSource("hf:a/b@c"), data=DataSource("file:///x"), **settings)
        assigned = TaskAssigned(
            f"{job}-export", job, spec.tenant, "export", 1, lease, spec, inputs=inputs, memory=memory
        )
        subject = subjects.work("export", NODE, assigned.task)
        id = f"{assigned.task}.{lease}"
        await self.bus.publish(subject, assigned, type="llmos.task.assigned.v1", id=id)
        return assigned

    async def stop(self, assigned: TaskAssigned, lease: int = 1) -> None:
        request = TaskStopRequested(assigned.task, lease)
        await self.bus.publish(subjects.control_stop(assigned.task), request, type="llmos.task.stop-requested.v1")

    async def facts(self, job: str, until: Callable[[Struct], bool]) -> list[Struct]:
        """Everything that was said of a job, up to the first fact for which `until` holds."""
        found: list[Struct] = []
        async with asyncio.timeout(60):
            async for heard in self.bus.follow("EVENTS"):
                event = heard.event()
                if event is None or job_of(event) != job:
                    continue
                found.append(event)
                if until(event):
                    return found
        raise AssertionError("never")

    async def end(self, job: str) -> list[Struct]:
        return await self.facts(job, lambda fact: isinstance(fact, FINAL))

    async def record(self, model: str) -> ModelRecord | None:
        entry = await self.bus.bucket("models").get(model, ModelRecord)
        return entry.value if entry else None

    def rooms(self) -> list[Path]:
        return list((self.data / "work").glob("*/*"))


def job_of(fact: Any) -> str:
    return str(fact.version.job if isinstance(fact, ModelExported) else getattr(fact, "job", ""))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stack(
    tmp_path_factory: pytest.TempPathFactory, models: Callable[[str], Path], dataset: Path
) -> AsyncIterator[Stack]:
    root = tmp_path_factory.mktemp("stack")
    server = await NatsServer(root / "nats").start()
    config = ExporterConfig(nats_url=server.url, node=NODE, data_dir=root / "data")
    left_over = root / "data" / "work" / f"exporter-{NODE}" / "old.1"
    left_over.mkdir(parents=True)
    async with running("exporter", config, serve) as ctx:
        bus = await Bus.connect(server.url, source="test/node")
        stack = Stack(
            bus,
            ctx.store,
            {
                "model": await put_tree(ctx.store, models("bert"), kind="model"),
                "dataset": await put_tree(ctx.store, dataset, kind="dataset"),
                "base": "sha256:" + "0" * 64,
            },
            root / "data",
        )
        vault = asyncio.create_task(bus.serve("vault", {"sign": stack.on_sign, "key": stack.on_key}))
        async with asyncio.timeout(60):
            while await bus.bucket("nodes").get(f"{NODE}.exporter", Heartbeat) is None:
                await asyncio.sleep(0.1)
        assert not left_over.exists()
        yield stack
        await cancel(vault)
        await bus.close()
    await server.stop()


async def test_an_assignment_becomes_a_signed_version_whose_artifact_serves(stack: Stack, tmp_path: Path) -> None:
    await stack.assign(
        "good",
        gate={"accuracy": Bound(min=0.0), "max_abs_diff": Bound(max=1e-3)},
        deploy=DeploySettings("tickets"),
    )
    facts = await stack.end("good")
    started, exported, succeeded = facts[0], facts[-2], facts[-1]
    assert started == TaskStarted("good-export", "good", "acme", "export", 1, NODE)
    assert isinstance(exported, ModelExported) and isinstance(succeeded, TaskSucceeded)
    assert facts[1:-2] and all(isinstance(fact, TaskProgressed) and fact.lease == 1 for fact in facts[1:-2])
    fractions = [fact.fraction for fact in facts if isinstance(fact, TaskProgressed)]
    assert fractions == sorted(fractions)

    version = exported.version
    record = await stack.record("tickets")
    assert record is not None and record.versions == [version] and record.tenant == "acme"
    assert (version.model, version.version, version.job, version.base) == ("tickets", 1, "good", "hf:a/b@c")
    assert (version.labels, version.precision) == (["blue", "green", "red"], "fp32")
    assert set(version.source) == {"accuracy", "f1", "loss"}
    assert set(version.metrics) == {"accuracy", "f1", "loss", "latency_ms_p50", "size_bytes"}
    assert version.parity["max_abs_diff"] < 1e-4 and version.parity["agreement"] == 1.0
    assert version.trained == stack.inputs["model"] and version.size > 0 < version.source_size
    verify(Statement("acme", "tickets", 1, version.artifact), version.signature, {"vault": KEY.public})

    assert succeeded.outputs == {"model": version.artifact}
    assert succeeded.metrics == version.metrics | version.parity
    manifest = await get_tree(stack.store, version.artifact, tmp_path / "artifact")
    assert manifest.kind == "onnx" and not manifest.sealed_by
    assert {entry.path for entry in manifest.files} == {"model.onnx", "tokenizer.json", "llmos.json"}
    contract = msgspec.json.decode((tmp_path / "artifact" / "llmos.json").read_bytes(), type=ServingContract)
    assert contract.max_length == 32 and contract.source == stack.inputs["model"]
    assert not stack.rooms()


async def test_a_job_that_trains_nothing_exports_its_base_in_the_precision_that_measures_best(
    stack: Stack, decoders: Callable[[str], Path], rows_in: Any
) -> None:
    texts = rows_in([{"text": f"w5 w{at} w9 w{at + 1} w30"} for at in range(5, 15)])
    inputs = {
        "base": await put_tree(stack.store, decoders("llama"), kind="base"),
        "dataset": await put_tree(stack.store, texts, kind="dataset"),
    }
    await stack.assign(
        "writer", inputs=inputs, task="text-generation", train=TrainSettings(method="none"),
        export=ExportSettings(precision="auto", target="edge"), gate={"perplexity": Bound(max=1e6)},
    )  # fmt: skip
    said = await stack.end("writer")
    exported = next(fact for fact in said if isinstance(fact, ModelExported)).version
    assert [one.precision for one in exported.candidates] == ["fp32", "int8", "int4"]
    assert [one.precision for one in exported.candidates if one.chosen] == [exported.precision]
    assert (exported.trained, exported.target, exported.task) == (inputs["base"], "edge", "text-generation")


async def test_equal_input_gives_an_equal_address_for_another_job(stack: Stack) -> None:
    addresses = set()
    for job in ("twin-a", "twin-b"):
        await stack.assign(job, export=ExportSettings("int8"))
        succeeded = (await stack.end(job))[-1]
        assert isinstance(succeeded, TaskSucceeded)
        addresses.add(succeeded.outputs["model"])
    assert len(addresses) == 1


async def test_what_does_not_pass_its_gate_is_refused_with_every_reason_and_number(stack: Stack) -> None:
    await stack.assign("weak", gate={"accuracy": Bound(min=1.0), "bleu": Bound(min=0.1), "loss": Bound(max=99)})
    facts = await stack.end("weak")
    refused, ended = facts[-2], facts[-1]
    assert isinstance(refused, ModelRefused) and isinstance(ended, TaskRefused)
    assert ended.reasons == refused.reasons and len(ended.reasons) == 2
    assert ended.reasons[0].startswith("accuracy is 0.") and "bleu was not measured" in ended.reasons[1]
    assert ended.metrics == refused.metrics | refused.parity and ended.metrics["accuracy"] < 1.0
    assert set(refused.source) == {"accuracy", "f1", "loss"} and ended.lease == 1
    assert await stack.record("weak") is None


async def test_another_lease_of_a_job_that_is_registered_says_so_without_a_second_version(stack: Stack) -> None:
    await stack.assign("again")
    first = await stack.end("again")
    await stack.assign("again", lease=2)
    second = await stack.facts("again", lambda fact: isinstance(fact, TaskSucceeded) and fact.lease == 2)
    assert isinstance(first[-1], TaskSucceeded) and isinstance(second[-1], TaskSucceeded)
    assert second[-1].outputs == first[-1].outputs and second[-1].metrics == first[-1].metrics
    assert sum(isinstance(fact, ModelExported) for fact in second) == 1
    record = await stack.record("again")
    assert record is not None and len(record.versions) == 1


async def test_a_stop_of_this_lease_ends_the_child_and_cancels(stack: Stack) -> None:
    assigned = await stack.assign("unwanted")
    await stack.facts("unwanted", lambda fact: isinstance(fact, TaskProgressed))
    await stack.stop(assigned, lease=7)  # somebody else's
    await stack.stop(assigned)
    assert (await stack.end("unwanted"))[-1] == TaskCancelled("unwanted-export", "unwanted", "acme", "export", 1, NODE)
    assert await stack.record("unwanted") is None and not stack.rooms()


async def test_a_stop_that_comes_before_its_task_is_heeded_and_one_of_another_lease_is_not(stack: Stack) -> None:
    early = TaskAssigned(
        "early-export", "early", "acme", "export", 1, 1, JobSpec("early", ModelSource(""), DataSource(""))
    )
    await stack.stop(early, lease=1)
    await asyncio.sleep(0.2)
    await stack.assign("early", lease=1)
    assert isinstance((await stack.end("early"))[-1], TaskCancelled)
    await stack.assign("early", lease=2)
    await stack.facts("early", lambda fact: isinstance(fact, TaskSucceeded) and fact.lease == 2)


async def test_while_the_vault_is_silent_nothing_is_registered_and_a_stop_is_not_lost(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmos_exporter import registry

    monkeypatch.setattr(registry, "CALL_TIMEOUT_S", 0.1)
    monkeypatch.setattr(registry, "SIGN_TRIES", 2)
    stack.vault_open.clear()
    try:
        await stack.assign("unsigned")
        failed = (await stack.end("unsigned"))[-1]
        assert isinstance(failed, TaskFailed) and failed.retryable and failed.problem.code == "busy"
        assert await stack.record("unsigned") is None
        monkeypatch.setattr(registry, "CALL_TIMEOUT_S", 1.0)
        assigned = await stack.assign("unsigned", lease=2)
        await stack.facts("unsigned", lambda fact: getattr(fact, "phase", "") == "registering" and fact.lease == 2)  # type: ignore[attr-defined]
        await stack.stop(assigned, lease=2)
        await stack.facts("unsigned", lambda fact: isinstance(fact, TaskCancelled) and fact.lease == 2)
    finally:
        stack.vault_open.set()
    await stack.assign("unsigned", lease=3)
    await stack.facts("unsigned", lambda fact: isinstance(fact, TaskSucceeded) and fact.lease == 3)


async def failure(stack: Stack, job: str, **changes: Any) -> TaskFailed:
    await stack.assign(job, **changes)
    failed = (await stack.end(job))[-1]
    assert isinstance(failed, TaskFailed) and not stack.rooms()
    return failed


async def test_what_no_attempt_can_mend_is_not_retryable(stack: Stack) -> None:
    nowhere = "sha256:" + "f" * 64
    missing = await failure(stack, "no-input", inputs={"dataset": stack.inputs["dataset"]})
    assert not missing.retryable and missing.problem.param == "inputs.model"
    swapped = await failure(stack, "swapped", inputs=stack.inputs | {"model": stack.inputs["dataset"]})
    assert not swapped.retryable and "kind 'dataset'" in swapped.problem.message
    absent = await failure(stack, "absent", inputs=stack.inputs | {"model": nowhere})
    assert not absent.retryable and absent.problem.code == "not_found"
    unknown = await failure(stack, "unknown-task", task="telepathy")
    assert not unknown.retryable and unknown.problem.param == "task"


async def test_a_model_name_of_another_tenant_fails_before_any_work(stack: Stack) -> None:
    await stack.bus.bucket("models").create("taken", ModelRecord("taken", "acme"))
    failed = await failure(stack, "thief", tenant="evil", deploy=DeploySettings("taken"))
    assert not failed.retryable and "'taken' belongs to another tenant" in failed.problem.message


async def test_an_export_that_needs_more_memory_than_leased_is_ended_and_says_so(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LOOK_EVERY_S", 0.01)  # a tiny model is done before the first look
    failed = await failure(stack, "hungry", memory=1 << 20)
    assert not failed.retryable
    assert failed.problem.code == "out_of_memory" and failed.problem.param == "resources.memory"
    assert "of 1 MiB" in failed.problem.message


async def test_an_export_that_takes_too_long_is_ended_and_may_be_tried_again(
    stack: Stack, models: Callable[[str], Path], dataset: Path, tmp_path: Path
) -> None:
    room = {"model": str(models("bert")), "dataset": str(dataset), "work": str(tmp_path / "w")}
    order = ExportOrder(
        task="text-classification", precision="fp32", result=str(tmp_path / "r"), max_length=32, threads=1, gate={},
        source="", base="", dataset_address="", **room,
    )  # fmt: skip
    template = Template(["llmos_exporter.orders"])  # imports what it needs after the fork: slow enough
    with pytest.raises(Busy, match=r"took longer than 0\.2 s"):
        await process.export(template, order, lambda _: None, memory=0, limit_s=0.2)
    await template.stop()


async def test_a_child_that_is_killed_fails_only_its_own_attempt(stack: Stack) -> None:
    await stack.assign("victim")
    await stack.facts("victim", lambda fact: isinstance(fact, TaskProgressed))
    os.kill((await children_of_the_template(os.getpid()))[0], signal.SIGKILL)
    failed = (await stack.end("victim"))[-1]
    assert isinstance(failed, TaskFailed) and failed.retryable and "SIGKILL" in failed.problem.message
    await stack.assign("victim", lease=2)
    await stack.facts("victim", lambda fact: isinstance(fact, TaskSucceeded) and fact.lease == 2)


async def test_a_private_jobs_artifacts_are_sealed_from_end_to_end(
    stack: Stack, tmp_path: Path, models: Callable[[str], Path], dataset: Path
) -> None:
    cipher = StreamingCipher("acme/1", DATA_KEY)
    inputs = {
        "model": await put_tree(stack.store, models("bert"), kind="model", cipher=cipher),
        "dataset": await put_tree(stack.store, dataset, kind="dataset", cipher=cipher),
    }
    await stack.assign("secret", inputs=inputs, private=True)
    succeeded = (await stack.end("secret"))[-1]
    assert isinstance(succeeded, TaskSucceeded)
    address = succeeded.outputs["model"]
    assert (await get_manifest(stack.store, address)).sealed_by == "acme/1"
    await get_tree(stack.store, address, tmp_path / "artifact", cipher=cipher)
    assert msgspec.json.decode((tmp_path / "artifact" / "llmos.json").read_bytes(), type=ServingContract).labels
    record = await stack.record("secret")
    assert record is not None and record.versions[0].private
    assert not stack.rooms()


async def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in path.read_text().split()]
    return found


async def children_of_the_template(pid: int) -> list[int]:
    """The exports that run below a service; waits for one."""
    async with asyncio.timeout(30):
        while True:
            for child in await children_of(pid):
                with suppress(OSError):
                    if b"llmos.forking" in Path(f"/proc/{child}/cmdline").read_bytes() and (
                        exports := await children_of(child)
                    ):
                        return exports
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_after_kill_9_nothing_is_left_running_and_the_redelivery_registers_once(
    tmp_path: Path, models: Callable[[str], Path], dataset: Path
) -> None:
    server = await NatsServer(tmp_path / "nats").start()
    bus = await Bus.connect(server.url, source="test/node")
    store = open_store((tmp_path / "data" / "artifacts").as_uri())
    inputs = {
        "model": await put_tree(store, models("distilbert"), kind="model"),
        "dataset": await put_tree(store, dataset, kind="dataset"),
    }
    stack = Stack(bus, store, inputs, tmp_path / "data")
    vault = asyncio.create_task(bus.serve("vault", {"sign": stack.on_sign}))
    environment = {
        "LLMOS_NATS_URL": server.url, "LLMOS_NODE": NODE, "LLMOS_DATA_DIR": str(tmp_path / "data"),
    }  # fmt: skip

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llmos_exporter", env={**os.environ, **environment}
        )

    service = await start()
    try:
        await stack.assign("lucky")
        exports = await children_of_the_template(service.pid)
        processes = [service.pid, *await children_of(service.pid), *exports]
        service.kill()
        await service.wait()
        async with asyncio.timeout(5):
            while any(alive(pid) for pid in processes):
                await asyncio.sleep(0.02)
        assert stack.rooms()  # what it had in hand lies there until the next start
        service = await start()
        facts = await stack.end("lucky")
        assert isinstance(facts[-1], TaskSucceeded)
        assert sum(isinstance(fact, TaskStarted) for fact in facts) == 2
        record = await stack.record("lucky")
        assert record is not None and [version.version for version in record.versions] == [1]
        service.terminate()
        assert await service.wait() == 0
        assert not stack.rooms()
    finally:
        if service.returncode is None:
            service.kill()
            await service.wait()
        await cancel(vault)
        await bus.close()
        await server.stop()
