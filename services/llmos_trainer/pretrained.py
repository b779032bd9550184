"""The model to start from: what its folder must hold, staging it for a job, and loading it to be trained.

Only safetensors, a configuration and a tokenizer are ever read; a pickle is refused, and no code of a model is run.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmos.errors import Rejected
from llmos_trainer import marian

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_INDEX = "model.safetensors.index.json"
_VOCABULARIES = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")


class Pretrained(NamedTuple):
    """A model ready to be trained. `fresh` names its modules that hold newly drawn weights, or belong to the head."""

    model: Any
    fresh: list[str]


def find_model(folder: Path) -> Path:
    """The folder that holds `config.json`: itself, or the transformer of a sentence-transformers model, or the only
    one below.

    Raises `Rejected`.
    """
    if (folder / "config.json").is_file():
        return folder
    below = [path.parent for path in sorted(folder.glob("*/config.json"))]
    modules = folder / "modules.json"
    if modules.is_file():
        first = _json(modules)
        below = [at for at in below if isinstance(first, list) and first and at.name == first[0].get("path")]
    if len(below) == 1:
        return below[0]
    raise Rejected("there is no config.json", remedy="Give a folder as `save_pretrained` of transformers writes it.")


def examine(folder: Path, max_length: int) -> list[str]:
    """Everything for which a model folder can't be trained for text classification, without loading a weight."""
    try:
        config = _config(folder)
    except Rejected as error:
        return [str(error)]
    faults = [*weight_faults(folder)]
    try:
        tokenizer = read_tokenizer(folder)
        pad_token(folder, config, tokenizer)
        words = 1 + max(tokenizer.get_vocab().values(), default=-1)
        if words > (known := getattr(config, "vocab_size", words)):
            faults.append(f"the tokenizer gives {words} token ids, and the model knows {known}")
    except Rejected as error:
        faults.append(str(error))
    if (limit := positions(config)) and max_length > limit:
        faults.append(
            f"train.max_length is {max_length}, and the model reads {limit} tokens. Set it to {limit} or less."
        )
    return faults


def stage(folder: Path, dest: Path, *, tokenizer: bool = True) -> None:
    """Copy what training needs, and nothing else, to the new folder `dest`. `folder` has no fault."""
    dest.mkdir(parents=True)
    index = folder / _INDEX
    names = set(_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    for name in ("config.json", _INDEX, *sorted(names), *_TOKENIZER_FILES):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, dest / name)
    if tokenizer and not (dest / "tokenizer.json").exists():
        read_tokenizer(folder).save(str(dest / "tokenizer.json"))


def copy_tokenizer(folder: Path, dest: Path) -> None:
    """Put the tokenizer of a staged model beside another model."""
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, dest / name)


