"""audio-classification, and speech recognition by one graph (CTC): recordings decoded in a thread, run together."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from llmos.contracts.inference import InferenceRequested, Input, Output
from llmos.contracts.models import AudioInput, ServingContract
from llmos.errors import Rejected
from llmos.media import samples
from llmos_inferencer.encoding.labels import check_finite, check_labels, labelled, probabilities
from llmos_inferencer.encoding.texts import check_graph
from llmos_inferencer.engine import Means, Prepared, Row, at_fault
from llmos_inferencer.runtime import open_session

FRAME = 320  # samples that cost about as much as a token of a text


class SoundRow(Row, gc=False):
    """One recording, float32 `[samples]`."""

    samples: Any = None


class SoundEngine:
    """A model of recordings."""

    takes: Literal["audio"] = "audio"
    reserved = 0

    def __init__(self, session: Any, contract: ServingContract, how: AudioInput, root: Path) -> None:
        self.contract = contract
        self._session = session
        self._how = how
        self._open(root)

    @classmethod
    def load(cls, root: Path, contract: ServingContract, means: Means) -> Self:
        """Open the graph and run a second of silence. Raises `Rejected` when it doesn't fit its contract."""
        if contract.audio is None:
            raise Rejected("llmos.json does not say how a recording is prepared", remedy="Export the model again.")
        session = open_session(root / contract.files["model"], means)
        check_graph(session, contract, {"audio": "tensor(float)", "audio_mask": "tensor(int64)"})
        engine = cls(session, contract, contract.audio, root)
        engine.run([engine._row(np.zeros(int((contract.audio.seconds or 1.0) * contract.audio.rate), np.float32))])
        return engine

    def close(self) -> None:
        """Let go of the session."""
        del self._session

    def prepare(self, inputs: Sequence[Input]) -> list[Prepared]:
        """Decode and resample."""
        prepared = []
        for at, each in enumerate(inputs):
            if not each.audio:
                raise Rejected(
                    "this model takes recordings", remedy="Give `audio` or `artifact`.", param=f"inputs[{at}]"
                )
            try:
                row = self._row(samples(each.audio, self._how))
            except Rejected as error:
                raise at_fault(error, f"inputs[{at}].audio") from error
            prepared.append(Prepared([row], tokens=row.length))
        return prepared

    @abstractmethod
    def run(self, rows: Sequence[Row]) -> Sequence[Any]:
        """One padded run."""

    @abstractmethod
    def read(self, prepared: Prepared, found: Sequence[Any], request: InferenceRequested) -> Output:
        """The answer for one recording."""

    @abstractmethod
    def _open(self, root: Path) -> None:
        """Check the contract, and open what the task needs beside the graph."""

    def _row(self, recording: NDArray[np.float32]) -> SoundRow:
        length = len(recording)
        return SoundRow(max(1, length // FRAME), kind=0 if self._how.together else length, samples=recording)

    def _run(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """The graph's output for recordings padded to the longest."""
        recordings = [row.samples for row in rows if isinstance(row, SoundRow)]
        audio = np.zeros((len(rows), max(map(len, recordings))), np.float32)
        mask = np.zeros(audio.shape, np.int64)
        for at, recording in enumerate(recordings):
            audio[at, : len(recording)] = recording
            mask[at, : len(recording)] = 1
        feeds = {"audio": audio, "audio_mask": mask}
        contract = self.contract
        result: NDArray[np.float32]
        (result,) = self._session.run([contract.output_name], {name: feeds[name] for name in contract.input_names})
        return result


class SoundClassifier(SoundEngine):
    """audio-classification."""

    def run(self, rows: Sequence[Row]) -> Sequence[Any]:
        return list(probabilities(self._run(rows), self.contract, len(rows)))

    def read(self, prepared: Prepared, found: Sequence[Any], request: InferenceRequested) -> Output:
        return labelled(found[0], self.contract.labels, request.top)

    def _open(self, root: Path) -> None:
        check_labels(self.contract)


class Transcriber(SoundEngine):
    """speech-recognition by connectionist temporal classification: the best token of each frame, decoded."""

    def run(self, rows: Sequence[Row]) -> Sequence[Any]:
        logits = self._run(rows)
        if logits.ndim != 3:
            raise Rejected(f"the model gives {logits.shape}, not [batch, frames, vocabulary]")
        best = logits.argmax(axis=-1)
        return [(best[at].tolist(), logits[at, :1]) for at in range(len(rows))]

    def read(self, prepared: Prepared, found: Sequence[Any], request: InferenceRequested) -> Output:
        ids, sample = found[0]
        check_finite(sample)
        return Output(text=self._tokenizer.decode(ids, skip_special_tokens=False))  # the decoder needs the blanks

    def _open(self, root: Path) -> None:
        if self.contract.blank_token_id is None:
            raise Rejected("llmos.json names no blank token", remedy="Export the model again.")
        self._tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
