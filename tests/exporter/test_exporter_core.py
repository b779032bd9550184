"""What an exporter decides, and what it measures with: rules in words."""

import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.contracts.jobs import Bound, DataSource, DeploySettings, JobSpec, ModelSource
from llmos.contracts.models import Candidate, ModelRecord, ModelVersion
from llmos.contracts.tasks import TaskProgressed
from llmos.errors import Rejected
from llmos_exporter import core
from llmos_exporter.measuring import Parity, latency_ms, same_label
from llmos_exporter.process import private_memory
from llmos_exporter.quality import Classes
from llmos_exporter.sources import by_size, evenly, in_company
from llmos_exporter.texts import Text


def version(number: int, job: str = "job", tenant: str = "acme") -> ModelVersion:
    return ModelVersion("tickets", number, tenant, "text-classification", "sha256:0", job, 0.0)


def test_a_gate_without_bounds_is_passed() -> None:
    assert core.judge({}, {}) == []


def test_both_ends_of_a_bound_pass() -> None:
    gate = {"accuracy": Bound(min=0.9, max=0.9), "loss": Bound()}
    assert core.judge(gate, {"accuracy": 0.9, "loss": 3.0}) == []


def test_every_reason_is_given_by_name_with_the_numbers() -> None:
    gate = {"loss": Bound(max=0.5), "accuracy": Bound(min=0.9), "f1": Bound(min=0.5)}
    assert core.judge(gate, {"accuracy": 0.85, "f1": 0.6, "loss": 0.75}) == [
        "accuracy is 0.85, below the gate's minimum of 0.9",
        "loss is 0.75, above the gate's maximum of 0.5",
    ]


def test_a_metric_that_was_not_measured_is_a_reason_that_names_those_that_were() -> None:
    assert core.judge({"bleu": Bound(min=1)}, {"f1": 1.0, "accuracy": 1.0}) == [
        "bleu was not measured; measured were accuracy, f1"
    ]


@pytest.mark.parametrize("bound", [Bound(min=0.0), Bound(max=1.0)])
def test_not_a_number_passes_no_bound(bound: Bound) -> None:
    assert len(core.judge({"loss": bound}, {"loss": math.nan})) == 1


@given(st.dictionaries(st.sampled_from("abc"), st.floats(-2, 2)), st.floats(-2, 2), st.floats(-2, 2))
def test_a_gate_is_passed_exactly_when_every_bound_holds(metrics: dict[str, float], low: float, high: float) -> None:
    gate = {"a": Bound(min=low), "b": Bound(max=high)}
    holds = "a" in metrics and metrics["a"] >= low and "b" in metrics and metrics["b"] <= high
    assert (core.judge(gate, metrics) == []) == holds


def test_fp32_must_be_near_and_agree() -> None:
    assert core.unfaithful({"max_abs_diff": 1e-3, "agreement": 0.999}) == []
    assert core.unfaithful({"max_abs_diff": 2e-3, "agreement": 0.5}) == [
        "its logits differ by up to 0.002 (limit 0.001)",
        "it gives the same label for 0.5000 of the rows (limit 0.999)",
    ]
    assert len(core.unfaithful({"max_abs_diff": math.nan, "agreement": math.nan})) == 2


def test_a_model_is_named_as_it_is_deployed_else_as_its_job() -> None:
    spec = JobSpec("run", ModelSource("hf:a/b"), DataSource("file:///x"))
    assert core.model_name(spec) == "run"
    assert core.model_name(JobSpec("run", spec.model, spec.data, deploy=DeploySettings("tickets"))) == "tickets"


def test_versions_count_on_from_the_newest() -> None:
    assert core.next_version(None) == 1
    assert core.next_version(ModelRecord("tickets", "acme", [version(1), version(7)])) == 8
    record = core.with_version(core.with_version(None, version(1)), version(2, "other"))
    assert (record.name, record.tenant, [known.version for known in record.versions]) == ("tickets", "acme", [1, 2])
    found = core.registered_for(record, "other")
    assert found is not None and found.version == 2
    assert core.registered_for(record, "third") is None and core.registered_for(None, "job") is None


def test_a_name_is_its_first_tenants() -> None:
    record = ModelRecord("tickets", "acme")
    core.check_owner(record, "tickets", "acme")
    core.check_owner(None, "tickets", "evil")
    with pytest.raises(Rejected, match="'tickets' belongs to another tenant"):
        core.check_owner(record, "tickets", "evil")


def test_the_whole_grows_with_every_phase_and_within_it() -> None:
    steps = [core.fraction(phase, share) for phase in core.PHASES for share in (0.0, 0.5, 1.0)]
    assert steps == sorted(steps) and steps[0] == 0.0 and steps[-1] == 1.0
    assert core.fraction("evaluating", 7.0) == core.PHASES["registering"]


def said(phase: str) -> TaskProgressed:
    return TaskProgressed("t", "j", "acme", "export", 1, "n1", phase)


def test_progress_is_said_at_once_then_at_most_every_second_and_then_the_newest() -> None:
    pace = core.Pace()
    assert pace.due(0.0) is None
    pace.hear(said("loading"))
    assert pace.due(0.0) == said("loading")
    pace.hear(said("exporting"))
    pace.hear(said("parity"))
    assert pace.due(0.9) is None
    assert pace.due(1.0) == said("parity")
    assert pace.due(5.0) is None