def load(folder: Path, labels: Sequence[str], seed: int) -> Pretrained:
    """Load a staged model with a head for `labels`, its weights in fp32 and in memory of their own.

    Equal arguments give equal weights. Raises `Rejected` when the checkpoint lacks weights of the model's body.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    config = _config(folder)
    config.pad_token_id = pad_token(folder, config, read_tokenizer(folder))
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    model, loaded = AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # a head for other labels is drawn anew; for a body it is refused below
        output_loading_info=True,
    )
    body = f"{model.base_model_prefix}."
    mismatched = {key[0] if isinstance(key, tuple) else key for key in loaded["mismatched_keys"]}
    absent = {key for key in loaded["missing_keys"] if key.startswith(body) and ".pooler." not in key}
    if broken := sorted(absent | {key for key in mismatched if key.startswith(body)}):
        raise Rejected(
            f"the base model's checkpoint lacks {len(broken)} weights of its architecture, {broken[0]} first",
            remedy="Give a checkpoint that fits its config.json.",
            param="model.base",
        )
    for parameter in model.parameters():
        # Off the file's mapping: aligned for vector code alike in every run, and nobody can change it underneath.
        parameter.data = parameter.data.clone()
    head = {name for name, _ in model.named_parameters() if not name.startswith(body)}
    fresh = {name.rpartition(".")[0] for name in head | set(loaded["missing_keys"]) | mismatched}
    return Pretrained(model, sorted(fresh))


def load_tokenizer(folder: Path, max_length: int) -> Any:
    """The staged tokenizer, cutting at `max_length` tokens, without padding: the one that will serve, too."""
    tokenizer = read_tokenizer(folder)
    tokenizer.enable_truncation(max_length)
    tokenizer.no_padding()
    return tokenizer


def pad_token(folder: Path, config: Any, tokenizer: Any) -> int:
    """The id of the padding token. Raises `Rejected` when neither configuration nor tokenizer has one."""
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    settings = folder / "tokenizer_config.json"
    named = _json(settings).get("pad_token") if settings.is_file() else None
    name = named.get("content") if isinstance(named, dict) else named
    found = tokenizer.token_to_id(name) if isinstance(name, str) else None
    if found is None:
        raise Rejected("the tokenizer has no padding token", remedy="Set pad_token_id in config.json.")
    return int(found)


def _config(folder: Path) -> Any:
    """The configuration. Raises `Rejected` when it is not one of a model that classifies sequences."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as SUPPORTED
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        raise Rejected(
            "there is no config.json", remedy="Give a folder as `save_pretrained` of transformers writes it."
        )
    raw = _json(path)
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a foreign configuration raises, it is the fault
        raise Rejected(
            f"config.json does not describe a model that is known here (model_type {kind!r}): {first_line(error)}",
            remedy="Give a model of an architecture that transformers contains.",
        ) from error
    if type(config) not in SUPPORTED or getattr(config, "is_encoder_decoder", False):
        raise Rejected(
            f"a {kind!r} model can't classify sequences here",
            remedy="Give an encoder such as bert, distilbert, roberta, deberta-v2 or modernbert.",
        )
    return config


def weight_faults(folder: Path) -> list[str]:
    """Everything for which the weights can't be read."""
    from safetensors import SafetensorError, safe_open

    index = folder / _INDEX
    try:
        names = sorted(set(_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    except (Rejected, KeyError, TypeError, AttributeError):
        return [f"{_INDEX} is damaged"]
    faults = []
    for name in names:
        if Path(name).name != name:
            faults.append(f"{_INDEX} names a file outside the folder")
        elif (folder / name).is_file():
            try:
                with safe_open(folder / name, framework="np") as file:
                    file.keys()
            except (SafetensorError, OSError) as error:
                faults.append(f"{name} is damaged: {first_line(error)}")
        elif pickles := sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern)):
            faults.append(
                f"the weights are only there as {pickles[0]}, which may run code when it is read. "
                "Convert them: `AutoModel.from_pretrained(folder).save_pretrained(new_folder)` writes safetensors."
            )
            break
        else:
            faults.append(f"{name} is missing")
    return faults


def read_tokenizer(folder: Path) -> Any:
    """The fast tokenizer, from `tokenizer.json` or built from the older files. Raises `Rejected`."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    remedy = "Save a fast tokenizer (tokenizer.json) beside the model."
    try:
        if path.is_file():
            return Tokenizer.from_file(str(path))
        if all((folder / name).is_file() for name in marian.FILES):
            return marian.tokenizer(folder)
        if not any((folder / name).is_file() for name in _VOCABULARIES):
            raise FileNotFoundError("there is no tokenizer.json and no vocabulary")
        from transformers import AutoTokenizer

        built = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        backend = getattr(built, "backend_tokenizer", None)
    except Rejected:
        raise
    except Exception as error:  # tokenizers raises bare Exception, and a foreign file may be wrong in any way
        raise Rejected(f"no tokenizer can be read: {first_line(error)}", remedy=remedy) from error
    if backend is None:
        raise Rejected("there is no tokenizer.json, and none can be built from the files", remedy=remedy)
    return backend


def positions(config: Any) -> int:
    """How many tokens the model can tell apart by position; 0 when nothing limits them."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return 0
    # The RoBERTa family counts positions from behind the padding index.
    shifted = "roberta" in config.model_type or config.model_type in {"camembert", "mpnet"}
    return limit - (int(config.pad_token_id or 0) + 1) if shifted else limit


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Rejected(f"{path.name} is no valid JSON: {error}", remedy="Correct the file.") from error


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
