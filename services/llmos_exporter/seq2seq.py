"""Models that read, then write: translation, summarisation, and speech by Whisper. Two graphs.

The encoder's graph gives every decoder layer's keys and values of the source; the decoder's takes them, a cache that
grows, and the newest tokens. A row carries what the trained model writes for it, and an answer the logits of each of
those tokens: the artifact writes the same exactly if each time the same one is the likeliest.
"""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from msgspec.structs import replace

from llmos.contracts.models import AudioInput, Cache
from llmos.media import samples
from llmos_exporter import graphs
from llmos_exporter.decoders import generation_of
from llmos_exporter.graphs import Feeds, Interface, Module
from llmos_exporter.measuring import same_label
from llmos_exporter.orders import ExportOrder
from llmos_exporter.quality import Texts
from llmos_exporter.single import eager
from llmos_exporter.sources import Files, Numbers, Quality, by_size, evenly, in_company, load_model, read_lines, session
from llmos_exporter.texts import TOKENIZER, positions, read_tokenizer
from llmos_exporter.writing import Writer, add

LONGEST = 128  # tokens that are written when an artifact is measured
AT_ONCE = 8
NEVER = -1e9  # the logit of what is never chosen
LOWEST = torch.finfo(torch.float32).min


class Pair(NamedTuple):
    """A row: a source as it came, what the encoder reads of it, what the model writes for it, and what is right."""

    given: Any
    source: Any
    written: list[int]
    truth: str


