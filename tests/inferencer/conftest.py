"""Real parts for the inferencer's tests: small ONNX classifiers with a tokenizer trained here, a store, a signing
key, a scheduler's voice.

A classifier adds up a score per word and label, so every answer can be foretold. `poison` is a word whose id lies
outside the table (onnxruntime refuses the whole batch), `nan` one whose scores are not numbers.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from llmos import service
from llmos.artifacts import ArtifactStore, open_store, put_tree
from llmos.bus import Bus
from llmos.contracts import subjects
from llmos.contracts.deployments import ReplicaAssigned, ReplicaFailed, ReplicaReady, ReplicaUnloaded
from llmos.contracts.envelope import Envelope
from llmos.contracts.inference import InferenceAnswered, InferenceRequested, Input
from llmos.contracts.keys import KeyAnswered, KeyRequested, TrustAnswered, TrustRequested
from llmos.contracts.models import ModelVersion, ServingContract, Statement
from llmos.ids import new_id
from llmos.keyring import release_context
from llmos.sealing import StreamingCipher, new_streaming_keyset, seal_to
from llmos.service import Context
from llmos.signing import SigningKey, encode_trusted, write_trusted
from llmos_inferencer.config import InferencerConfig
from llmos_inferencer.service import serve

NODE = "edge-1"
WORDS = "the service was good bad fine awful great slow nan"
SCORES = {"good": 2.0, "great": 3.0, "fine": 1.0, "bad": -2.0, "awful": -3.0, "slow": -1.0, "nan": float("nan")}
MAX_LENGTH = 16


def make_artifact(
    root: Path, *, labels: tuple[str, str] = ("down", "up"), megabytes: float = 0.0, rounds: int = 0
) -> Path:
    """Write `model.onnx`, `tokenizer.json` and `llmos.json`. `rounds` of a matrix product make every run slow."""
    root.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([WORDS], trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]", "[CLS]"]))
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    rows = tokenizer.get_vocab_size()
    tokenizer.add_tokens(["poison"])
    rows = max(rows, int(megabytes * 2**20 / 8)) if megabytes else rows
    if megabytes:
        raw = msgspec.json.decode(tokenizer.to_str())
        raw["added_tokens"][-1]["id"] = rows
        tokenizer = Tokenizer.from_str(msgspec.json.encode(raw).decode())
    tokenizer.save(str(root / "tokenizer.json"))
    table = np.zeros((rows, 2), np.float32)
    for word, score in SCORES.items():
        table[tokenizer.token_to_id(word)] = (-score, score)
    onnx.save(_graph(table, rounds), root / "model.onnx")
    contract = ServingContract(
        task="text-classification",
        labels=list(labels),
        max_length=MAX_LENGTH,
        pad_token_id=0,
        pad_token="[PAD]",
        input_names=["input_ids", "attention_mask"],
    )
    (root / "llmos.json").write_bytes(msgspec.json.encode(contract))
    return root


def _graph(table: np.ndarray[Any, Any], rounds: int) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "s"]) for n in ("input_ids", "attention_mask")]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["scores"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["scores", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["logits" if not rounds else "sums"], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([-1]), "last"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    if rounds:
        size = 512
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["go"], ["go_on"]),
                helper.make_node("MatMul", ["state", "square"], ["state_out"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("state", TensorProto.FLOAT, [size, size]),
            ],
            [
                helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [size, size]),
            ],
        )
        nodes += [
            helper.make_node("Loop", ["rounds", "true", "square"], ["busy"], body=body),
            helper.make_node("ReduceSum", ["busy"], ["total"], keepdims=0),
            helper.make_node("Mul", ["total", "zero"], ["nothing"]),
            helper.make_node("Add", ["sums", "nothing"], ["logits"]),
        ]
        constants += [
            numpy_helper.from_array(np.eye(size, dtype=np.float32), "square"),
            numpy_helper.from_array(np.array(rounds), "rounds"),
            numpy_helper.from_array(np.array(True), "true"),
            numpy_helper.from_array(np.array(0, np.float32), "zero"),
        ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2])
    graph = helper.make_graph(nodes, "words", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model


class Stand:
    """The rest of the stack, as far as an inferencer sees it: the exporter's artifacts, the vault's key, the
    scheduler's orders.
    """

    def __init__(self, folder: Path, nats_url: str, bus: Bus) -> None:
        self.folder = folder
        self.bus = bus
        self.store: ArtifactStore = open_store((folder / "artifacts").as_uri())
        self.key = SigningKey("vault-1", SigningKey.new_secret())
        write_trusted(folder / "trusted_keys.json", {"vault-1": self.key.public})
        self.config = InferencerConfig(
            nats_url=nats_url,
            node=NODE,
            data_dir=folder / "data",
            artifacts=(folder / "artifacts").as_uri(),
            trusted_keys=str(folder / "trusted_keys.json"),
            serve_threads=1,
            memory="1GiB",
        )
        self.keyset = new_streaming_keyset()
        self.keys_asked: list[KeyRequested] = []
        self.events: list[Any] = []
        self._heard = asyncio.Event()
        self._listening = asyncio.create_task(self._listen())
        self._generations: dict[str, int] = {}

    def running(self, **changes: Any) -> AbstractAsyncContextManager[Context[InferencerConfig]]:
        """An inferencer in this event loop."""
        return service.running("inferencer", msgspec.structs.replace(self.config, **changes), serve)

    async def register(
        self, version: int = 1, *, model: str = "mood", private: bool = False, **options: Any
    ) -> ModelVersion:
        """Export and sign a version; its labels name it, so that an answer shows which version gave it."""
        root = self.folder / "exported" / f"{model}-{version}"
        options = {"labels": (f"down-{version}", f"up-{version}")} | options
        await asyncio.to_thread(make_artifact, root, **options)
        cipher = StreamingCipher("default/1", self.keyset) if private else None
        return self.sign(model, version, await put_tree(self.store, root, kind="onnx", cipher=cipher))

    def sign(self, model: str, version: int, artifact: str, key: SigningKey | None = None) -> ModelVersion:
        signature = (key or self.key).sign(Statement("default", model, version, artifact))
        return ModelVersion(
            model, version, "default", "text-classification", artifact, "job-1", time.time(), signature=signature
        )

    async def deploy(
        self, version: ModelVersion | None, *, name: str = "mood", id: str = "", traceparent: str = "", **options: Any
    ) -> ReplicaAssigned:
        """Assign a version to the node (`None`: take the deployment down)."""
        generation = self._generations[name] = self._generations.get(name, 0) + 1
        assigned = ReplicaAssigned(
            deployment=name,
            node=NODE,
            generation=generation,
            desired="absent" if version is None else "present",
            version=version,
            job="job-1",
            **options,
        )
        await self.bus.publish(
            subjects.deploy(NODE, name), assigned, type="llmos.replica.assigned.v1", id=id, traceparent=traceparent
        )
        return assigned

    async def ask(
        self,
        *texts: str | Input,
        name: str = "mood",
        klass: str = "interactive",
        within: float = 20.0,
        top: int = 0,
        deadline: float | None = None,
    ) -> InferenceAnswered:
        """Ask as any client does."""
        id = new_id("r")
        return await self.bus.ask(
            subjects.infer(name, id, klass),
            InferenceRequested(self.bus.client, list(texts), top=top, deadline=deadline),
            type="llmos.inference.requested.v1",
            id=id,
            answer=InferenceAnswered,
            timeout=within,
        )

    async def until(self, kind: type[Any], within: float = 20.0, **fields: Any) -> Any:
        """The first event of `kind` whose fields are these, heard already or yet to come."""

        def found() -> Any:
            return next(
                (e for e in self.events if type(e) is kind and all(getattr(e, n) == v for n, v in fields.items())), None
            )

        async with asyncio.timeout(within):
            while (event := found()) is None:
                self._heard.clear()
                await self._heard.wait()
        return event

    async def ready(self, assigned: ReplicaAssigned) -> ReplicaReady:
        return await self.until(ReplicaReady, deployment=assigned.deployment, generation=assigned.generation)

    async def failed(self, assigned: ReplicaAssigned) -> ReplicaFailed:
        return await self.until(ReplicaFailed, deployment=assigned.deployment, generation=assigned.generation)

    async def unloaded(self, name: str = "mood", **fields: Any) -> ReplicaUnloaded:
        return await self.until(ReplicaUnloaded, deployment=name, **fields)

    async def vault(self) -> None:
        """Answer as the vault does, until cancelled."""

        async def trust(_: TrustRequested, __: Envelope) -> TrustAnswered:
            return encode_trusted({self.key.name: self.key.public})

        async def key(request: KeyRequested, _: Envelope) -> KeyAnswered:
            self.keys_asked.append(request)
            sealed = seal_to(base64.b64decode(request.recipient), self.keyset, release_context(request, 1))
            return KeyAnswered(request.tenant, 1, base64.b64encode(sealed).decode())

        await self.bus.serve("vault", {"trust": trust, "key": key})

    async def close(self) -> None:
        self._listening.cancel()

    async def _listen(self) -> None:
        async for heard in self.bus.follow("EVENTS"):
            self.events.append(heard.event())
            self._heard.set()


@pytest.fixture
def make_stand(tmp_path: Path) -> Callable[[str, Bus], Stand]:
    """A stand for an inferencer on one server, with a voice on another."""
    return lambda nats_url, bus: Stand(tmp_path, nats_url, bus)


@pytest.fixture
async def stand(tmp_path: Path, nats_url: str, bus: Bus) -> AsyncIterator[Stand]:
    stand = Stand(tmp_path, nats_url, bus)
    yield stand
    await stand.close()


@pytest.fixture
def artifact(tmp_path: Path) -> Callable[..., Path]:
    """Make an artifact directory: `artifact("name", labels=…)`."""
    return lambda name="artifact", **options: make_artifact(tmp_path / name, **options)
