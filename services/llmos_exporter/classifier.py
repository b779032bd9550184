"""The same text classifier twice: trained (torch) and exported (onnxruntime); both turn padded batches into logits."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer

from llmos.errors import Rejected
from llmos_exporter import graphs
from llmos_exporter.batches import Batch, Logits, Rows, pad

TOKENIZER = "tokenizer.json"


class Trained:
    """A trained model as it lies in an artifact of kind `model`. Raises `Rejected` for one that can't be loaded."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        try:
            model, loaded = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise Rejected(
                f"the trained model can't be loaded: {_first_line(error)}", remedy="Train it again."
            ) from error
        if missing := sorted(loaded["missing_keys"]):  # they would be drawn at random
            raise Rejected(
                f"the trained model lacks {len(missing)} weights, {missing[0]} first", remedy="Train it again."
            )
        self.model: Any = model.eval()
        names: dict[int, str] = self.model.config.id2label
        self.labels = [names[number] for number in range(len(names))]
        self.pad = int(self.model.config.pad_token_id or 0)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Logits:
        """Logits, float32 `[texts, labels]`."""
        ids, mask = (torch.from_numpy(array) for array in batch)
        found: Logits = self.model(input_ids=ids, attention_mask=mask).logits.float().numpy()
        return found


class Exported:
    """A graph in a session like the one that will serve it."""

    def __init__(self, graph: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def logits(self, batch: Batch) -> Logits:
        """Logits, float32 `[texts, labels]`."""
        found: Logits = self._session.run([graphs.OUTPUT], dict(zip(graphs.INPUTS, batch, strict=True)))[0]
        return found

    def answer(self, tokenizer: Tokenizer, text: str, token: int) -> Logits:
        """The logits of one text, from its characters on."""
        return self.logits(pad([tokenizer.encode(text).ids], token))


def read_tokenizer(folder: Path, max_length: int) -> Tokenizer:
    """The model's tokenizer, cutting at `max_length` tokens, without padding. Raises `Rejected`."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # tokenizers raises bare Exception for a file that is missing or wrong
        raise Rejected(f"{TOKENIZER} can't be read: {_first_line(error)}", remedy="Train the model again.") from error
    tokenizer.enable_truncation(max_length)
    tokenizer.no_padding()
    return tokenizer


def read_rows(folder: Path, split: str, tokenizer: Tokenizer, labels: Sequence[str]) -> Rows:
    """The rows of one split of a dataset artifact, tokenised. Raises `Rejected` if it has none, or an unknown label."""
    number = {label: at for at, label in enumerate(labels)}
    path = folder / f"{split}.jsonl"
    texts, found = [], []
    try:
        with path.open(encoding="utf-8") as file:
            for at, line in enumerate(file, 1):
                row = json.loads(line)
                if row["label"] not in number:
                    raise Rejected(
                        f"{path.name}:{at}: the model has no label {row['label']!r} (it has {', '.join(labels)})",
                        remedy="Train on the dataset that the model is exported with.",
                    )
                texts.append(row["text"])
                found.append(number[row["label"]])
    except (OSError, ValueError, KeyError) as error:
        raise Rejected(
            f"{path.name} can't be read: {_first_line(error)}", remedy="Prepare the dataset again."
        ) from error
    if not texts:
        raise Rejected(f"{path.name} has no row to measure the artifact on", remedy="Give more data, or data.test.")
    return Rows(texts, [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)], found)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