class Seq2Seq:
    """An encoder-decoder as a `Source`."""

    decoder = False
    labels: list[str] = []

    def __init__(self, order: ExportOrder) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

        self.folder = Path(order.model)
        self._dataset = Path(order.dataset)
        self._task = order.task
        self._heard = order.task == "speech-recognition"
        self.model = load_model(self.folder, AutoModelForSpeechSeq2Seq if self._heard else AutoModelForSeq2SeqLM)
        self.config = self.model.config
        self.pad = int(self.config.pad_token_id or 0)
        limit = positions(self.config) or 512
        if self._heard:  # what is written, for the source has always one length
            limit = int(self.config.max_target_positions)
        self.max_length = min(order.max_length or limit, limit)
        self.tokenizer = read_tokenizer(self.folder)
        if not self._heard:
            self.tokenizer.enable_truncation(self.max_length)
        attention = self._cross()[0]
        self._shape = (
            (attention.n_heads, attention.key_value_proj_dim)
            if hasattr(attention, "n_heads")
            else (attention.num_heads, attention.head_dim)
        )
        self.generation = replace(generation_of(self.model), start=start_of(self.model))
        self.cache = Cache(
            len(self._cross()), *self._shape, kind="grown", cross_key="cross.%d.key", cross_value="cross.%d.value"
        )
        self.prefix = prefix_of(self.config, self._task)
        if self._heard:
            from transformers import WhisperFeatureExtractor

            from llmos_exporter.speech import LogMel

            self._extractor = WhisperFeatureExtractor.from_pretrained(self.folder, local_files_only=True)
            self._features = LogMel(self._extractor)
            seconds = float(self._extractor.n_samples / self._extractor.sampling_rate)
            self.audio = AudioInput(int(self._extractor.sampling_rate), seconds=seconds)

    # --- rows ---

    def rows(self, split: str) -> list[Any]:
        def make(line: dict[str, Any], place: str) -> Pair:
            if self._heard:
                given = base64.b64decode(line["audio"])
                return Pair(given, samples(given, self.audio), [], line["text"])
            text = self.prefix + line["source"]
            return Pair(text, self.tokenizer.encode(text).ids, [], line["target"])

        rows = read_lines(self._dataset, split, make)
        written: dict[int, list[int]] = {}
        for batch in self.batches(rows):
            texts = self._write([rows[at] for at in batch])
            written |= dict(zip(batch, texts, strict=True))
        return [row._replace(written=written[at]) for at, row in enumerate(rows)]

    def batches(self, rows: Sequence[Pair]) -> Iterator[list[int]]:
        return by_size([len(row.source) for row in rows], most=AT_ONCE, room=1 << 30)

    def probes(self, rows: Sequence[Pair]) -> list[list[Any]]:
        return in_company(evenly(rows, lambda row: len(row.source) + len(row.written), 12))

    def feeds(self, rows: Sequence[Pair]) -> Feeds:
        """What the encoder takes of rows."""
        if self._heard:
            return {"audio": np.stack([row.source for row in rows])}
        ids = np.full((len(rows), max(len(row.source) for row in rows)), self.pad, np.int64)
        mask = np.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row.source)] = row.source
            mask[at, : len(row.source)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    # --- the trained model ---

    @torch.inference_mode()
    def trained(self, rows: Sequence[Pair]) -> list[Numbers]:
        start = self.generation.start
        longest = max(len(row.written) for row in rows)
        tokens = np.full((len(rows), len(start) + longest - 1), self.pad, np.int64)
        for at, row in enumerate(rows):
            known = [*start, *row.written[:-1]]
            tokens[at, : len(known)] = known
        logits = self._logits(self._encoded(rows), torch.from_numpy(tokens)).numpy()[:, len(start) - 1 :]
        found = [logits[at, : len(row.written)].copy() for at, row in enumerate(rows)]
        return [self.never(steps) for steps in found]

    @torch.inference_mode()
    def _write(self, rows: Sequence[Pair]) -> list[list[int]]:
        """What the model writes, the likeliest token each time, until an end or 128 tokens."""
        encoded = self._encoded(rows)
        tokens = torch.tensor([self.generation.start] * len(rows))
        texts: list[list[int]] = [[] for _ in rows]
        for step in range(self.longest):
            newest = self.never(self._logits(encoded, tokens)[:, -1:].numpy().copy(), step)[:, 0].argmax(-1)
            tokens = torch.cat([tokens, torch.from_numpy(newest)[:, None]], dim=1)
            if not add(texts, newest, self.generation.eos_token_ids):
                break
        return texts

    def _encoded(self, rows: Sequence[Pair]) -> dict[str, Any]:
        """The encoder's output, with features by transformers' own extractor where sounds are heard."""
        if self._heard:
            audio = [row.source for row in rows]
            made = self._extractor(audio, sampling_rate=self.audio.rate, return_tensors="pt", padding="do_not_pad")
            return {"encoder_outputs": self.model.get_encoder()(made.input_features)}
        feeds = self.feeds(rows)
        ids, mask = (torch.from_numpy(feeds[name]) for name in ("input_ids", "attention_mask"))
        return {"encoder_outputs": self.model.get_encoder()(input_ids=ids, attention_mask=mask), "attention_mask": mask}

    def _logits(self, encoded: dict[str, Any], tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**encoded, decoder_input_ids=tokens, use_cache=False).logits
        return logits.float()

    def never(self, logits: Numbers, step: int | None = None) -> Numbers:
        """Logits `[…, steps, vocab]`, in place, those of suppressed tokens out of reach; `step` where there is one."""
        logits[..., self.generation.suppress] = NEVER
        if step in (None, 0):
            logits[..., 0, self.generation.suppress_first] = NEVER
        return logits

    @property
    def longest(self) -> int:
        """How many tokens are written at most, where a row does not say."""
        room = int(getattr(self.config, "max_target_positions", 0) or positions(self.config) or LONGEST + 8)
        return min(LONGEST, self.generation.max_tokens, room - len(self.generation.start))

    # --- the graphs ---

    def exported(self, files: Files, threads: int) -> Callable[[Sequence[Any]], list[Numbers]]:
        return Writer(self, session(files["encoder"], threads), session(files["decoder"], threads))

    def routes(self) -> Mapping[str, Callable[[Path], Files]]:
        def traced(folder: Path) -> Files:
            with eager(self.model):
                return {
                    "encoder": self._export(
                        self._encode, self._encoder_sample(), self.encoder_interface, folder, "encoder"
                    ),
                    "decoder": self._export(
                        self._decode, self._decoder_sample(), self.decoder_interface, folder, "decoder"
                    ),
                }

        return {"tracing": traced}

    def _export(
        self, function: Callable[..., Any], sample: Feeds, interface: Interface, folder: Path, name: str
    ) -> Path:
        module = Module(self.model, function, interface)
        return graphs.export(graphs.by_tracing, module, sample, interface, folder / f"{name}.onnx")

    def names(self, key: str, value: str) -> list[str]:
        """The names of every layer's keys and values."""
        return [name % layer for layer in range(self.cache.layers) for name in (key, value)]

    @property
    def encoder_interface(self) -> Interface:
        text: dict[str, tuple[str | int, ...]] = dict.fromkeys(("input_ids", "attention_mask"), ("batch", "source"))
        crossing = self.names(self.cache.cross_key, self.cache.cross_value)
        return Interface(
            takes={"audio": ("batch", 0)} if self._heard else text,
            gives=dict.fromkeys(crossing, ("batch", 0, 0 if self._heard else "source", 0)),
        )

    @property
    def decoder_interface(self) -> Interface:
        source = 0 if self._heard else "source"
        masks: dict[str, tuple[str | int, ...]] = {} if self._heard else {"encoder_attention_mask": ("batch", source)}
        past = dict.fromkeys(self.names(self.cache.past_key, self.cache.past_value), ("batch", 0, "past", 0))
        crossing = dict.fromkeys(self.names(self.cache.cross_key, self.cache.cross_value), ("batch", 0, source, 0))
        present = dict.fromkeys(self.names(self.cache.present_key, self.cache.present_value), ("batch", 0, "total", 0))
        return Interface(
            takes={"input_ids": ("batch", "length"), **masks, **past, **crossing},
            gives={"logits": ("batch", 0, 0), **present},
        )

    def _cross(self) -> list[Any]:
        """The decoder's attention over the source, by layer."""
        decoder = self.model.get_decoder()
        if hasattr(decoder, "block"):  # T5
            return [block.layer[1].EncDecAttention for block in decoder.block]
        return [layer.encoder_attn for layer in decoder.layers]

    def _encode(self, **given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        encoder = self.model.get_encoder()
        if self._heard:
            hidden = encoder(self._features(given["audio"]))[0]
        else:
            ids, mask = given["input_ids"], given["attention_mask"]
            hidden = encoder(input_ids=ids, attention_mask=_visible(mask, ids.shape[1]))[0]
        made = []
        for attention in self._cross():
            pair = (attention.k, attention.v) if hasattr(attention, "k") else (attention.k_proj, attention.v_proj)
            made += [project(hidden).view(hidden.shape[0], -1, *self._shape).transpose(1, 2) for project in pair]
        return tuple(made)

    def _decode(self, **given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        past = [given[name] for name in self.names(self.cache.past_key, self.cache.past_value)]
        crossing = [given[name] for name in self.names(self.cache.cross_key, self.cache.cross_value)]
        own, other = DynamicCache(), DynamicCache()
        for layer in range(self.cache.layers):
            own.update(past[2 * layer], past[2 * layer + 1], layer)
            other.update(crossing[2 * layer], crossing[2 * layer + 1], layer)
        caches = EncoderDecoderCache(own, other)
        caches.is_updated = dict.fromkeys(range(self.cache.layers), True)
        tokens, known = given["input_ids"], past[0].shape[2]
        batch, length = tokens.shape[0], tokens.shape[1]
        # Masks are made here: those that transformers makes keep the sample's lengths in a trace.
        at = torch.arange(length).unsqueeze(1) + known
        later = (torch.arange(known + length).unsqueeze(0) > at).float() * LOWEST
        masks = {"attention_mask": later[None, None].expand(batch, 1, -1, -1)}
        if not self._heard:
            masks["encoder_attention_mask"] = _visible(given["encoder_attention_mask"], length)
        unread = torch.zeros(batch, crossing[0].shape[2], self.config.d_model)
        found = self.model.get_decoder()(
            input_ids=tokens, encoder_hidden_states=unread, past_key_values=caches, use_cache=True, **masks
        )
        hidden = found[0][:, -1:]
        if getattr(self.config, "scale_decoder_outputs", False):
            hidden = hidden * self.config.d_model**-0.5
        logits = self.model.get_output_embeddings()(hidden)
        if (bias := getattr(self.model, "final_logits_bias", None)) is not None:
            logits = logits + bias
        present = found.past_key_values.self_attention_cache
        return (logits, *(part for layer in present.layers for part in (layer.keys, layer.values)))

    def _encoder_sample(self) -> Feeds:
        if self._heard:
            size = int(self.audio.seconds * self.audio.rate)
            return {"audio": np.random.default_rng(0).normal(0, 0.1, (2, size)).astype(np.float32)}
        ids = np.full((2, 5), min(3, self.config.vocab_size - 1), np.int64)
        mask = np.ones_like(ids)
        ids[1, 3:], mask[1, 3:] = self.pad, 0
        return {"input_ids": ids, "attention_mask": mask}

    def _decoder_sample(self) -> Feeds:
        encoder = self._encoder_sample()
        with torch.no_grad():
            crossing = self._encode(**{name: torch.from_numpy(array) for name, array in encoder.items()})
        heads, size = self._shape
        past = np.random.default_rng(0).normal(0, 0.1, (2, heads, 3, size)).astype(np.float32)
        names = self.names(self.cache.cross_key, self.cache.cross_value)
        return {
            "input_ids": np.full((2, 2), min(3, self.config.vocab_size - 1), np.int64),
            **({} if self._heard else {"encoder_attention_mask": encoder["attention_mask"]}),
            **dict.fromkeys(self.names(self.cache.past_key, self.cache.past_value), past),
            **{name: array.numpy() for name, array in zip(names, crossing, strict=True)},
        }

    # --- measuring ---

    def quality(self, exported: Any = None) -> Quality:
        def read(rows: Sequence[Pair], answers: Sequence[Numbers]) -> list[str]:
            """The texts of rows: what was written, unless the artifact would write something else."""
            other = [at for at, row in enumerate(rows) if answers[at].argmax(-1).tolist() != row.written]
            texts = [row.written for row in rows]
            if exported is not None and other:
                for at, text in zip(other, exported.write([rows[at] for at in other]), strict=True):
                    texts[at] = text
            return [str(self.tokenizer.decode(text, skip_special_tokens=True)) for text in texts]

        return Texts(self._task, read)

    def agreement(self, wanted: Numbers, got: Numbers) -> float:
        return same_label(wanted, got)

    def beyond(self, exported: Any, rows: Sequence[Pair]) -> dict[str, float]:
        return {}

    def answer(self, exported: Any, row: Pair) -> None:
        source = samples(row.given, self.audio) if self._heard else self.tokenizer.encode(row.given).ids
        exported.write([row._replace(source=source)])

    def contract(self, precision: str) -> dict[str, Any]:
        heard = {"audio": self.audio} if self._heard else {}
        return {
            "max_length": self.max_length,
            "pad_token_id": self.pad,
            "pad_token": self.tokenizer.id_to_token(self.pad) or "",
            "input_names": list(self.encoder_interface.takes),
            "architecture": self.config.model_type,
            "prefix": self.prefix,
            "vocab_size": int(self.model.get_output_embeddings().weight.shape[0]),
            "generation": self.generation,
            "cache": replace(self.cache, dtype="float16" if precision == "fp16" else "float32"),
        } | heard

    def save(self, folder: Path) -> None:
        tokenizer = read_tokenizer(self.folder)
        if not self._heard:
            tokenizer.enable_truncation(self.max_length)
            tokenizer.enable_padding(pad_id=self.pad, pad_token=tokenizer.id_to_token(self.pad) or "")
        tokenizer.save(str(folder / TOKENIZER))


def _visible(mask: torch.Tensor, length: int) -> torch.Tensor:
    """What `length` places may look at, as a sum to attention: 0, or the lowest number where the mask is 0."""
    hidden = (1.0 - mask.float()) * LOWEST
    return hidden[:, None, None, :].expand(-1, 1, length, -1)


def start_of(model: Any) -> list[int]:
    """The decoder's first tokens. Whisper's say language (English, unless its settings name another) and task."""
    settings, config = model.generation_config, model.config
    first = settings.decoder_start_token_id
    start = [int(config.decoder_start_token_id if first is None else first)]
    if (languages := getattr(settings, "lang_to_id", None)) and getattr(settings, "is_multilingual", True):
        named = getattr(settings, "language", None) or "en"
        start.append(int(languages.get(named) or languages[f"<|{named}|>"]))
        start.append(int(settings.task_to_id[getattr(settings, "task", None) or "transcribe"]))
    if (silent := getattr(settings, "no_timestamps_token_id", None)) is not None:
        start.append(int(silent))
    if settings.forced_bos_token_id is not None:
        start.append(int(settings.forced_bos_token_id))
    return start


def prefix_of(config: Any, task: str) -> str:
    """What T5 reads before a text, where its settings leave no choice."""
    known: Mapping[str, Any] = getattr(config, "task_specific_params", None) or {}
    prefixes = {
        str(settings.get("prefix") or "")
        for name, settings in known.items()
        if name.startswith({"summarisation": "summarization"}.get(task, task))
    }
    return prefixes.pop() if len(prefixes) == 1 else ""
