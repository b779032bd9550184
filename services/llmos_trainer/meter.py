"""What a run says of its own pace: loss and accuracy since the last look, steps a second."""

import time

import torch

_SMOOTHING = 0.3


class Meter:
    """Sums on the device what training steps give; `read` turns them into numbers.

    `validation` is the newest evaluation; it is shown as `validation_<metric>`.
    """

    def __init__(self, device: torch.device) -> None:
        self.validation: dict[str, float] = {}
        self._loss = torch.zeros((), device=device)
        self._right = torch.zeros((), device=device)
        self._rows = 0
        self._steps = 0
        self._speed = 0.0
        self._last: dict[str, float] = {}
        self._since = time.monotonic()

    def add(self, loss: torch.Tensor, right: torch.Tensor, rows: int) -> None:
        """Count a step: its mean loss and how many of its rows were labelled right (scalars)."""
        self._loss += loss
        self._right += right
        self._rows += rows
        self._steps += 1

    def read(self) -> dict[str, float]:
        """`loss` and `accuracy` of the rows since the last look, smoothed `steps_per_second`, and the validation."""
        now = time.monotonic()
        if self._steps:
            self._last = {"loss": float(self._loss) / self._steps, "accuracy": float(self._right) / self._rows}
            speed = self._steps / max(now - self._since, 1e-9)
            self._speed = speed if not self._speed else self._speed + _SMOOTHING * (speed - self._speed)
            self._last["steps_per_second"] = self._speed
            self._loss.zero_()
            self._right.zero_()
            self._rows = self._steps = 0
        self._since = now
        return self._last | {f"validation_{name}": value for name, value in self.validation.items()}
