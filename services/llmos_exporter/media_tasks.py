"""Pictures and sounds: one graph from pixels or samples, its own scaling in it, to labels or to letters (CTC)."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models

from llmos.contracts.models import AudioInput, ImageInput
from llmos.errors import Rejected
from llmos.media import pixels, samples
from llmos_exporter.graphs import Feeds, Interface
from llmos_exporter.measuring import same_label
from llmos_exporter.orders import ExportOrder
from llmos_exporter.quality import Classes, Texts
from llmos_exporter.single import Single
from llmos_exporter.sources import (
    Numbers,
    Quality,
    by_size,
    evenly,
    first_line,
    in_company,
    labels_of,
    load_model,
    read_lines,
)
from llmos_exporter.text_tasks import label_number
from llmos_exporter.texts import TOKENIZER, read_tokenizer

SETTINGS = "preprocessor_config.json"
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers


class Medium(NamedTuple):
    """A row: the file as it came, what the graph takes of it, and what is true of it."""

    given: bytes
    array: NDArray[Any]
    truth: Any


def settings_of(folder: Path) -> dict[str, Any]:
    """The model's preprocessing as transformers wrote it. Raises `Rejected` when there is none."""
    path = folder / SETTINGS
    try:
        read: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Rejected(f"{SETTINGS} can't be read: {first_line(error)}", remedy="Save the processor, too.") from error
    return read


# --- image-classification ---


def image_input(settings: Mapping[str, Any]) -> ImageInput:
    """How pictures are resized and cut. Raises `Rejected` for a way that serving does not know."""
    size, crop = settings.get("size") or 224, settings.get("crop_size") or {}
    size = {"height": size, "width": size} if isinstance(size, int) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    cut = [crop["height"], crop["width"]] if settings.get("do_center_crop") and crop else []
    if not settings.get("do_resize", True):
        raise Rejected("pictures are not resized", remedy="Give a model whose processor has do_resize.")
    if "shortest_edge" in size:
        share = settings.get("crop_pct")
        if share and size["shortest_edge"] < 384:  # ConvNeXT: a larger picture, and its middle
            cut = [size["shortest_edge"]] * 2
            resize = [int(size["shortest_edge"] / share)]
        else:
            resize = [size["shortest_edge"]] if cut else [size["shortest_edge"]] * 2
    elif {"height", "width"} <= set(size):
        resize = [size["height"], size["width"]]
    else:
        raise Rejected(f"pictures can't be resized to {size}", remedy="Give height and width, or shortest_edge.")
    return ImageInput(resize, cut, _RESAMPLING[int(settings.get("resample", 2))])


