"""The training loop: exact, resumable at any step, guarded, and as good as transformers' Trainer."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from llmos.contracts.jobs import TrainSettings
from llmos.errors import LlmosError
from llmos_trainer import adapters, checkpoints, pretrained
from llmos_trainer.batches import BatchOrder, draw, plan
from llmos_trainer.datasets import load_dataset, write_dataset
from llmos_trainer.orders import DRAIN, STOP, Failed, Finished, Progressed, Snapshotted, Stopped, TrainOrder
from llmos_trainer.rows import Row
from llmos_trainer.training import run

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks for it
SETTINGS = TrainSettings(epochs=2, batch_size=8, learning_rate=1e-3, max_length=32)
Train = Callable[..., Any]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, rows_of: Any) -> Path:
    folder = tmp_path_factory.mktemp("data") / "dataset"
    counts = {"train": 96, "validation": 24, "test": 24}
    write_dataset(
        folder,
        {name: [Row(1, **row) for row in rows_of(count, seed=at)] for at, (name, count) in enumerate(counts.items())},
    )
    return folder


@pytest.fixture(autouse=True)
def report_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmos_trainer.reporting.EVERY_S", 0.0)


@pytest.fixture
def train(tape: Any, dataset: Path, tiny_model: Path, tmp_path: Path) -> Train:
    """Train in this process; the last report. Snapshots are taken at every step when `every` is 0."""
    runs = iter(range(100))

    def do(settings: TrainSettings = SETTINGS, *, every: float = 1e9, resume: Path | None = None, **more: Any) -> Any:
        values = {"dataset": str(dataset), "base": str(tiny_model), "recipe": "r", "device": "cpu"} | more
        work = tmp_path / f"work-{next(runs)}"
        order = TrainOrder(
            task="t", work=str(work), settings=settings, checkpoint_every_s=every, resume=str(resume or ""), **values
        )
        run(msgspec.json.encode(order), tape)
        return tape.last

    return do


def digest(done: Any) -> str:
    """Of all files of the model."""
    assert isinstance(done, Finished), done
    content = [(path.name, path.read_bytes()) for path in sorted(Path(done.trees["model"]).iterdir())]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def snapshots(tape: Any) -> list[Snapshotted]:
    return [report for report in tape.reports if isinstance(report, Snapshotted)]


def test_a_run_learns_and_says_what_it_learned(train: Train, tape: Any) -> None:
    done = train(msgspec.structs.replace(SETTINGS, epochs=12, learning_rate=3e-3))
    assert done.metrics["accuracy"] > 0.5
    assert done.metrics["test_accuracy"] > 0.5
    assert set(done.metrics) == {
        "accuracy", "f1", "loss", "test_accuracy", "test_f1", "test_loss", "steps", "best_step"
    }  # fmt: skip
    progress = [report for report in tape.reports if isinstance(report, Progressed)]
    assert progress[0].phase == "loading"
    last = progress[-1]
    assert (last.step, last.steps, last.epoch, last.fraction) == (144, 144, 12.0, 1.0)
    assert set(last.metrics) >= {"loss", "accuracy", "learning_rate", "steps_per_second", "validation_accuracy"}


def test_the_model_reads_back_with_its_labels(train: Train) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(train().trees["model"], local_files_only=True)
    assert model.config.id2label == {0: "billing", 1: "shipping", 2: "technical"}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_resumed_from_any_checkpoint_ends_with_the_same_bytes(train: Train, tape: Any, method: str) -> None:
    settings = msgspec.structs.replace(SETTINGS, method=method)
    undisturbed = digest(train(settings))
    assert digest(train(settings, every=0.0)) == undisturbed
    taken = snapshots(tape)
    assert {1, 12, 24} <= {at.step for at in taken} | {1}
    for at in taken[:: max(1, len(taken) // 5)]:
        assert digest(train(settings, resume=Path(at.path))) == undisturbed


def test_a_drained_run_leaves_a_checkpoint_of_its_very_step(train: Train, tape: Any) -> None:
    undisturbed = digest(train())
    tape.when = lambda report: DRAIN if isinstance(report, Snapshotted) else None
    stopped = train(every=0.0)
    assert isinstance(stopped, Stopped)
    assert 0 < stopped.step < 24
    tape.when = lambda report: None
    tape.commands.clear()
    assert snapshots(tape)[-1].step == stopped.step
    assert digest(train(resume=Path(snapshots(tape)[-1].path))) == undisturbed


@pytest.mark.parametrize("phase", ["loading", "evaluating", "saving"])
def test_a_run_is_drained_in_any_phase(train: Train, tape: Any, phase: str) -> None:
    undisturbed = digest(train())
    told = [DRAIN]
    tape.when = lambda report: told.pop() if told and isinstance(report, Progressed) and report.phase == phase else None
    stopped = train()
    tape.commands.clear()
    resume = Path(snapshots(tape)[-1].path) if phase != "loading" else None
    assert isinstance(stopped, Finished if phase == "saving" else Stopped)
    assert digest(train(resume=resume)) == undisturbed


def test_a_cancelled_run_ends_before_its_next_step(train: Train, tape: Any) -> None:
    tape.when = lambda report: STOP if isinstance(report, Progressed) and report.phase == "training" else None
    stopped = train(msgspec.structs.replace(SETTINGS, epochs=None, steps=100_000))
    assert isinstance(stopped, Stopped)
    said = next(r.step for r in tape.reports if isinstance(r, Progressed) and r.phase == "training")
    assert stopped.step == said
    assert all(taken.step % 12 == 0 for taken in snapshots(tape)), "no checkpoint but those of epochs"


def test_a_checkpoint_of_another_recipe_is_not_resumed(train: Train, tape: Any) -> None:
    train(recipe="other", every=0.0)
    taken = snapshots(tape)[0]
    assert digest(train(resume=Path(taken.path))) == digest(train())
    assert checkpoints.read(Path(taken.path), "r") is None


def test_the_output_is_the_best_epoch_and_not_the_last(train: Train, tape: Any) -> None:
    # A rate that is far too high after a good start: later epochs forget what the first ones learned.
    done = train(msgspec.structs.replace(SETTINGS, epochs=6, learning_rate=0.03, warmup=0.0))
    evaluated = [
        r.metrics["validation_accuracy"]
        for r in tape.reports
        if isinstance(r, Progressed) and "validation_accuracy" in r.metrics
    ]
    assert done.metrics["accuracy"] == max(evaluated)


def test_a_run_that_diverges_fails_for_good_and_names_step_and_rate(train: Train) -> None:
    failed = train(msgspec.structs.replace(SETTINGS, learning_rate=1e30, warmup=0.0))
    assert isinstance(failed, Failed)
    assert not failed.retryable
    assert (failed.problem.code, failed.problem.param) == ("diverged", "train.learning_rate")
    assert "step 1 (learning rate 9.58e+29)" in failed.problem.message
    assert "Lower train.learning_rate" in failed.problem.remedy


def test_an_error_of_the_machine_is_said_and_may_be_tried_again(train: Train, tmp_path: Path) -> None:
    failed = train(dataset=str(tmp_path / "lost"))
    assert isinstance(failed, Failed)
    assert failed.retryable
    assert failed.problem.message.startswith("FileNotFoundError: ")


def test_a_diverged_state_is_never_checkpointed(train: Train, tape: Any) -> None:
    train(msgspec.structs.replace(SETTINGS, learning_rate=1e30, warmup=0.0), every=0.0)
    for taken in snapshots(tape):
        tensors = load_file(Path(taken.path) / "weights.safetensors")
        assert taken.step <= 1, taken
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_steps_can_end_within_an_epoch(train: Train) -> None:
    done = train(msgspec.structs.replace(SETTINGS, epochs=None, steps=5))
    assert (done.metrics["steps"], done.metrics["best_step"]) == (5, 5)


def test_lora_leaves_a_plain_model_whose_body_has_moved(train: Train, tiny_model: Path) -> None:
    done = train(msgspec.structs.replace(SETTINGS, method="lora"))
    merged = load_file(Path(done.trees["model"]) / "model.safetensors")
    assert not any("lora" in name or "modules_to_save" in name for name in merged)
    before = load_file(tiny_model / "model.safetensors")
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, merged[f"bert.{name}"])}
    assert any("query" in name for name in moved)
    assert not any("embeddings" in name or "LayerNorm" in name for name in moved)


def test_merging_keeps_the_logits_of_the_adapted_model(tiny_model: Path) -> None:
    loaded = pretrained.load(tiny_model, ["a", "b"], seed=1)
    adapted = adapters.attach(loaded.model, loaded.fresh, seed=1).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
        probe = {"input_ids": torch.arange(4, 24).reshape(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
        before = adapted(**probe).logits
        after = adapters.merge(adapted, probe)(**probe).logits
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_a_merge_that_changes_the_logits_is_refused(tiny_model: Path) -> None:
    class Forgetful(torch.nn.Module):
        """An adapted model whose merge loses the adapters."""

        def __init__(self) -> None:
            super().__init__()
            self.adapted, self.plain = (pretrained.load(tiny_model, ["a", "b"], seed=seed).model for seed in (1, 2))

        def forward(self, **inputs: torch.Tensor) -> Any:
            return self.adapted(**inputs)

        def merge_and_unload(self, safe_merge: bool) -> Any:
            return self.plain

    with pytest.raises(LlmosError, match="merging the adapter changed the logits"):
        adapters.merge(Forgetful(), {"input_ids": torch.tensor([[2, 3]])})


def test_equal_runs_leave_no_trace_of_when_and_where(train: Train, tmp_path: Path, tiny_model: Path) -> None:
    first = train()
    elsewhere = Path(shutil.copytree(tiny_model, tmp_path / "elsewhere"))
    assert digest(train(base=str(elsewhere))) == digest(first)
    config = json.loads((Path(first.trees["model"]) / "config.json").read_text())
    assert not any(str(tmp_path) in str(value) or str(tiny_model) in str(value) for value in config.values())


def test_losses_and_weights_are_those_of_transformers_trainer(
    train: Train, dataset: Path, model_builder: Any, tmp_path: Path
) -> None:
    """The oracle: the same batches through transformers' own loop, without dropout."""
    from transformers import Trainer, TrainingArguments

    base = model_builder(tmp_path / "still", dropout=0.0)
    settings = TrainSettings(epochs=2, batch_size=8, learning_rate=1e-3, max_length=32, warmup=0.0, weight_decay=0.1)
    rows = load_dataset(dataset)
    loaded = pretrained.load(base, rows.labels, draw(settings.seed, "weights") % 2**32).model
    tokenizer = pretrained.load_tokenizer(base, 32)
    encoded = [tokenizer.encode(text).ids for text, _ in rows.splits["train"]]
    laid = plan(len(encoded), settings)
    order = BatchOrder([len(ids) for ids in encoded], laid, settings)

    def batch(step: int) -> dict[str, torch.Tensor]:
        chosen = order.batch(step)
        longest = max(len(encoded[row]) for row in chosen)
        return {
            "input_ids": torch.tensor([encoded[row] + [0] * (longest - len(encoded[row])) for row in chosen]),
            "attention_mask": torch.tensor(
                [[1] * len(encoded[row]) + [0] * (longest - len(encoded[row])) for row in chosen]
            ),
            "labels": torch.tensor([rows.labels.index(rows.splits["train"][row][1]) for row in chosen]),
        }

    class SameBatches(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return [batch(step) for step in range(laid.steps)]

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"), max_steps=laid.steps, learning_rate=1e-3, weight_decay=0.1,
        max_grad_norm=1.0, lr_scheduler_type="linear", warmup_steps=0, logging_steps=1, save_strategy="no",
        report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    oracle = SameBatches(model=loaded, args=arguments, train_dataset=encoded)
    oracle.train()
    done = train(settings, base=str(base), every=0.0)
    mine = load_file(Path(done.trees["model"]) / "model.safetensors")
    assert done.metrics["best_step"] == laid.steps
    for name, tensor in oracle.model.state_dict().items():
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=2e-5)
