"""Tiny random classifiers of several families, and a dataset of real sentences' shape, made on the spot."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from exporter_material import LABELS, make_dataset, make_decoder, make_media, make_model, make_writer, write_splits
from llmos.contracts.models import ServingContract
from llmos_exporter.exporting import export
from llmos_exporter.orders import ExportOrder, Finished


@pytest.fixture(scope="session")
def model_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a random encoder with another head."""

    def make(architecture: str, head: str, labels: Sequence[str] = LABELS) -> Path:
        return make_model(architecture, tmp_path_factory.mktemp(head), head=head, labels=labels)

    return make


@pytest.fixture(scope="session")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a random decoder by its architecture, made once."""
    root = tmp_path_factory.mktemp("decoders")
    return lambda architecture: (
        root / architecture if (root / architecture).exists() else make_decoder(architecture, root / architecture)
    )


class Exported(NamedTuple):
    done: Finished
    contract: ServingContract
    folder: Path
    order: ExportOrder


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Exported]:
    """Export a model for a task, gated by rows; what was measured, and the artifact."""

    def do(
        task: str,
        model: Path,
        rows: list[dict[str, Any]],
        precision: str = "fp32",
        target: str = "cpu",
        length: int = 0,
    ) -> Exported:
        room = tmp_path / f"{task}-{precision}-{target}"
        asked = ExportOrder(
            task=task, precision=precision, model=str(model), dataset=str(write_splits(tmp_path / "rows", rows)),
            work=str(room / "work"), result=str(room / "result"), max_length=length, threads=1, gate={}, source="",
            base="", dataset_address="", target=target,
        )  # fmt: skip
        done = export(asked, lambda *_: None)
        contract = msgspec.json.decode((room / "result" / "llmos.json").read_bytes(), type=ServingContract)
        return Exported(done, contract, room / "result", asked)

    return do


@pytest.fixture(scope="session")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a random encoder-decoder by its architecture, made once."""
    root = tmp_path_factory.mktemp("writers")
    return lambda architecture: (
        root / architecture if (root / architecture).exists() else make_writer(architecture, root / architecture)
    )


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a random model of pictures or sounds, made once."""
    root = tmp_path_factory.mktemp("media")
    return lambda architecture: (
        root / architecture if (root / architecture).exists() else make_media(architecture, root / architecture)
    )


@pytest.fixture
def rows_in(tmp_path: Path) -> Callable[[list[dict[str, Any]]], Path]:
    return lambda rows: write_splits(tmp_path / "rows", rows)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a random model by its architecture, made once."""
    root = tmp_path_factory.mktemp("models")
    return lambda architecture: (
        root / architecture if (root / architecture).exists() else make_model(architecture, root / architecture)
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset")