def test_without_news_the_last_progress_is_repeated_every_ten_seconds() -> None:
    pace = core.Pace()
    pace.hear(said("loading"))
    assert pace.due(100.0) == said("loading")
    assert pace.due(109.9) is None
    assert pace.due(110.0) == said("loading")
    assert pace.due(110.1) is None


def test_parity_counts_every_batch_and_the_farthest_logit() -> None:
    parity = Parity(same_label)
    parity.add(np.array([[1.0, 0.0]], np.float32), np.array([[1.0, 0.5]], np.float32))
    parity.add(np.array([[0.0, 1.0], [0.0, 1.0]], np.float32), np.array([[2.0, 1.0], [0.0, 1.0]], np.float32))
    assert parity.numbers() == {
        "max_abs_diff": 2.0,
        "mean_abs_diff": pytest.approx(2.5 / 6),
        "agreement": pytest.approx(2 / 3),
        "rows": 3.0,
    }


@pytest.mark.parametrize("got", [np.full(2, np.nan), np.full(2, np.inf), np.zeros(3), np.zeros((2, 2))])
def test_what_is_no_number_or_of_another_shape_is_infinitely_far(got: np.ndarray) -> None:
    parity = Parity(same_label)
    parity.add([np.array([1.0, 0.0], np.float32)], [got.astype(np.float32)])
    assert parity.numbers()["max_abs_diff"] == math.inf and core.unfaithful(parity.numbers())


@settings(deadline=None)  # the first call imports scikit-learn
@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.floats(-9, 9, width=32), min_size=4, max_size=4)), min_size=1))
def test_quality_is_what_scikit_learn_says(rows: list[tuple[int, list[float]]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    truth = [label for label, _ in rows]
    logits = np.array([row for _, row in rows], np.float32)
    exact = np.exp(logits.astype(np.float64))
    classes = Classes()
    classes.add([Text((), [], label) for label in truth], list(logits))
    assert classes.numbers() == {
        "accuracy": pytest.approx(accuracy_score(truth, logits.argmax(1))),
        "f1": pytest.approx(f1_score(truth, logits.argmax(1), average="macro")),
        "loss": pytest.approx(log_loss(truth, exact / exact.sum(1, keepdims=True), labels=[0, 1, 2, 3]), abs=1e-9),
    }


def test_latency_is_of_different_texts_after_a_warm_up() -> None:
    asked: list[str] = []
    assert latency_ms(asked.append, [str(number) for number in range(200)]) >= 0
    assert asked[:3] == ["0", "1", "2"] and len(set(asked[3:])) == len(asked[3:]) == 64
    assert latency_ms(asked.append, ["one"]) >= 0


def test_private_memory_is_what_a_process_has_written_itself() -> None:
    before = private_memory(os.getpid())
    held = bytearray(b"x") * (64 << 20)
    assert before > 0 and private_memory(os.getpid()) - before > 60 << 20
    assert private_memory(0) == 0 and len(held) == 64 << 20


sizes = st.lists(st.integers(0, 200), min_size=1, max_size=150)


@given(sizes)
def test_every_row_is_in_one_batch_of_bounded_size(rows: list[int]) -> None:
    batches = list(by_size(rows, room=400))
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    assert all(len(batch) <= 64 and len(batch) * max(rows[row] for row in batch) <= 400 for batch in batches)


@given(sizes)
def test_probes_are_alone_in_threes_and_in_eights(rows: list[int]) -> None:
    some = evenly(rows, lambda row: row)
    companies = in_company(some)
    assert {1, min(3, len(some)), min(8, len(some))} <= {len(company) for company in companies}
    assert {min(rows)} <= set(some) <= set(rows) and {row for company in companies for row in company} == set(some)


def candidate(precision: str, latency: float, size: float, *reasons: str) -> Candidate:
    return Candidate(precision, {"latency_ms_p50": latency, "size_bytes": size}, {}, list(reasons))


def test_auto_keeps_the_fastest_that_passes_and_for_the_edge_the_smallest() -> None:
    tried = [candidate("fp32", 4, 100), candidate("int8", 1, 30), candidate("int4", 2, 20)]
    assert core.choose(tried, "cpu") == "int8"
    assert core.choose(tried, "edge") == "int4"
    assert core.choose([tried[0], candidate("int8", 1, 30, "accuracy is 0.5")], "cpu") == "fp32"


def test_auto_keeps_the_most_exact_when_none_passes() -> None:
    tried = [candidate("fp32", 4, 100, "no"), candidate("int8", 1, 30, "no")]
    assert core.choose(tried, "cpu") == "fp32"


def test_a_decoder_that_writes_another_text_is_not_the_model() -> None:
    parity = {"max_abs_diff": 0.0, "agreement": 1.0}
    assert core.unfaithful(parity | {"greedy": 1.0}) == []
    assert core.unfaithful(parity | {"greedy": 0.875}) == [
        "it writes the same text for 0.8750 of the prompts (limit 1)"
    ]
