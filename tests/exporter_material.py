"""Tiny random models of every task and family that the exporter knows, and rows for them, made on the spot."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WORDS = [f"w{number}" for number in range(60)]
LABELS = ["blue", "green", "red"]
IDS: dict[str, Any] = {"vocab_size": 72, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def make_tokenizer(folder: Path, *, cls: str, sep: str, padding: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = [cls, padding, sep, "[UNK]"]  # padding is number 1, as in RoBERTa
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=[(cls, 0), (sep, 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def make_model(
    architecture: str, folder: Path, *, seed: int = 0, head: str | None = None, labels: Sequence[str] = LABELS
) -> Path:
    """A random model whose logits are large enough for a fault to show."""
    import torch
    import transformers as t

    torch.manual_seed(seed)
    shared: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 1, "num_labels": 3, "initializer_range": 0.4}
    usual: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 40, "type_vocab_size": 2,
    }  # fmt: skip
    makers: dict[str, Callable[[], Any]] = {
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**shared, **usual)),
        "roberta": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**shared, **usual)),
        "mpnet": lambda: t.MPNetForSequenceClassification(t.MPNetConfig(**shared, **usual)),
        "distilbert": lambda: t.DistilBertForSequenceClassification(
            t.DistilBertConfig(**shared, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40)
        ),
    }
    model = makers[architecture]()
    if head is not None:
        model.config.num_labels = 2 if "Question" in head else len(labels)
        torch.manual_seed(seed)
        model = getattr(t, head)(model.config)
    if "Question" not in (head or ""):
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: at for at, label in enumerate(labels)}
    model.save_pretrained(folder)
    make_tokenizer(folder, cls="<s>", sep="</s>", padding="<pad>")
    return folder


def make_dataset(folder: Path, rows: int = 90, *, seed: int = 0) -> Path:
    """A dataset artifact's folder; texts of 0 to 45 words, more than a model of 38 positions reads."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    for split, count in (("train", 3), ("validation", 3), ("test", rows)):
        lines = [
            json.dumps({"text": " ".join(draw.choices(WORDS, k=draw.randint(0, 45))), "label": draw.choice(LABELS)})
            for _ in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "dataset.json").write_text(json.dumps({"labels": LABELS, "rows": {"test": rows}}))
    return folder


def make_decoder(architecture: str, folder: Path) -> Path:
    """A random decoder of two layers and heads of 16, with a tokenizer of words."""
    import torch
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    wide: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
    }  # fmt: skip
    makers: dict[str, Callable[[], Any]] = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**IDS, **wide)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**IDS, **wide, head_dim=16, tie_word_embeddings=True)),
        "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**IDS, **wide, head_dim=16, sliding_window=8)),
        "opt": lambda: t.OPTForCausalLM(
            t.OPTConfig(
                **IDS,
                hidden_size=64,
                ffn_dim=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                init_std=0.3,
                max_position_embeddings=128,
                word_embed_proj_dim=64,
            )
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(**IDS, n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3)
        ),
        "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(**IDS, hidden_size=64, n_layer=2, n_head=4)),
    }
    model = makers[architecture]()
    model.generation_config = t.GenerationConfig(
        **{name: IDS[name] for name in IDS if name != "vocab_size"}, do_sample=True, temperature=0.7, top_p=0.9
    )
    model.save_pretrained(folder)
    words = ["<s>", "<pad>", "</s>", *(f"w{number}" for number in range(3, 72))]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    fast.save_pretrained(folder)
    return folder


def write_splits(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A dataset tree whose splits all hold the same rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make_writer(architecture: str, folder: Path) -> Path:
    """A random encoder-decoder of two layers, with a tokenizer of words that ends each source."""
    import torch
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    ids: dict[str, Any] = {"vocab_size": 72, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    wide: dict[str, Any] = ids | {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "init_std": 0.3,
        "forced_eos_token_id": 1,
    }  # fmt: skip
    heard: dict[str, Any] = wide | {
        "num_mel_bins": 16, "max_source_positions": 50, "max_target_positions": 40, "bos_token_id": 1,
        "decoder_start_token_id": 2,
    }  # fmt: skip
    makers: dict[str, Callable[[], Any]] = {
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(**ids, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, initializer_factor=1.0)
        ),
        "marian": lambda: t.MarianMTModel(t.MarianConfig(**wide, max_position_embeddings=64)),
        "bart": lambda: t.BartForConditionalGeneration(
            t.BartConfig(**wide, max_position_embeddings=64, bos_token_id=2, forced_bos_token_id=2)
        ),
        "whisper": lambda: t.WhisperForConditionalGeneration(t.WhisperConfig(**heard)),
    }
    model = makers[architecture]().eval()
    settings: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "max_new_tokens": 12}
    if architecture == "whisper":
        settings |= {
            "decoder_start_token_id": 2, "no_timestamps_token_id": 7, "is_multilingual": True,
            "lang_to_id": {"<|en|>": 3, "<|de|>": 4}, "task_to_id": {"transcribe": 5, "translate": 6},
            "suppress_tokens": [8, 9], "begin_suppress_tokens": [1],
        }  # fmt: skip
        t.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(folder)
    if architecture == "bart":
        settings |= {"forced_bos_token_id": 2}
    model.generation_config = t.GenerationConfig(**settings)
    model.save_pretrained(folder)
    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(3, 72))]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>").save_pretrained(folder)
    return folder


def make_media(architecture: str, folder: Path) -> Path:
    """A random model of pictures or sounds with its preprocessor's settings."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    named: dict[str, Any] = {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: at for at, label in enumerate(LABELS)},
    }
    wide: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
        "initializer_range": 0.3,
    }  # fmt: skip
    heard: dict[str, Any] = wide | {
        "conv_dim": (16, 16, 16), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 4), "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16,
        "hidden_dropout": 0.0, "vocab_size": 12, "pad_token_id": 0,
    }  # fmt: skip
    layered = heard | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    makers: dict[str, Callable[[], Any]] = {
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**wide, **named, image_size=32, patch_size=8)),
        "convnext": lambda: t.ConvNextForImageClassification(
            t.ConvNextConfig(**named, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=32)
        ),
        "wav2vec2-group": lambda: t.Wav2Vec2ForSequenceClassification(t.Wav2Vec2Config(**heard, **named)),
        "wav2vec2-layer": lambda: t.Wav2Vec2ForSequenceClassification(t.Wav2Vec2Config(**layered, **named)),
        "hubert": lambda: t.HubertForSequenceClassification(t.HubertConfig(**layered, **named)),
        "ctc": lambda: t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**layered)),
        "ctc-group": lambda: t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**heard)),
    }
    makers[architecture]().save_pretrained(folder)
    size = {"height": 32, "width": 32} if architecture == "vit" else {"shortest_edge": 32}
    settings = {"size": size, "resample": 2 if architecture == "vit" else 3, "image_mean": [0.4, 0.5, 0.6]}
    if "ctc" in architecture:
        letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefg"]
        (folder / "vocab.json").write_text(json.dumps({letter: at for at, letter in enumerate(letters)}))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
