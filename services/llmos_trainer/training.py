"""Training in a child process: the loop, from a dataset and a base model to a model folder and its metrics.

Row order and dropout are pure functions of seed and step, so that a run resumed from any checkpoint ends with the
very bytes of an undisturbed one, on the same kind of device with the same number of threads.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from llmos.errors import Rejected
from llmos_trainer import adapters, checkpoints, device, pretrained
from llmos_trainer.batches import BatchOrder, draw, plan
from llmos_trainer.checkpoints import Position, Writer
from llmos_trainer.core import GangBroken
from llmos_trainer.datasets import load_dataset
from llmos_trainer.evaluation import Encoded, collate, evaluate
from llmos_trainer.gang import Gang
from llmos_trainer.gradients import GradientSum
from llmos_trainer.meter import Meter
from llmos_trainer.orders import Finished, Listening, Snapshotted, Stopped, TrainOrder
from llmos_trainer.reporting import Channel, Reporter, Stop, out_of_memory, reported

_TOKENIZE_ROWS = 1000


def run(args: bytes, channel: Channel) -> None:
    """The child's entry: `args` is a `TrainOrder`."""
    reporter = Reporter(channel)
    with reported(reporter):
        order = msgspec.json.decode(args, type=TrainOrder)
        try:
            Training(order, reporter).run()
        except torch.OutOfMemoryError as error:
            problem = out_of_memory("GPU memory")
            raise Rejected(problem.message, remedy=problem.remedy, code=problem.code, param=problem.param) from error