class Pictures(Single):
    """A classifier of pictures as a `Source`."""

    def __init__(self, order: ExportOrder) -> None:
        from transformers import AutoModelForImageClassification

        folder = Path(order.model)
        self._dataset = Path(order.dataset)
        self.model = load_model(folder, AutoModelForImageClassification)
        self.labels = labels_of(self.model.config)
        settings = settings_of(folder)
        self.image = image_input(settings)
        height, width = self.image.crop or self.image.resize
        self._shape = (height, width, 3)
        scale = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
        normalised = settings.get("do_normalize", True)
        mean = torch.tensor(settings.get("image_mean", [0.5] * 3) if normalised else [0.0] * 3)
        deviation = torch.tensor(settings.get("image_std", [0.5] * 3) if normalised else [1.0] * 3)
        self._scale, self._mean, self._deviation = scale, mean.view(1, 3, 1, 1), deviation.view(1, 3, 1, 1)
        self.interface = Interface(takes={"pixels": ("batch", 0, 0, 0)}, gives={"logits": ("batch", 0)})

    def rows(self, split: str) -> list[Any]:
        def make(line: dict[str, Any], place: str) -> Medium:
            given = base64.b64decode(line["image"])
            return Medium(given, pixels(given, self.image), label_number(self.labels, line["label"], place))

        return read_lines(self._dataset, split, make)

    def batches(self, rows: Sequence[Medium]) -> Iterator[list[int]]:
        return by_size([1] * len(rows), most=16)

    def probes(self, rows: Sequence[Medium]) -> list[list[Any]]:
        return in_company(evenly(rows, lambda row: len(row.given), 16))

    def feeds(self, rows: Sequence[Medium]) -> Feeds:
        return {"pixels": np.stack([row.array for row in rows])}

    def head(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        values = (given["pixels"].permute(0, 3, 1, 2).float() * self._scale - self._mean) / self._deviation
        logits: torch.Tensor = self.model(pixel_values=values).logits
        return logits.float()

    def sample(self) -> Feeds:
        noise = np.random.default_rng(0).integers(0, 256, (2, *self._shape), np.uint8)
        return {"pixels": noise}

    def quality(self, exported: Any = None) -> Quality:
        return Classes()

    def agreement(self, wanted: Numbers, got: Numbers) -> float:
        return same_label(wanted, got)

    def answer(self, exported: Callable[[Sequence[Any]], list[Numbers]], row: Medium) -> None:
        exported([row._replace(array=pixels(row.given, self.image))])

    def contract(self, precision: str) -> dict[str, Any]:
        return no_text(self.model.config, ["pixels"]) | {"image": self.image}

    def save(self, folder: Path) -> None:
        """Nothing lies beside the graph."""


# --- sounds ---


class Sounds(Single):
    """A model of raw samples (wav2vec2 and its kin) as a `Source`: labels of a recording, or letters of its frames."""

    def __init__(self, order: ExportOrder, *, letters: bool) -> None:
        from transformers import AutoModelForAudioClassification, AutoModelForCTC

        self._folder = Path(order.model)
        self._dataset = Path(order.dataset)
        self._letters = letters
        self.model = load_model(self._folder, AutoModelForCTC if letters else AutoModelForAudioClassification)
        config = self.model.config
        if not hasattr(config, "conv_stride"):
            raise Rejected(
                f"a {config.model_type} model does not read raw samples",
                remedy="Give a model such as wav2vec2, hubert, wavlm, unispeech or data2vec-audio.",
                param="model.base",
            )
        self.labels = [] if letters else labels_of(config)
        settings = settings_of(self._folder)
        self._normalised = bool(settings.get("do_normalize", True))
        # With group norm a recording's numbers depend on its padding, so that none may be padded.
        self._masked = config.feat_extract_norm != "group"
        self.audio = AudioInput(int(settings.get("sampling_rate", 16_000)), together=self._masked)
        self._names = ("audio", *(["audio_mask"] if self._masked else []))
        output = ("batch", "frames", 0) if letters else ("batch", 0)
        self.interface = Interface(takes=dict.fromkeys(self._names, ("batch", "samples")), gives={"logits": output})
        self._shortest = 1
        for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
            self._shortest = (self._shortest - 1) * stride + kernel
        self.tokenizer = ctc_tokenizer(self._folder, config) if letters else None

    def rows(self, split: str) -> list[Any]:
        def make(line: dict[str, Any], place: str) -> Medium:
            given = base64.b64decode(line["audio"])
            heard = samples(given, self.audio)
            if len(heard) < self._shortest:
                raise Rejected(f"{place}: {len(heard)} samples are too few; the model needs {self._shortest}")
            truth = line["text"] if self._letters else label_number(self.labels, line["label"], place)
            return Medium(given, heard, truth)

        return read_lines(self._dataset, split, make)

    def batches(self, rows: Sequence[Medium]) -> Iterator[list[int]]:
        if self._masked:
            return by_size([len(row.array) for row in rows], most=8, room=8 * 30 * self.audio.rate)
        return ([at] for at in range(len(rows)))

    def probes(self, rows: Sequence[Medium]) -> list[list[Any]]:
        some = evenly(rows, lambda row: len(row.array), 12)
        cut = [row._replace(array=row.array[: max(self._shortest, len(row.array) * 2 // 3)]) for row in some]
        if self._masked:
            return [*in_company(some), cut]
        return [[row] * count for row, count in zip(some + cut, [1, 2, 3] * len(some), strict=False)]

    def feeds(self, rows: Sequence[Medium]) -> Feeds:
        audio = np.zeros((len(rows), max(len(row.array) for row in rows)), np.float32)
        mask = np.zeros(audio.shape, np.int64)
        for at, row in enumerate(rows):
            audio[at, : len(row.array)] = row.array
            mask[at, : len(row.array)] = 1
        return {"audio": audio, "audio_mask": mask}

    def head(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        audio, mask = given["audio"], given.get("audio_mask")
        if self._normalised:
            audio = normalised(audio, mask)
        if mask is None:
            logits: torch.Tensor = self.model(audio).logits
            return logits.float()
        logits = self.model(audio, attention_mask=mask).logits.float()
        if not self._letters:
            return logits
        # What lies behind a recording's end says nothing.
        heard = self.model._get_feature_vector_attention_mask(logits.shape[1], mask, add_adapter=False)
        blank = torch.full_like(logits[:1, :1], -1e4)
        blank[..., self._blank] = 0.0
        return torch.where(heard.bool().unsqueeze(-1), logits, blank)

    @property
    def _blank(self) -> int:
        return int(self.model.config.pad_token_id or 0)

    def read(self, found: NDArray[Any], rows: Sequence[Medium]) -> list[Numbers]:
        if not self._letters:
            return list(found)
        frames = self.model._get_feat_extract_output_lengths(torch.tensor([len(row.array) for row in rows]))
        return [found[at, : int(count)] for at, count in enumerate(frames)]

    def sample(self) -> Feeds:
        noise = np.random.default_rng(0).normal(0, 0.1, (2, 3 * self._shortest + 1777)).astype(np.float32)
        mask = np.ones(noise.shape, np.int64)
        if self._masked:
            noise[1, -777:] = mask[1, -777:] = 0
        return {"audio": noise, "audio_mask": mask}

    def quality(self, exported: Any = None) -> Quality:
        if (tokenizer := self.tokenizer) is None:
            return Classes()

        def read(rows: Sequence[Any], answers: Sequence[Numbers]) -> list[str]:
            return [str(tokenizer.decode(one.argmax(-1).tolist(), skip_special_tokens=False)) for one in answers]

        return Texts("speech-recognition", read)

    def agreement(self, wanted: Numbers, got: Numbers) -> float:
        return same_label(wanted, got)

    def answer(self, exported: Callable[[Sequence[Any]], list[Numbers]], row: Medium) -> None:
        exported([row._replace(array=samples(row.given, self.audio))])

    def contract(self, precision: str) -> dict[str, Any]:
        config = self.model.config
        letters = {"vocab_size": int(config.vocab_size), "blank_token_id": self._blank} if self._letters else {}
        return no_text(config, list(self._names)) | {"audio": self.audio} | letters

    def save(self, folder: Path) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save(str(folder / TOKENIZER))


def normalised(audio: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Each recording with mean 0 and variance 1, its padding 0 and not counted."""
    if mask is None:
        mean = audio.mean(1, keepdim=True)
        return (audio - mean) / torch.sqrt(((audio - mean) ** 2).mean(1, keepdim=True) + 1e-7)
    there = mask.to(audio.dtype)
    count = there.sum(1, keepdim=True)
    centred = (audio - (audio * there).sum(1, keepdim=True) / count) * there
    return centred / torch.sqrt((centred**2).sum(1, keepdim=True) / count + 1e-7)


def ctc_tokenizer(folder: Path, config: Any) -> Tokenizer:
    """The letters of a CTC model: its tokenizer file, or one made of `vocab.json`, that also puts frames together."""
    if (folder / TOKENIZER).exists():
        return read_tokenizer(folder)
    try:
        letters: dict[str, int] = json.loads((folder / "vocab.json").read_bytes())
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise Rejected(f"no letters can be read: {first_line(error)}", remedy="Save vocab.json beside it.") from error
    blank = next((letter for letter, number in letters.items() if number == (config.pad_token_id or 0)), "<pad>")
    unknown = settings.get("unk_token") or "<unk>"
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token=unknown if isinstance(unknown, str) else "<unk>"))
    delimiter = settings.get("word_delimiter_token") or "|"
    tokenizer.decoder = decoders.CTC(pad_token=blank, word_delimiter_token=delimiter, cleanup=True)
    return tokenizer


def no_text(config: Any, names: list[str]) -> dict[str, Any]:
    """The fields of a contract whose model reads no text."""
    return {
        "max_length": 0, "pad_token_id": 0, "pad_token": "", "input_names": names, "architecture": config.model_type,
    }  # fmt: skip
