"""Running the two graphs of an encoder-decoder as serving does, only plainer."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmos_exporter.sources import Numbers

if TYPE_CHECKING:
    from llmos_exporter.seq2seq import Pair, Seq2Seq


class Writer:
    """The two graphs: the source once, then token by token, all rows of a batch together."""

    def __init__(self, source: "Seq2Seq", encoder: Any, decoder: Any) -> None:
        self._source = source
        self._encoder = encoder
        self._decoder = decoder
        self._half = any(value.type == "tensor(float16)" for value in decoder.get_inputs())

    def __call__(self, rows: "Sequence[Pair]") -> list[Numbers]:
        """The logits of each token that the trained model wrote."""
        steps: list[Numbers] = []

        def follow(logits: Numbers) -> Any:
            steps.append(logits)
            at = len(steps)
            known = [row.written[at - 1] if at <= len(row.written) else self._source.pad for row in rows]
            return np.array(known) if at < max(len(row.written) for row in rows) else None

        self._run(rows, follow)
        found = np.stack(steps, axis=1)
        return [found[at, : len(row.written)] for at, row in enumerate(rows)]

    def write(self, rows: "Sequence[Pair]") -> list[list[int]]:
        """What the artifact writes, the likeliest token each time."""
        texts: list[list[int]] = [[] for _ in rows]

        def follow(logits: Numbers) -> Any:
            newest = logits.argmax(-1)
            going = add(texts, newest, self._source.generation.eos_token_ids)
            return newest if going and max(map(len, texts)) < self._source.longest else None

        self._run(rows, follow)
        return texts

    def _run(self, rows: "Sequence[Pair]", follow: Callable[[Numbers], Any]) -> None:
        source, feeds = self._source, self._source.feeds(rows)
        crossing = dict(
            zip(
                source.encoder_interface.gives,
                self._encoder.run(list(source.encoder_interface.gives), feeds),
                strict=True,
            )
        )
        fixed = crossing | ({} if "audio" in feeds else {"encoder_attention_mask": feeds["attention_mask"]})
        names = source.names(source.cache.past_key, source.cache.past_value)
        empty = np.zeros(
            (len(rows), source.cache.heads, 0, source.cache.size), np.float16 if self._half else np.float32
        )
        past = dict.fromkeys(names, empty)
        tokens = np.array([source.generation.start] * len(rows), np.int64)
        step = 0
        while True:
            gives = list(source.decoder_interface.gives)
            logits, *present = self._decoder.run(gives, {"input_ids": tokens, **past, **fixed})
            past = dict(zip(names, present, strict=True))
            newest = follow(source.never(logits[:, -1:].astype(np.float32), step)[:, 0])
            step += 1
            if newest is None:
                return
            tokens = newest[:, None].astype(np.int64)


def add(texts: list[list[int]], newest: Any, ends: Sequence[int]) -> bool:
    """Put a token behind each text that has not ended; whether any goes on."""
    for text, token in zip(texts, newest, strict=True):
        if not text or text[-1] not in ends:
            text.append(int(token))
    return any(text[-1] not in ends for text in texts)
