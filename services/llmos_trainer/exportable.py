"""Whether a model can be exported as it is: its architecture, its head, its files; and what of them an export needs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmos.contracts.architectures import FAMILIES, HEADS
from llmos.errors import Rejected
from llmos_trainer import pretrained

_FILES = (
    "added_tokens.json", "chat_template.jinja", "generation_config.json", "preprocessor_config.json",
    "processor_config.json", "source.spm", "spiece.model", "target.spm", "vocab.json",
)  # fmt: skip
_SEEING_OR_HEARING = ("image-classification", "audio-classification", "speech-recognition")
_LABELLED = ("text-classification", "token-classification", "image-classification", "audio-classification")


def examine(folder: Path, task: str, max_length: int) -> Iterator[str]:
    """Everything for which a model folder can't be exported for `task`. `max_length` 0 is what the model can read.

    Raises `Rejected` when it has no configuration that could be examined.
    """
    config = _config(folder)
    yield from _architecture(config, task)
    yield from pretrained.weight_faults(folder)
    if task in _SEEING_OR_HEARING:
        if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
            yield "there is no preprocessor_config.json: save the processor beside the model"
    else:
        try:
            pretrained.read_tokenizer(folder)
        except Rejected as error:
            yield str(error)
    if task == "embeddings":
        try:
            _pooling(folder)
        except (Rejected, ValueError, KeyError) as error:
            yield f"modules.json: {error}"
    if task in _LABELLED and not labels_of(folder):
        yield "config.json names no labels (id2label)"
    if (limit := pretrained.positions(config)) and max_length > limit:
        yield f"export.max_length is {max_length}, and the model reads {limit} tokens. Set it to {limit} or less."


def _architecture(config: Any, task: str) -> Iterator[str]:
    """Whether the family is known to work, and whether the checkpoint has the head that the task needs."""
    import transformers

    families, head = FAMILIES[task], HEADS[task]
    kind, named = config.model_type, (getattr(config, "architectures", None) or [""])[0]
    if families and kind not in families:
        yield f"a {kind!r} model can't be exported for {task}; supported are {', '.join(families)}"
        return
    wanted = {
        model.__name__
        for mapping in head
        for model in [getattr(transformers, mapping).get(type(config), None)]
        if isinstance(model, type)
    }
    if not wanted:
        yield f"a {kind!r} model has no form for {task}"
    elif task != "embeddings" and named not in wanted:
        yield f"the checkpoint is a {named or 'model without a head'}, and {task} needs {' or '.join(sorted(wanted))}"


def labels_of(folder: Path) -> list[str]:
    """The names of the model's labels, in order; none when its configuration gives none."""
    names = getattr(_config(folder), "id2label", None) or {}
    return [str(names[number]) for number in range(len(names)) if number in names]


def stage(folder: Path, dest: Path, task: str) -> None:
    """Copy what the export needs, and nothing else, to the new folder `dest`."""
    pretrained.stage(folder, dest, tokenizer=task not in _SEEING_OR_HEARING)
    for name in _FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, dest / name)
    if task == "embeddings":
        (dest / "pooling.json").write_text(json.dumps(_pooling(folder), sort_keys=True) + "\n")


def _pooling(folder: Path) -> dict[str, Any]:
    """How a sentence-transformers model makes one vector of its tokens; any other gives their mean, of length 1.

    Raises `Rejected` for a way that the export does not know.
    """
    root = next((at for at in (folder, folder.parent) if (at / "modules.json").is_file()), None)
    if root is None:
        return {"pooling": "mean", "normalise": True}
    modules = json.loads((root / "modules.json").read_bytes())
    kinds = {str(module.get("type", "")).rpartition(".")[2]: root / module.get("path", "") for module in modules}
    how = "mean"
    if path := kinds.get("Pooling"):
        if not (path / "config.json").is_file():
            raise Rejected(f"there is no {path.name}/config.json, which says how its vectors are pooled")
        settings = json.loads((path / "config.json").read_bytes())
        modes = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens"}
        chosen = [mode for mode, name in modes.items() if settings.get(f"pooling_mode_{name}")]
        how = settings.get("pooling_mode") or (chosen[0] if len(chosen) == 1 else "of another kind")
    if how not in ("cls", "max", "mean"):
        raise Rejected(f"its pooling is {how!r}; supported are cls, max and mean", param="model.base")
    return {"pooling": how, "normalise": "Normalize" in kinds} | _sentences(root)


def _sentences(root: Path) -> dict[str, Any]:
    """What sentence-transformers puts before each text, and how many tokens of it count, where its files say so."""

    def read(name: str) -> dict[str, Any]:
        path = root / name
        found = json.loads(path.read_bytes()) if path.is_file() else {}
        return found if isinstance(found, dict) else {}

    told = read("config_sentence_transformers.json")
    prefix = (told.get("prompts") or {}).get(told.get("default_prompt_name") or "", "")
    longest = read("sentence_bert_config.json").get("max_seq_length")
    return ({"prefix": prefix} if prefix else {}) | ({"max_length": longest} if isinstance(longest, int) else {})


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a foreign configuration raises, it is the fault
        raise Rejected(
            f"config.json does not describe a model that is known here: {pretrained.first_line(error)}",
            remedy="Give a model of an architecture that transformers contains.",
        ) from error
