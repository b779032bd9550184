"""Pictures and sounds: scaling is in the graph, recordings may be of any length, frames become letters."""

import base64
from io import BytesIO
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import soundfile
from PIL import Image
from tokenizers import Tokenizer

from exporter_rows import LABELS, pictures, recordings
from llmos.errors import Rejected
from llmos.media import pixels
from llmos_exporter.media_tasks import image_input


@pytest.mark.parametrize("architecture", ["vit", "convnext"])
def test_a_graph_of_pictures_takes_bytes_and_is_the_model(architecture: str, exported: Any, media: Any) -> None:
    made = exported("image-classification", media(architecture), pictures())
    assert made.done.parity["max_abs_diff"] < 1e-4 and made.done.parity["agreement"] == 1.0
    assert made.contract.labels == LABELS and made.contract.input_names == ["pixels"]
    graph = ort.InferenceSession(made.folder / "model.onnx")
    row = pictures(1)[0]
    (logits,) = graph.run(["logits"], {"pixels": pixels(base64.b64decode(row["image"]), made.contract.image)[None]})
    from transformers import AutoModelForImageClassification

    picture = Image.open(BytesIO(base64.b64decode(row["image"]))).convert("RGB")
    how = Image.Resampling.BILINEAR if architecture == "vit" else Image.Resampling.BICUBIC
    side = 32 if architecture == "vit" else int(32 / (224 / 256))
    assert architecture == "vit" or made.contract.image.resize == [32, 32]
    values = np.asarray(picture.resize((32, 32), how), np.float32).transpose(2, 0, 1)
    values = (values / 255 - np.array([0.4, 0.5, 0.6])[:, None, None]) / 0.5
    import torch

    model = AutoModelForImageClassification.from_pretrained(media(architecture)).eval()
    with torch.no_grad():
        wanted = model(pixel_values=torch.tensor(values[None], dtype=torch.float32)).logits.numpy()
    assert np.abs(wanted - logits).max() < 1e-4 and side


@pytest.mark.parametrize(
    ("settings", "resize", "crop", "resample"),
    [
        ({"size": 224}, [224, 224], [], "bilinear"),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, [256], [224, 224], "bilinear"),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}, [256], [224, 224], "bicubic"),
        ({"size": {"height": 8, "width": 6}, "crop_size": {"height": 4, "width": 4}}, [8, 6], [], "bilinear"),
    ],
)
def test_pictures_are_cut_as_their_processor_would(
    settings: dict[str, Any], resize: list[int], crop: list[int], resample: str
) -> None:
    found = image_input(settings)
    assert (found.resize, found.crop, found.resample) == (resize, crop, resample)


@pytest.mark.parametrize("architecture", ["wav2vec2-layer", "wav2vec2-group", "hubert"])
def test_recordings_of_any_length_are_heard_as_the_model_hears_them(
    architecture: str, exported: Any, media: Any
) -> None:
    made = exported("audio-classification", media(architecture), recordings())
    assert made.done.parity["max_abs_diff"] < 2e-4 and made.done.parity["agreement"] == 1.0
    together = architecture != "wav2vec2-group"
    assert made.contract.audio.together == together, "group norm hears the padding"
    assert made.contract.input_names == (["audio", "audio_mask"] if together else ["audio"])
    assert made.done.parity["company_diff"] < 1e-4


@pytest.mark.parametrize("architecture", ["ctc", "ctc-group"])
def test_frames_become_letters_and_padding_is_silent(architecture: str, exported: Any, media: Any) -> None:
    rows = recordings(text="abc a")
    made = exported("speech-recognition", media(architecture), rows)
    assert made.done.parity["max_abs_diff"] < 2e-4 and set(made.done.metrics) >= {"wer", "cer"}
    assert made.contract.blank_token_id == 0 and made.contract.vocab_size == 12
    tokenizer = Tokenizer.from_file(str(made.folder / "tokenizer.json"))
    assert tokenizer.decode([5, 5, 0, 5, 6, 4, 0, 4, 7], skip_special_tokens=False) == "aab  c"
    if made.contract.audio.together:
        graph = ort.InferenceSession(made.folder / "model.onnx")
        audio = np.random.default_rng(2).normal(0, 0.1, (1, 4000)).astype(np.float32)
        padded = np.pad(audio, ((0, 0), (0, 2000)))
        mask = np.ones(audio.shape, np.int64)
        (alone,) = graph.run(None, {"audio": audio, "audio_mask": mask})
        (beside,) = graph.run(None, {"audio": padded, "audio_mask": np.pad(mask, ((0, 0), (0, 2000)))})
        assert (beside[0, alone.shape[1] :].argmax(-1) == 0).all()
        assert np.abs(beside[0, : alone.shape[1]] - alone[0]).max() < 1e-4


def test_int8_of_pictures_and_sounds_stays_near(exported: Any, media: Any) -> None:
    small = exported("image-classification", media("vit"), pictures(), "int8")
    assert small.done.parity["company_diff"] <= 1e-6 and small.done.parity["agreement"] > 0.5
    heard = exported("audio-classification", media("wav2vec2-layer"), recordings(), "int8")
    assert heard.done.parity["agreement"] > 0.5


def test_a_recording_that_is_too_short_is_named(exported: Any, media: Any) -> None:
    file = BytesIO()
    soundfile.write(file, np.zeros(20), 16_000, format="WAV")
    row = {"audio": base64.b64encode(file.getvalue()).decode(), "label": "red"}
    with pytest.raises(Rejected, match=r"jsonl:1: 20 samples are too few; the model needs"):
        exported("audio-classification", media("wav2vec2-layer"), [row])
