"""A child's voice: progress at most once a second, and an ear for being told to stop."""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import msgspec

from llmos.errors import LlmosError, Problem, Rejected
from llmos_trainer.orders import DRAIN, STOP, Failed, Progressed, Report, Stopped

EVERY_S = 1.0
TOLD_TO_SAVE, TOLD_TO_STOP = 1, 2


class Channel(Protocol):
    """What a reporter needs of `llmos.forking.Channel`."""

    def send(self, message: bytes) -> None: ...

    def received(self) -> list[bytes]: ...


class Stop(Exception):
    """The child was told to end; `drain` says with a checkpoint."""

    def __init__(self, *, drain: bool) -> None:
        super().__init__("drain" if drain else "stop")
        self.drain = drain


class Reporter:
    """Sends reports over the channel of a child."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._next = 0.0
        self._phase = ""
        self._told = 0

    def send(self, report: Report) -> None:
        """Hand a report to the service."""
        self._channel.send(msgspec.json.encode(report))

    def due(self) -> bool:
        """Whether progress may be sent again."""
        return time.monotonic() >= self._next

    def progress(
        self,
        phase: str,
        *,
        step: int = 0,
        steps: int = 0,
        epoch: float = 0.0,
        fraction: float = 0.0,
        eta: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Send progress now if the phase is new, else at most once a second."""
        if not self.due() and phase == self._phase:
            return
        self._next = time.monotonic() + EVERY_S
        self._phase = phase
        self.send(Progressed(phase, step, steps, epoch, fraction, eta, dict(metrics or {})))

    def told(self) -> int:
        """What the service said so far: 0, or the greatest of `TOLD_TO_SAVE` and `TOLD_TO_STOP`."""
        for message in self._channel.received():
            self._told = max(self._told, {DRAIN: TOLD_TO_SAVE, STOP: TOLD_TO_STOP}.get(message, 0))
        return self._told

    def obey(self, agree: Callable[[int], int] = int) -> None:
        """Raise `Stop` if the service said so. To be called at every step's boundary.

        `agree` makes one of what the processes of a gang were told.
        """
        if told := agree(self.told()):
            raise Stop(drain=told == TOLD_TO_SAVE)


@contextlib.contextmanager
def reported(reporter: Reporter) -> Iterator[None]:
    """Run a child's work; an error that means something to the sender becomes a report instead of a crash."""
    try:
        yield
    except Stop:
        reporter.send(Stopped(0))
    except Rejected as error:
        reporter.send(Failed(error.problem, retryable=False))
    except LlmosError as error:
        reporter.send(Failed(error.problem, retryable=True))
    except MemoryError:
        reporter.send(Failed(out_of_memory("memory"), retryable=False))
    except Exception as error:  # noqa: BLE001 — said to the service: a silent end would pass for a crash
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        reporter.send(Failed(Problem("child_failed", message, remedy="Look at the trainer's log."), retryable=True))


def out_of_memory(what: str) -> Problem:
    """The problem of a run that needs more memory than there is."""
    return Problem(
        "out_of_memory",
        f"the run needs more {what} than there is",
        remedy="Lower train.batch_size or train.max_length, or ask for more in resources.",
        param="train.batch_size",
    )