class Training:
    """One run of a child: everything that it holds in memory."""

    def __init__(self, order: TrainOrder, reporter: Reporter) -> None:
        self._order = order
        self._reporter = reporter
        self._settings = order.settings
        self._device = device.prepare(order)
        self._gang = Gang(order.gang, self._device, lambda port: reporter.send(Listening(port))) if order.gang else None
        reporter.progress("loading")
        self._base = Path(order.base)
        self._work = Path(order.work)
        dataset = load_dataset(Path(order.dataset))
        self._labels = dataset.labels
        self._model = self._load()
        self._splits = {name: self._encode(name, rows) for name, rows in dataset.splits.items()}
        self._plan = plan(len(self._splits["train"].ids), self._settings)
        self._order_of_rows = BatchOrder(self._splits["train"].lengths, self._plan, self._settings)
        self._parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimizer = self._make_optimizer()
        self._position = Position(order.recipe, order.task)
        self._best: checkpoints.Tensors | None = None
        self._bad_step = torch.tensor(-1, device=self._device)
        self._meter = Meter(self._device)
        self._evaluation_s = 0.0
        self._writer = Writer(self._work, order.task, lambda step, path: reporter.send(Snapshotted(step, str(path))))
        self._next_snapshot = time.monotonic() + order.checkpoint_every_s
        if order.resume:
            self._resume(Path(order.resume))
        self._began = self._position.step
        self._sum: GradientSum | None = None

    def run(self) -> None:
        """Train, evaluate, save; or stop where the service says so."""
        try:
            if self._gang is not None:
                self._join(self._gang)
            self._train()
            self._finish()
        except Stop as stop:
            if stop.drain:
                self._save_now()
            self._reporter.send(Stopped(self._position.step))
        except GangBroken:
            if device.settles(self._device):
                self._save_now()
            raise

    def _save_now(self) -> None:
        """A checkpoint of the step that was reached, unless the weights in memory are no longer those in training."""
        if self._position.step > self._began and self._next_snapshot != float("inf"):
            self._snapshot()
        self._writer.wait()

    def _join(self, gang: Gang) -> None:
        """Begin as one with the others: same position, same weights."""
        self._reporter.progress("meeting")
        gang.meet(self._reporter.obey)
        step = self._position.step
        if gang.agree(step) != step or gang.agree(-step) != -step:
            raise GangBroken(f"the members would go on from different checkpoints, this one from step {step}")
        gang.share([tensor.detach() for tensor in checkpoints.trained(self._model).values()])
        self._sum = GradientSum(self._parameters, gang)

    def _obey(self) -> None:
        if self._gang is None:
            self._reporter.obey()
        else:
            self._reporter.obey(self._gang.agree)

    def _train(self) -> None:
        position, steps = self._position, self._plan.steps
        self._model.train()
        while True:
            if self._plan.ends_epoch(position.step) and position.evaluated < position.step:
                self._evaluate_epoch()
                self._snapshot()
            if position.step >= steps:
                break
            self._obey()
            self._step()
            if self._reporter.due():
                self._check_finite()
                self._report()
            if self._snapshot_due():
                self._snapshot()
        self._next_snapshot = float("inf")  # from here on the model in memory is no longer the one in training

    def _step(self) -> None:
        step = self._position.step
        rate = self._plan.rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        batch = self._order_of_rows.batch(step)
        mine, seed = batch, draw(self._settings.seed, "dropout", step)
        if self._gang is not None:  # rows of like length lie side by side: every member gets some of each
            mine = batch[self._gang.rank :: self._gang.world]
            seed = draw(self._settings.seed, "dropout", step, self._gang.rank)
        # A member without a row takes part all the same, with a weight of nothing.
        inputs, labels = collate(self._splits["train"], mine or batch[:1], self._device)
        torch.manual_seed(seed)
        with self._autocast():
            logits = self._model(**inputs).logits
        logits = logits.float()
        loss = torch.nn.functional.cross_entropy(logits, labels) * (len(mine) / len(batch))
        right = (logits.detach().argmax(dim=-1) == labels).sum() * bool(mine)
        if self._sum is not None:
            self._sum.begin()
        loss.backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        if self._sum is not None:
            both = torch.stack((loss, right.float()))
            self._sum.finish(both)
            loss, right = both
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.max_grad_norm or float("inf"))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        # Kept on the device: reading it in every step would make a GPU wait for the CPU.
        unsound = (self._bad_step < 0) & ~torch.isfinite(loss + norm)
        self._bad_step = torch.where(unsound, step, self._bad_step)
        self._meter.add(loss, right, len(batch))
        self._position.step = step + 1

    def _evaluate_epoch(self) -> None:
        """Evaluate on the validation split and keep the weights if they are the best: accuracy first, then loss."""
        self._check_finite()
        started = time.monotonic()
        self._meter.read()
        measured = self._evaluate("validation")
        self._model.train()
        position = self._position
        if not position.best or _rank(measured) > _rank(position.best):
            position.best_step, position.best = position.step, measured
            self._best = checkpoints.copied(checkpoints.trained(self._model))
        position.evaluated = position.step
        self._evaluation_s = time.monotonic() - started
        self._meter.read()
        self._meter.validation = measured
        self._report()

    def _evaluate(self, split: str, model: Any = None) -> dict[str, float]:
        def tick(share: float) -> None:
            self._obey()
            if self._reporter.due():
                self._report("evaluating")

        model = model or self._model
        measured = evaluate(model, self._splits[split], self._device, self._autocast, tick, self._gang)
        if measured["loss"] != measured["loss"] or measured["loss"] == float("inf"):
            raise _diverged(self._position.step, self._plan.rate(self._position.step - 1))
        return measured

    def _finish(self) -> None:
        assert self._best is not None
        checkpoints.restore(self._model, self._best)
        model = self._model
        if self._settings.method == "lora":
            split = self._splits["validation"]
            probe, _ = collate(split, range(min(8, len(split.ids))), self._device)
            model = adapters.merge(model, probe)
        metrics = self._evaluate("validation", model)
        metrics |= {f"test_{name}": value for name, value in self._evaluate("test", model).items()}
        metrics |= {"steps": float(self._plan.steps), "best_step": float(self._position.best_step)}
        if not self._first:
            self._reporter.send(Finished({}, metrics))
            return
        self._report("saving")
        folder = self._work / "model"
        model.to("cpu").save_pretrained(folder)
        pretrained.copy_tokenizer(self._base, folder)
        self._writer.wait()
        self._reporter.send(Finished({"model": str(folder)}, metrics))

    def _snapshot_due(self) -> bool:
        late = self._first and time.monotonic() >= self._next_snapshot
        return late and not self._writer.busy and not self._plan.ends_epoch(self._position.step)

    def _snapshot(self) -> None:
        self._check_finite()
        if not self._first:
            return
        self._writer.write(self._position, self._model, self._optimizer, self._best)
        self._next_snapshot = time.monotonic() + self._order.checkpoint_every_s

    def _resume(self, folder: Path) -> None:
        found = checkpoints.read(folder, self._order.recipe)
        if found is None:
            return
        position, tensors = found
        checkpoints.restore(self._model, tensors["weights"])
        checkpoints.restore_optimizer(self._model, self._optimizer, tensors["optimizer"])
        self._position = position
        self._best = tensors["best"] if position.best else None
        self._meter.validation = position.best

    @property
    def _first(self) -> bool:
        """Whether this process keeps and saves what all have in common."""
        return self._gang is None or self._gang.first

    def _check_finite(self) -> None:
        step = int(self._bad_step)
        if step >= 0:
            raise _diverged(step, self._plan.rate(step))

    def _report(self, phase: str = "training") -> None:
        step, steps = self._position.step, self._plan.steps
        metrics = self._meter.read()
        metrics["learning_rate"] = self._plan.rate(min(step, steps - 1))
        evaluations = -(-(steps - step) // self._plan.steps_per_epoch) + 2
        speed = metrics.get("steps_per_second")
        self._reporter.progress(
            phase,
            step=step,
            steps=steps,
            epoch=step / self._plan.steps_per_epoch,
            fraction=step / steps,
            eta=(steps - step) / speed + evaluations * self._evaluation_s if speed else None,
            metrics=metrics,
        )

    def _load(self) -> Any:
        loaded = pretrained.load(self._base, self._labels, draw(self._settings.seed, "weights") % 2**32)
        model = loaded.model
        if self._settings.method == "lora":
            model = adapters.attach(model, loaded.fresh, draw(self._settings.seed, "adapters") % 2**32)
        return model.to(self._device)

    def _encode(self, name: str, rows: list[tuple[str, str]]) -> Encoded:
        tokenizer = pretrained.load_tokenizer(self._base, self._settings.max_length)
        pad = int(self._model.config.pad_token_id)
        number = {label: at for at, label in enumerate(self._labels)}
        ids: list[npt.NDArray[np.int32]] = []
        for start in range(0, len(rows), _TOKENIZE_ROWS):
            self._reporter.obey()
            self._reporter.progress("tokenizing")
            texts = [text for text, _ in rows[start : start + _TOKENIZE_ROWS]]
            encodings = tokenizer.encode_batch_fast(texts)
            ids += [np.asarray(encoding.ids or [pad], dtype=np.int32) for encoding in encodings]
        return Encoded(ids, [number[label] for _, label in rows], pad)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        """AdamW (Loshchilov & Hutter 2019); biases and normalisation weights do not decay."""
        groups = [
            {"params": [p for p in self._parameters if p.ndim >= 2], "weight_decay": self._settings.weight_decay},
            {"params": [p for p in self._parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self._settings.learning_rate, fused=True)

    def _autocast(self) -> Any:
        if self._device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return contextlib.nullcontext()


def _rank(measured: dict[str, float]) -> tuple[float, float]:
    return measured["accuracy"], -measured["loss"]


def _diverged(step: int, rate: float) -> Rejected:
    return Rejected(
        f"the loss or its gradient was not a finite number at step {step} (learning rate {rate:.3g})",
        remedy="Lower train.learning_rate, or lengthen train.warmup.",
        code="diverged",
        param="train.learning_rate",
    )
