"""embeddings: one vector a text, pooled (and normalised) in the graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmos.contracts.inference import InferenceRequested, Output
from llmos.errors import Rejected
from llmos_inferencer.encoding.labels import check_finite
from llmos_inferencer.encoding.texts import TextEngine
from llmos_inferencer.engine import Prepared, Row

DIGITS = 7  # of a float32 there are no more


class Embedder(TextEngine):
    """embeddings."""

    def run(self, rows: Sequence[Row]) -> Sequence[Any]:
        vectors = self._run(rows)
        if vectors.ndim != 2 or vectors.shape != (len(rows), self.contract.dimensions or vectors.shape[-1]):
            raise Rejected(f"the model gives {vectors.shape} for {len(rows)} texts")
        return list(vectors)

    def read(self, prepared: Prepared, found: Sequence[Any], request: InferenceRequested) -> Output:
        check_finite(found[0])
        return Output(embedding=np.round(found[0].astype(np.float64), DIGITS).tolist())
