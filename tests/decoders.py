"""Tiny decoders with random weights and a byte-level tokenizer, made on the spot as the exporter makes real ones."""

import contextlib
import io
import logging
import shutil
from pathlib import Path
from typing import Any

WORDS = ["the", " the", " is", " and", " good", " bad", " camera", " screen", "ing", "er", " a", "system", "user"]
SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
PAD, BOS, EOS = 0, 1, 2
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tokenizer(path: Path, size: int = 0) -> Any:
    """A byte-level BPE whose merges are written out (the trainer breaks ties differently in every process), filled up
    to `size` tokens that no text has.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = list(word.replace(" ", "Ġ"))
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if "".join(pair) not in vocab:
                vocab["".join(pair)] = len(vocab)
                merges.append(pair)
            parts = ["".join(pair), *parts[2:]]
    vocab |= {f"t{number}": number for number in range(len(vocab), size)}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    fast.save_pretrained(path)
    return fast


def write_llama(
    path: Path, *, vocab: int = 0, layers: int = 2, hidden: int = 64, context: int = 512, **more: Any
) -> Path:
    """A Llama with random weights, its tokenizer beside it, as transformers saves it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path.mkdir(parents=True, exist_ok=True)
    fast = write_tokenizer(path, vocab)
    torch.manual_seed(0)
    settings = {
        "vocab_size": vocab or len(fast),
        "hidden_size": hidden,
        "intermediate_size": hidden * 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "initializer_range": 0.2,  # small weights give every token the same logit
    }
    model = LlamaForCausalLM(LlamaConfig(**(settings | more)))
    model.save_pretrained(path)
    return path


def build_graph(source: Path, target: Path, precision: str = "fp32", *, prune: bool = True) -> Path:
    """ONNX Runtime GenAI's model builder: `model.onnx`, `model.onnx.data`, `tokenizer.json`, `genai_config.json`."""
    from onnxruntime_genai.models import builder

    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cache = str(target / "cache")
        extra = builder.parse_extra_options(
            "", str(source), str(target), precision, "cpu", cache, [f"prune_lm_head={prune}"]
        )
        builder.create_model("", str(source), str(target), precision, "cpu", cache, **extra)
    return target


def write_contract(folder: Path, *, precision: str = "fp32", **more: Any) -> Path:
    """`llmos.json` beside a graph of `build_graph`, as the exporter writes it."""
    import msgspec

    from llmos.contracts.models import Cache, Generation, ServingContract

    config = msgspec.json.decode((folder / "genai_config.json").read_bytes())["model"]
    decoder = config["decoder"]
    contract = ServingContract(
        task="text-generation",
        labels=[],
        max_length=config["context_length"],
        pad_token_id=PAD,
        pad_token="<pad>",
        input_names=["input_ids", "attention_mask"],
        precision=precision,
        vocab_size=config["vocab_size"],
        chat_template=TEMPLATE,
        special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
        generation=Generation(eos_token_ids=[EOS], bos_token_id=BOS, max_tokens=32),
        cache=Cache(decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]),
    )
    for name, value in more.items():
        contract = msgspec.structs.replace(contract, **{name: value})
    (folder / "llmos.json").write_bytes(msgspec.json.encode(contract))
    return folder


def write_artifact(folder: Path, precision: str = "fp32", **more: Any) -> Path:
    """A whole artifact of a tiny Llama; `more` goes to its config."""
    build_graph(write_llama(folder / "source", **more), folder / "artifact", precision)
    shutil.rmtree(folder / "artifact" / "cache", ignore_errors=True)
    return write_contract(folder / "artifact", precision=precision)


def write_translator(folder: Path, *, context: int = 96) -> Path:
    """An encoder and a decoder with cross attention, one layer each and random weights, in the form of the exporter's
    artifacts for translation.
    """
    import msgspec
    import torch

    from llmos.contracts.models import Cache, Generation, ServingContract

    heads, size = 2, 8
    width = heads * size
    folder.mkdir(parents=True, exist_ok=True)
    vocab = len(write_tokenizer(folder))
    torch.manual_seed(0)

    def split(tensor: Any) -> Any:
        return tensor.unflatten(2, (heads, size)).transpose(1, 2)

    def attend(query: Any, key: Any, value: Any, mask: Any) -> Any:
        weights = (query @ key.transpose(2, 3) * size**-0.5 + mask).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2)

    class Part(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(vocab, width)
            self.key, self.value, self.query, self.ask = (torch.nn.Linear(width, width) for _ in range(4))
            self.out = torch.nn.Linear(width, vocab)

    class Encoder(Part):
        def forward(self, ids: Any, mask: Any) -> Any:
            hidden = self.words(ids) * mask.unsqueeze(2)
            hidden = hidden + hidden.cumsum(1)
            return split(self.key(hidden)), split(self.value(hidden))

    class Decoder(Part):
        def forward(self, ids: Any, mask: Any, key: Any, value: Any, cross_key: Any, cross_value: Any) -> Any:
            hidden = self.words(ids)
            key = torch.cat([key, split(self.key(hidden))], 2)
            value = torch.cat([value, split(self.value(hidden))], 2)
            near = torch.ones(ids.shape[1], key.shape[2]).tril(key.shape[2] - ids.shape[1])
            hidden = hidden + attend(split(self.query(hidden)), key, value, (1 - near) * -1e9)
            far = (1 - mask[:, None, None].float()) * -1e9
            hidden = hidden + attend(split(self.ask(hidden)), cross_key, cross_value, far)
            return self.out(hidden[:, -1:]) * 8, key, value

    ids, mask = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
    past, cross = torch.zeros(2, heads, 4, size), torch.zeros(2, heads, 5, size)
    source, behind, before = {0: "b", 1: "source"}, {0: "b", 2: "total"}, {0: "b", 2: "past"}
    torch.onnx.export(
        Encoder(), (mask, mask), str(folder / "encoder.onnx"), dynamo=False,
        input_names=["input_ids", "attention_mask"], output_names=["cross.0.key", "cross.0.value"],
        dynamic_axes={"input_ids": source, "attention_mask": source}
        | {key: {0: "b", 2: "source"} for key in ("cross.0.key", "cross.0.value")},
    )  # fmt: skip
    caches = ["past_key_values.0.key", "past_key_values.0.value", "cross.0.key", "cross.0.value"]
    torch.onnx.export(
        Decoder(), (ids, mask, past, past, cross, cross), str(folder / "decoder.onnx"), dynamo=False,
        input_names=["input_ids", "encoder_attention_mask", *caches],
        output_names=["logits", "present.0.key", "present.0.value"],
        dynamic_axes={"input_ids": {0: "b", 1: "length"}, "encoder_attention_mask": source, "logits": {0: "b"}}
        | dict.fromkeys(caches[:2], before)
        | {key: {0: "b", 2: "source"} for key in caches[2:]}
        | dict.fromkeys(("present.0.key", "present.0.value"), behind),
    )  # fmt: skip
    contract = ServingContract(
        task="translation",
        labels=[],
        max_length=context,
        pad_token_id=PAD,
        pad_token="<pad>",
        input_names=["input_ids", "attention_mask"],
        files={"encoder": "encoder.onnx", "decoder": "decoder.onnx"},
        vocab_size=vocab,
        generation=Generation(eos_token_ids=[EOS], start=[BOS, 7], max_tokens=12),
        cache=Cache(1, heads, size, kind="grown", cross_key="cross.%d.key", cross_value="cross.%d.value"),
    )
    (folder / "llmos.json").write_bytes(msgspec.json.encode(contract))
    return folder
