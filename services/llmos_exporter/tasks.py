"""The table of tasks: how the model of each is opened. A new task is a row here."""

import json
from collections.abc import Callable
from pathlib import Path

from llmos.errors import Rejected
from llmos_exporter.orders import ExportOrder
from llmos_exporter.sources import Source


def _text(name: str) -> Callable[[ExportOrder], Source]:
    def open_encoder(order: ExportOrder) -> Source:
        from llmos_exporter import text_tasks
        from llmos_exporter.texts import Encoder

        return Encoder(order, getattr(text_tasks, name))

    return open_encoder


def _decoder(order: ExportOrder) -> Source:
    from llmos_exporter.decoders import Decoder

    return Decoder(order)


def _pictures(order: ExportOrder) -> Source:
    from llmos_exporter.media_tasks import Pictures

    return Pictures(order)


def _sounds(order: ExportOrder) -> Source:
    from llmos_exporter.media_tasks import Sounds

    return Sounds(order, letters=False)


def _seq2seq(order: ExportOrder) -> Source:
    from llmos_exporter.seq2seq import Seq2Seq

    return Seq2Seq(order)


def _speech(order: ExportOrder) -> Source:
    """Whisper writes; wav2vec2 and its kin give letters."""
    from llmos_exporter.media_tasks import Sounds

    config = json.loads((Path(order.model) / "config.json").read_bytes())
    return _seq2seq(order) if config.get("is_encoder_decoder") else Sounds(order, letters=True)


TASKS: dict[str, Callable[[ExportOrder], Source]] = {
    "text-classification": _text("TEXT_CLASSIFICATION"),
    "token-classification": _text("TOKEN_CLASSIFICATION"),
    "question-answering": _text("QUESTION_ANSWERING"),
    "embeddings": _text("EMBEDDINGS"),
    "text-generation": _decoder,
    "translation": _seq2seq,
    "summarisation": _seq2seq,
    "image-classification": _pictures,
    "audio-classification": _sounds,
    "speech-recognition": _speech,
}


def open_source(order: ExportOrder) -> Source:
    """The model that an order names, read for its task. Raises `Rejected`."""
    if order.task not in TASKS:
        raise Rejected(
            f"this exporter knows no task {order.task!r}", remedy=f"Use one of {', '.join(TASKS)}.", param="task"
        )
    return TASKS[order.task](order)
