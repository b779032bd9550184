"""image-classification: pictures decoded and resized in a thread, scaled and normalised in the graph."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from llmos.contracts.inference import InferenceRequested, Input, Output
from llmos.contracts.models import ImageInput, ServingContract
from llmos.errors import Rejected
from llmos.media import pixels
from llmos_inferencer.encoding.labels import check_labels, labelled, probabilities
from llmos_inferencer.encoding.texts import check_graph
from llmos_inferencer.engine import Means, Prepared, Row, at_fault
from llmos_inferencer.runtime import open_session

PATCH = 16 * 16  # pixels that cost about as much as a token of a text


class PictureRow(Row, gc=False):
    """One picture, uint8 `[height, width, 3]`."""

    pixels: Any = None


class PictureClassifier:
    """image-classification."""

    takes: Literal["image"] = "image"
    reserved = 0

    def __init__(self, session: Any, contract: ServingContract, how: ImageInput) -> None:
        self.contract = contract
        self._session = session
        self._how = how

    @classmethod
    def load(cls, root: Path, contract: ServingContract, means: Means) -> Self:
        """Open the graph and run it once. Raises `Rejected` when it doesn't fit its contract."""
        check_labels(contract)
        if contract.image is None:
            raise Rejected("llmos.json does not say how a picture is prepared", remedy="Export the model again.")
        session = open_session(root / contract.files["model"], means)
        check_graph(session, contract, {"pixels": "tensor(uint8)"})
        engine = cls(session, contract, contract.image)
        size = contract.image.crop or contract.image.resize * (2 // len(contract.image.resize))
        engine.run([engine._row(np.zeros((*size, 3), np.uint8))])
        return engine

    def close(self) -> None:
        """Let go of the session."""
        del self._session

    def prepare(self, inputs: Sequence[Input]) -> list[Prepared]:
        """Decode and resize."""
        prepared = []
        for at, each in enumerate(inputs):
            if not each.image:
                raise Rejected("this model takes pictures", remedy="Give `image` or `artifact`.", param=f"inputs[{at}]")
            try:
                row = self._row(pixels(each.image, self._how))
            except Rejected as error:
                raise at_fault(error, f"inputs[{at}].image") from error
            prepared.append(Prepared([row], tokens=row.length))
        return prepared

    def run(self, rows: Sequence[Row]) -> Sequence[Any]:
        """Probabilities of pictures of one size."""
        batch = np.stack([row.pixels for row in rows if isinstance(row, PictureRow)])
        (logits,) = self._session.run([self.contract.output_name], {"pixels": batch})
        return list(probabilities(logits, self.contract, len(rows)))

    def read(self, prepared: Prepared, found: Sequence[Any], request: InferenceRequested) -> Output:
        return labelled(found[0], self.contract.labels, request.top)

    def _row(self, picture: NDArray[np.uint8]) -> PictureRow:
        height, width = picture.shape[:2]
        return PictureRow(max(1, height * width // PATCH), kind=hash((height, width)), pixels=picture)
