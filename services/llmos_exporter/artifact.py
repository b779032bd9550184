"""The export of any model, from its folder to the artifact's, a phase at a time: one flow for every task."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import llmos
from llmos.contracts.models import Candidate, ServingContract
from llmos.errors import Rejected
from llmos_exporter import graphs
from llmos_exporter.core import choose, judge, unfaithful
from llmos_exporter.measuring import Parity, apart, latency_ms
from llmos_exporter.orders import ExportOrder, Finished
from llmos_exporter.precisions import PRECISIONS, candidates
from llmos_exporter.sources import Files, Numbers, Row, Source

CONTRACT = "llmos.json"
TEST, CHOICE = "test", "validation"
_DIGITS = 4  # of the metrics in the artifact: so many do not depend on the number of threads

Tell = Callable[[str, float], None]  # phase, share of it that is done
Answer = Callable[[Sequence[Row]], list[Numbers]]
Probes = list[tuple[list[Row], list[Numbers]]]


class Measured(NamedTuple):
    """Metrics of the model and of its artifact on one split, and the parity of the two."""

    source: dict[str, float]
    metrics: dict[str, float]
    parity: dict[str, float]


def export(order: ExportOrder, source: Source, tell: Tell) -> Finished:
    """Make graphs, tokenizer and `llmos.json` in the new folder `order.result`, and measure them.

    Raises `Rejected` when model or dataset can't be used, or when no route gives a graph that is the model.
    """
    work, result = Path(order.work), Path(order.result)
    rows = source.rows(TEST)
    probes = [(company, source.trained(company)) for company in source.probes(rows)]
    whole = _faithful(order, source, probes, work, tell)

    tried: list[Candidate] = []  # by auto
    precision = order.precision
    made: dict[str, Files] = {"fp32": whole}

    def converted(name: str) -> Files:
        if name not in made:
            tell("quantising", 0.0)
            made[name] = {
                part: PRECISIONS[name](path, _new(work / name) / path.name, order.target)
                for part, path in whole.items()
            }
        return made[name]

    if precision == "auto":
        chosen = source.rows(CHOICE)
        names = candidates(order.target, decoder=source.decoder)
        tried = [_candidate(order, source, converted(name), name, chosen, probes) for name in names]
        precision = choose(tried, order.target)
        tried = [msgspec.structs.replace(one, chosen=one.precision == precision) for one in tried]

    files = converted(precision)
    answers = source.exported(files, order.threads)
    tell("parity", 0.0)
    found = _measure(source, answers, rows, probes, tell)
    if precision == "fp32" and (reasons := unfaithful(found.parity)):
        raise _unfaithful(f"the {TEST} split: {' and '.join(reasons)}")
    latency = latency_ms(lambda row: source.answer(answers, row), rows)

    contract = ServingContract(
        **{"labels": source.labels}
        | source.contract(precision)
        | {
            "task": order.task,
            "precision": precision,
            "target": order.target,
            "source": order.source,
            "base": order.base,
            "dataset": order.dataset_address,
            "gate": order.gate,
            "metrics": {name: round(value, _DIGITS) for name, value in found.metrics.items()},
            "opset": max(graphs.opset(path) for path in files.values()),
            "files": {part: path.name for part, path in files.items()},
            "versions": {"llmos": llmos.__version__}
            | {name: version(name) for name in ("onnx", "onnxruntime", "torch", "transformers")},
        }
    )
    _assemble(result, files, source, contract)
    size = _size(result)
    return Finished(
        labels=source.labels,
        source=found.source,
        metrics=found.metrics | {"latency_ms_p50": latency, "size_bytes": float(size)},
        parity=found.parity,
        size=size,
        source_size=_size(Path(order.model)),
        precision=precision,
        candidates=tried,
    )


def _faithful(order: ExportOrder, source: Source, probes: Probes, work: Path, tell: Tell) -> Files:
    """The fp32 graphs of the first route whose answers are the model's in every company."""
    refused = []
    routes = source.routes()
    for number, (name, route) in enumerate(routes.items()):
        tell("exporting", number / len(routes))
        try:
            files = route(_new(work / name))
            parity = _compare(source, source.exported(files, order.threads), probes)
        except Exception as error:  # noqa: BLE001 — onnxruntime raises bare exceptions; another route may give a better graph
            refused.append(f"{name}: {error}")
            continue
        if not (reasons := unfaithful(parity.numbers())):
            return files
        refused.append(f"{name}: {' and '.join(reasons)}")
    raise _unfaithful("; ".join(refused))


def _compare(source: Source, answers: Answer, probes: Probes) -> Parity:
    parity = Parity(source.agreement)
    for company, wanted in probes:
        parity.add(wanted, answers(company))
    return parity


def _unfaithful(what: str) -> Rejected:
    return Rejected(
        f"no ONNX graph gives what the trained model gives. {what}",
        code="unfaithful",
        remedy="Use another architecture, or report this one.",
    )


def _measure(source: Source, answers: Answer, rows: Sequence[Row], probes: Probes, tell: Tell) -> Measured:
    """Both models on all rows, and on the probes for parity; `company_diff` is what neighbours change of an answer."""
    parity = _compare(source, answers, probes)
    qualities = source.quality(), source.quality(answers)
    done = 0
    for batch in source.batches(rows):
        tell("evaluating", done / len(rows))
        some = [rows[at] for at in batch]
        wanted, got = source.trained(some), answers(some)
        parity.add(wanted, got)
        for quality, found in zip(qualities, (wanted, got), strict=True):
            quality.add(some, found)
        done += len(batch)
    company = max((company for company, _ in probes), key=len)
    alone = [answers([row])[0] for row in company]
    further = {"company_diff": apart(alone, answers(company))} | source.beyond(answers, rows)
    return Measured(qualities[0].numbers(), qualities[1].numbers(), parity.numbers() | further)


def _candidate(
    order: ExportOrder, source: Source, files: Files, name: str, rows: Sequence[Row], probes: Probes
) -> Candidate:
    """Measure one precision on the split by which it is chosen."""
    answers = source.exported(files, order.threads)
    found = _measure(source, answers, rows, probes, lambda *_: None)
    size = sum(part.stat().st_size for path in files.values() for part in graphs.parts(path))
    latency = latency_ms(lambda row: source.answer(answers, row), rows)
    metrics = found.metrics | {"latency_ms_p50": latency, "size_bytes": float(size)}
    return Candidate(name, metrics, found.parity, judge(order.gate, metrics | found.parity))


def _assemble(result: Path, files: Files, source: Source, contract: ServingContract) -> None:
    """Move everything that serving needs into the new folder."""
    result.mkdir(parents=True)
    for path in files.values():
        for part in graphs.parts(path):
            part.rename(result / part.name)
    source.save(result)
    # Every field: msgspec omits what *is* the default, and whether an equal string is depends on where it came from.
    plain: Any = msgspec.to_builtins(msgspec.structs.asdict(contract))
    encoded = msgspec.json.encode(plain, order="sorted")
    (result / CONTRACT).write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
