"""Models that write on: a graph of GroupQueryAttention, by ONNX Runtime GenAI's builder or by our own trace.

A row is the tokens of a text, and an answer the logits with which each next token is foretold, `[tokens - 1, vocab]`.
The artifact answers as it will serve: a first piece alone, then token by token in company.
"""

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from msgspec.structs import replace

from llmos.contracts.models import Cache, Generation
from llmos.errors import Rejected
from llmos_exporter import attention, graphs
from llmos_exporter.graphs import Interface, Module
from llmos_exporter.measuring import same_label
from llmos_exporter.orders import ExportOrder
from llmos_exporter.quality import NextTokens
from llmos_exporter.sources import (
    Files,
    Numbers,
    by_size,
    evenly,
    first_line,
    in_company,
    load_model,
    read_lines,
    session,
)
from llmos_exporter.texts import TOKENIZER, positions, read_tokenizer

GRAPH = "model.onnx"
MEASURED_TOKENS = 128  # of a row; a longer text is cut
AT_ONCE = 8  # rows: their logits are large
WRITTEN = 16  # tokens, when greedy texts are compared and latency is measured
FAR = 1024  # tokens of the longest probe, which is read at once but for two
TIE = 1e-3  # two logits nearer than this may change places

# What the builder knows and was seen to be right about. Others, and those that it fails on, are traced.
BUILT = frozenset({
    "Ernie4_5ForCausalLM", "GemmaForCausalLM", "GraniteForCausalLM", "LlamaForCausalLM",
    "MistralForCausalLM", "NemotronForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM",
    "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
})  # fmt: skip


class Written(NamedTuple):
    """A text's tokens; `first` of them are read at once."""

    ids: list[int]
    first: int = 1


