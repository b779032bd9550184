"""The export of a text classifier, from the trained model's folder to the artifact's, a phase at a time."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import llmos
from llmos.contracts.models import ServingContract
from llmos.errors import Rejected
from llmos_exporter import graphs
from llmos_exporter.batches import Batch, Logits, by_length, pad, probes, sample
from llmos_exporter.classifier import TOKENIZER, Exported, Trained, read_rows, read_tokenizer
from llmos_exporter.core import unfaithful
from llmos_exporter.measuring import Parity, latency_ms, quality
from llmos_exporter.orders import ExportOrder, Finished
from llmos_exporter.precisions import PRECISIONS

CONTRACT = "llmos.json"
SPLIT = "test"
_DIGITS = 4  # of the metrics in the artifact: so many do not depend on the number of threads

Tell = Callable[[str, float], None]  # phase, share of it that is done
Probes = list[tuple[Batch, Logits]]


def export(order: ExportOrder, tell: Tell) -> Finished:
    """Make `model.onnx`, `tokenizer.json` and `llmos.json` in the new folder `order.result`, and measure them.

    Raises `Rejected` when model or dataset can't be used, or when no route gives a graph that is the model.
    """
    work, result = Path(order.work), Path(order.result)
    tell("loading", 0.0)
    trained = Trained(Path(order.model))
    tokenizer = read_tokenizer(Path(order.model), order.max_length)
    rows = read_rows(Path(order.dataset), SPLIT, tokenizer, trained.labels)
    known = [(batch, trained.logits(batch)) for batch in probes(rows.ids, trained.pad, order.max_length)]

    fp32, parity = _faithful(order, trained, sample(rows.ids, trained.pad), known, work, tell)
    if order.precision != "fp32":
        tell("quantising", 0.0)
    graph = PRECISIONS[order.precision](fp32, work / order.precision)
    exported = Exported(graph, order.threads)
    tell("parity", 0.0)
    if graph is not fp32:
        parity = _compare(exported, known)

    batches = [(numbers, pad([rows.ids[row] for row in numbers], trained.pad)) for numbers in by_length(rows.ids)]
    wanted = _evaluate(trained, batches, lambda share: tell("evaluating", share / 2))
    got = _evaluate(exported, batches, lambda share: tell("evaluating", (1 + share) / 2))
    parity.add(wanted, got)
    if graph is fp32 and (reasons := unfaithful(parity.numbers())):
        raise _unfaithful(f"the {SPLIT} split: {' and '.join(reasons)}")
    measured = quality(got, rows.labels)
    latency = latency_ms(lambda text: exported.answer(tokenizer, text, trained.pad), rows.texts)

    contract = ServingContract(
        task=order.task,
        labels=trained.labels,
        max_length=order.max_length,
        pad_token_id=trained.pad,
        pad_token=tokenizer.id_to_token(trained.pad) or "",
        input_names=list(graphs.INPUTS),
        output_name=graphs.OUTPUT,
        precision=order.precision,
        source=order.source,
        base=order.base,
        dataset=order.dataset_address,
        gate=order.gate,
        metrics={name: round(value, _DIGITS) for name, value in measured.items()},
        opset=graphs.opset(graph),
        versions={"llmos": llmos.__version__}
        | {name: version(name) for name in ("onnx", "onnxruntime", "torch", "transformers")},
    )
    _assemble(result, graph, tokenizer, contract)
    size = _size(result)
    return Finished(
        labels=trained.labels,
        source=quality(wanted, rows.labels),
        metrics=measured | {"latency_ms_p50": latency, "size_bytes": float(size)},
        parity=parity.numbers(),
        size=size,
        source_size=_size(Path(order.model)),
    )


def _faithful(
    order: ExportOrder, trained: Trained, traced: Batch, known: Probes, work: Path, tell: Tell
) -> tuple[Path, Parity]:
    """The fp32 graph of the first route whose logits are the model's at every shape, and how near they are."""
    refused = []
    for number, (name, route) in enumerate(graphs.ROUTES.items()):
        tell("exporting", number / len(graphs.ROUTES))
        try:
            graph = graphs.export(route, trained.model, traced, work / name)
            parity = _compare(Exported(graph, order.threads), known)
        except Exception as error:  # noqa: BLE001 — onnxruntime raises bare exceptions; another route may give a better graph
            refused.append(f"{name}: {error}")
            continue
        if not (reasons := unfaithful(parity.numbers())):
            return graph, parity
        refused.append(f"{name}: {' and '.join(reasons)}")
    raise _unfaithful("; ".join(refused))


def _compare(exported: Exported, known: Probes) -> Parity:
    parity = Parity()
    for batch, wanted in known:
        parity.add(wanted, exported.logits(batch))
    return parity


def _unfaithful(what: str) -> Rejected:
    return Rejected(
        f"no ONNX graph gives what the trained model gives. {what}",
        code="unfaithful",
        remedy="Use another architecture, or report this one.",
    )


def _evaluate(
    model: Trained | Exported, batches: list[tuple[list[int], Batch]], done: Callable[[float], None]
) -> Logits:
    """The logits of all rows in their order, float32 `[rows, labels]`."""
    order: list[int] = []
    found: list[Logits] = []
    for at, (numbers, batch) in enumerate(batches):
        done(at / len(batches))
        order += numbers
        found.append(model.logits(batch))
    logits = np.concatenate(found)
    in_order = np.empty_like(logits)
    in_order[order] = logits
    return in_order


def _assemble(result: Path, graph: Path, tokenizer: Any, contract: ServingContract) -> None:
    """Move everything that serving needs into the new folder. The tokenizer's file cuts and pads as serving does."""
    result.mkdir(parents=True)
    for name in (graphs.GRAPH, graphs.WEIGHTS):
        if (made := graph.with_name(name)).exists():
            made.rename(result / name)
    tokenizer.enable_padding(
        pad_id=contract.pad_token_id, pad_token=contract.pad_token, pad_type_id=contract.pad_type_id
    )
    tokenizer.save(str(result / TOKENIZER))
    # Every field: msgspec omits what *is* the default, and whether an equal string is depends on where it came from.
    encoded = msgspec.json.encode(msgspec.structs.asdict(contract), order="sorted")
    (result / CONTRACT).write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
