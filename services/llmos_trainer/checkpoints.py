"""Checkpoints of a run: weights, optimizer and best weights as safetensors, and a JSON that is written last.

A snapshot is copied in memory (the only stall) and written by a thread. The folder gets its name when it is whole;
the service stores it under a manifest, so a checkpoint that is torn or changed is never read.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct, field
from safetensors.torch import load_file, save_file

FORMAT = 1


class Position(Struct, omit_defaults=True):
    """Where a run stands: `step` steps are taken, after step `evaluated` it was last evaluated.

    `best_step` and `best` are the best evaluation so far (validation metrics), 0 and empty before the first.
    """

    recipe: str
    task: str = ""
    step: int = 0
    evaluated: int = 0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    format: int = FORMAT


Tensors = dict[str, torch.Tensor]


def trained(model: Any) -> Tensors:
    """The tensors that training changes: trainable parameters and persistent buffers, by name."""
    kept = set(model.state_dict(keep_vars=True))
    tensors = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors.update({name: buffer for name, buffer in model.named_buffers() if name in kept})
    return tensors


def copied(tensors: Tensors) -> Tensors:
    """Copies in CPU memory."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def restore(model: Any, weights: Tensors) -> None:
    """Write saved tensors back into the model. Raises `ValueError` unless they are the very ones it trains."""
    own = trained(model)
    if {name: tensor.shape for name, tensor in own.items()} != {name: t.shape for name, t in weights.items()}:
        raise ValueError("the checkpoint is of another model")
    for name, tensor in own.items():
        tensor.copy_(weights[name])


def optimizer_state(model: Any, optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimizer's tensors as `<parameter>/<name>`."""
    return {
        f"{name}/{key}": value
        for name, parameter in trained(model).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(model: Any, optimizer: torch.optim.Optimizer, saved: Tensors) -> None:
    """Write saved optimizer tensors back, in memory of their own on their parameter's device."""
    own = trained(model)
    for path, value in saved.items():
        name, _, key = path.rpartition("/")
        optimizer.state[own[name]][key] = value.to(own[name].device, copy=True)


def read(folder: Path, recipe: str) -> tuple[Position, dict[str, Tensors]] | None:
    """A checkpoint's position and tensors (`weights`, `optimizer`, `best`); `None` when it was made for another recipe.

    The caller has verified the folder's digests.
    """
    position = msgspec.json.decode((folder / "position.json").read_bytes(), type=Position)
    if (position.recipe, position.format) != (recipe, FORMAT):
        return None
    tensors = {name: load_file(folder / f"{name}.safetensors") for name in ("weights", "optimizer")}
    best = folder / "best.safetensors"
    tensors["best"] = load_file(best) if best.exists() else tensors["weights"]
    return position, tensors


class Writer:
    """Writes snapshots in a thread, one at a time; `wrote` hears of each from that thread.

    Durability: a folder `checkpoint-<number>` is whole when it has that name. It is not synced: the artifact store
    does that.
    """

    def __init__(self, folder: Path, task: str, wrote: Callable[[int, Path], None]) -> None:
        self._folder = folder
        self._task = task
        self._wrote = wrote
        self._number = 0
        self._last: Position | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether the last snapshot is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def write(self, position: Position, model: Any, optimizer: torch.optim.Optimizer, best: Tensors | None) -> None:
        """Snapshot now and write later, unless this position was; waits only for the snapshot before.

        Raises what that one failed with.
        """
        self.wait()
        if self._last == position:
            return
        self._last = msgspec.structs.replace(position)
        self._number += 1
        tensors = {"weights": copied(trained(model)), "optimizer": copied(optimizer_state(model, optimizer))}
        if best is not None and position.best_step != position.step:
            tensors["best"] = best
        state = msgspec.json.encode(position)
        self._thread = threading.Thread(target=self._write, args=(position.step, tensors, state), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last snapshot is written. Raises what it failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _write(self, step: int, tensors: dict[str, Tensors], state: bytes) -> None:
        try:
            part = self._folder / f"checkpoint-{self._number}.part"
            part.mkdir(parents=True)
            for name, values in tensors.items():
                # The task's name keeps its files apart from every other artifact's: they may be removed one day.
                save_file(values, part / f"{name}.safetensors", metadata={"task": self._task})
            (part / "position.json").write_bytes(state)
            whole = part.with_suffix("")
            part.rename(whole)
            self._wrote(step, whole)
        except BaseException as failure:  # noqa: BLE001 — raised again by the next `wait`
            self._failure = failure