class Decoder:
    """A model that writes on, as a `Source`."""

    decoder = True
    labels: list[str] = []

    def __init__(self, order: ExportOrder) -> None:
        from transformers import AutoModelForCausalLM

        self.folder = Path(order.model)
        self._dataset = Path(order.dataset)
        self.model = load_model(self.folder, AutoModelForCausalLM)
        self.config = self.model.config
        limit = positions(self.config) or 2048
        self.max_length = min(order.max_length or limit, limit)
        self.tokenizer = read_tokenizer(self.folder)
        self.tokenizer.enable_truncation(min(self.max_length, MEASURED_TOKENS))
        self.layers = int(self.config.num_hidden_layers)
        attending = int(self.config.num_attention_heads)
        self.heads = int(getattr(self.config, "num_key_value_heads", None) or attending)
        self.size = int(getattr(self.config, "head_dim", None) or self.config.hidden_size // attending)
        self.cache = Cache(self.layers, self.heads, self.size)

    @property
    def interface(self) -> Interface:
        names = self.cache
        past = [name % layer for layer in range(self.layers) for name in (names.past_key, names.past_value)]
        present = [name % layer for layer in range(self.layers) for name in (names.present_key, names.present_value)]
        return Interface(
            takes={"input_ids": ("batch", "length"), "attention_mask": ("batch", "total")}
            | dict.fromkeys(past, ("batch", 0, "past", 0)),
            gives={"logits": ("batch", 0, 0)} | dict.fromkeys(present, ("batch", 0, "total", 0)),
        )

    def rows(self, split: str) -> list[Any]:
        def make(line: dict[str, Any], place: str) -> Written | None:
            ids = self.tokenizer.encode(line["text"]).ids
            return Written(ids) if len(ids) > 1 else None  # one token foretells nothing

        return read_lines(self._dataset, split, make)

    def batches(self, rows: Sequence[Written]) -> Iterator[list[int]]:
        return by_size([len(row.ids) for row in rows], most=AT_ONCE)

    def probes(self, rows: Sequence[Written]) -> list[list[Any]]:
        some = [row._replace(first=max(1, len(row.ids) // 2)) for row in evenly(rows, lambda row: len(row.ids), 12)]
        long = (some[-1].ids * -(-self._far // len(some[-1].ids)))[: self._far]
        return in_company(some, fixed=([Written(long, len(long) - 2)],))

    @property
    def _far(self) -> int:
        """As many tokens as tell whether far positions are right: 1024, and more than attention's window."""
        window = getattr(self.config, "sliding_window", None) or 0
        return min(self.max_length, max(FAR, window + FAR // 8 if window < self.max_length else 0))

    def trained(self, rows: Sequence[Written]) -> list[Numbers]:
        ids = np.zeros((len(rows), max(len(row.ids) for row in rows)), np.int64)
        mask = np.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row.ids)] = row.ids
            mask[at, : len(row.ids)] = 1
        with torch.inference_mode():
            given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            begins = min(row.first for row in rows) - 1
            logits = self.model(**given, logits_to_keep=ids.shape[1] - begins).logits.float().numpy()
        return [logits[at, row.first - 1 - begins : len(row.ids) - 1 - begins] for at, row in enumerate(rows)]

    def exported(self, files: Files, threads: int) -> Callable[[Sequence[Any]], list[Numbers]]:
        return Writer(session(files["model"], threads), self.cache)

    def routes(self) -> Mapping[str, Callable[[Path], Files]]:
        traced = {"tracing": self._trace}
        return {"builder": self._build} | traced if self.config.architectures[0] in BUILT else traced

    def _build(self, folder: Path) -> Files:
        from onnxruntime_genai.models import builder

        raw = folder / "raw"
        how = ("", str(self.folder), str(raw), "fp32", "cpu", str(folder / "cache"))
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                options = builder.parse_extra_options(*how, ["prune_lm_head=true"])
                builder.create_model(*how, **options)
            graph = onnx.load(raw / "model.onnx")
        except Exception as error:  # it raises anything for what it does not know; tracing is next
            raise Rejected(f"{type(error).__name__}: {first_line(error)}") from error
        graphs.check_interface(graph, self.interface)
        return {"model": graphs.save(graph, folder / GRAPH, self.interface)}

    def _trace(self, folder: Path) -> Files:
        attention.register()
        past = np.zeros((2, self.heads, 3, self.size), np.float32)
        interface = self.interface
        sample = dict.fromkeys(interface.takes, past)
        sample |= {"input_ids": np.full((2, 2), 3, np.int64), "attention_mask": np.ones((2, 5), np.int64)}
        was = self.config._attn_implementation
        self.model.set_attn_implementation(attention.NAME)
        try:
            if self.config._attn_implementation != attention.NAME:
                raise Rejected(f"a {self.config.model_type} model's attention can't be exchanged")
            names = self.cache.past_key, self.cache.past_value
            module = Module(
                self.model,
                lambda **given: tuple(attention.logits_and_cache(self.model, *names, given)),
                interface,
                custom=True,
            )
            return {"model": graphs.export(graphs.by_tracing, module, sample, interface, folder / GRAPH)}
        finally:
            self.model.set_attn_implementation(was)

    def quality(self, exported: Any = None) -> NextTokens:
        return NextTokens()

    def agreement(self, wanted: Numbers, got: Numbers) -> float:
        return same_label(wanted, got)

    def beyond(self, exported: Any, rows: Sequence[Written]) -> dict[str, float]:
        """`greedy`: the share of texts that both continue alike, those aside that only a tie tells apart."""
        prompts = [row.ids[: max(1, len(row.ids) // 2)] for row in evenly(rows, lambda row: len(row.ids), AT_ONCE)]
        texts = exported.write(prompts, WRITTEN)
        return {"greedy": float(np.mean([self._writes(*pair) for pair in zip(prompts, texts, strict=True)]))}

    def _writes(self, prompt: list[int], text: list[int]) -> bool:
        """Whether the model itself continues so."""
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1].float()
        for token, scores in zip(text, logits, strict=True):
            if int(scores.argmax()) != token:
                return bool(scores.max() - scores[token] < TIE)
        return True

    def answer(self, exported: Any, row: Written) -> None:
        exported.write([row.ids], WRITTEN)

    def contract(self, precision: str) -> dict[str, Any]:
        pad = self.config.pad_token_id
        generation = generation_of(self.model)
        pad = pad if pad is not None else next(iter(generation.eos_token_ids), 0)
        return {
            "max_length": self.max_length,
            "pad_token_id": pad,
            "pad_token": self.tokenizer.id_to_token(pad) or "",
            "input_names": ["input_ids", "attention_mask"],
            "architecture": self.config.model_type,
            "vocab_size": int(self.model.get_output_embeddings().weight.shape[0]),
            "generation": generation,
            "cache": replace(self.cache, dtype="float16" if precision == "fp16" else "float32"),
        } | chat(self.folder)

    def save(self, folder: Path) -> None:
        read_tokenizer(self.folder).save(str(folder / TOKENIZER))


class Writer:
    """The graph as a slot engine runs it, only plainer: a prompt alone, then tokens in company."""

    def __init__(self, graph: Any, cache: Cache) -> None:
        self._graph = graph
        self._names = [
            (past % layer, present % layer)
            for layer in range(cache.layers)
            for past, present in ((cache.past_key, cache.present_key), (cache.past_value, cache.present_value))
        ]
        self._shape = (cache.heads, cache.size)
        self._half = any(value.type == "tensor(float16)" for value in graph.get_inputs())

    def __call__(self, rows: Sequence[Written]) -> list[Numbers]:
        """The logits that foretell each token behind the first piece."""
        foretold: list[list[Numbers]] = [[] for _ in rows]

        def follow(at: int, logits: Numbers) -> int | None:
            row = rows[at]
            foretold[at].append(logits)
            known = row.first + len(foretold[at])
            return row.ids[known - 1] if known < len(row.ids) else None

        self._run([row.ids[: row.first] for row in rows], follow, max(len(row.ids) for row in rows))
        return [np.stack(found) for found in foretold]

    def write(self, prompts: Sequence[list[int]], count: int) -> list[list[int]]:
        """`count` tokens behind each prompt, the likeliest each time."""
        texts: list[list[int]] = [[] for _ in prompts]

        def follow(at: int, logits: Numbers) -> int | None:
            texts[at].append(int(logits.argmax()))
            return texts[at][-1] if len(texts[at]) < count else None

        self._run(prompts, follow, max(map(len, prompts)) + count)
        return texts

    def _run(self, prompts: Sequence[list[int]], follow: Callable[[int, Numbers], int | None], room: int) -> None:
        """Ask `follow` for every row's next token by its logits, until it gives none."""
        kind = np.float16 if self._half else np.float32
        heads, size = self._shape
        caches = [np.zeros((len(prompts), heads, room, size), kind) for _ in self._names]
        lengths = np.array([len(prompt) for prompt in prompts])
        tokens = np.zeros(len(prompts), np.int64)
        active = []
        for at, prompt in enumerate(prompts):
            empty = [np.zeros((1, heads, 0, size), kind) for _ in self._names]
            logits, made = self._step(np.array([prompt], np.int64), np.array([len(prompt)]), empty)
            for cache, new in zip(caches, made, strict=True):
                cache[at, :, : len(prompt)] = new[0]
            if (token := follow(at, logits[0])) is not None:
                tokens[at] = token
                active.append(at)
        while active:
            lengths[active] += 1
            logits, made = self._step(tokens[active, None], lengths[active], [cache[active] for cache in caches])
            going = []
            for place, at in enumerate(active):
                for cache, new in zip(caches, made, strict=True):
                    cache[at] = new[place]
                if (token := follow(at, logits[place])) is not None:
                    tokens[at] = token
                    going.append(at)
            active = going

    def _step(self, tokens: Any, lengths: Any, caches: list[Any]) -> tuple[Numbers, list[Any]]:
        mask = (np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64)
        past = {name: cache for (name, _), cache in zip(self._names, caches, strict=True)}
        logits, *made = self._graph.run(
            ["logits", *(name for _, name in self._names)], {"input_ids": tokens, "attention_mask": mask, **past}
        )
        return logits[:, -1].astype(np.float32), made


def generation_of(model: Any) -> Generation:
    """How the model's own settings would have it write."""
    settings = model.generation_config
    ends = settings.eos_token_id if settings.eos_token_id is not None else model.config.eos_token_id
    sampled = bool(settings.do_sample)
    given = {
        "eos_token_ids": ends if isinstance(ends, list) else [ends] if ends is not None else [],
        "bos_token_id": settings.bos_token_id,
        "max_tokens": settings.max_new_tokens or None,
        "temperature": (1.0 if settings.temperature is None else float(settings.temperature)) if sampled else None,
        "top_p": float(settings.top_p or 1.0) if sampled else None,
        "top_k": (50 if settings.top_k is None else int(settings.top_k)) if sampled else None,
        "repetition_penalty": settings.repetition_penalty,
        "suppress": settings.suppress_tokens,
        "suppress_first": settings.begin_suppress_tokens,
    }
    return Generation(**{name: value for name, value in given.items() if value is not None})


def chat(folder: Path) -> dict[str, Any]:
    """The chat template and the special tokens that it may name, if the model has one."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_bytes()) if path.exists() else {}
    template = settings.get("chat_template") or ""
    if isinstance(template, list):  # several, by name
        named = {one["name"]: one["template"] for one in template}
        template = named.get("default") or next(iter(named.values()), "")
    alone = folder / "chat_template.jinja"
    tokens = {
        name: value["content"] if isinstance(value, dict) else value
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if (value := settings.get(name))
    }
    return {
        "chat_template": alone.read_text(encoding="utf-8") if alone.exists() else template,
        "special_tokens": tokens,
    }
