"""A stepper in a thread of its own: requests are handed over from the event loop, and what a step said comes back in
one call.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from llmos.clock import Clock
from llmos.errors import Problem
from llmos_inferencer.decoding.grammar import Matcher
from llmos_inferencer.decoding.request import Delta, Request
from llmos_inferencer.decoding.stepper import Say, Stepper

LATE = Problem(
    "deadline", "the deadline passed before the text was complete", "Allow more time or ask for fewer tokens."
)
Heard = list[tuple[float, Delta]]  # (monotonic seconds, what was said)
Listener = Callable[[Heard], None]


class Decoder:
    """Runs what `make` builds, given where to say deltas. Listeners are called on the event loop that submitted."""

    def __init__(self, make: Callable[[Say], Stepper], clock: Clock) -> None:
        self._clock = clock
        self._stepper = make(self._said)
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._heard: dict[str, Heard] = {}
        self._listeners: dict[str, Listener] = {}  # touched on the event loop only
        self._loop: asyncio.AbstractEventLoop | None = None
        self._log: Any = structlog.get_logger()
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def submit(self, request: Request, matcher: Matcher | None, listener: Listener) -> None:
        """Queue a request, whose id nobody else uses now. The listener hears its deltas in order; after the last one
        of every output, or a problem, it hears nothing more.
        """
        self._loop = asyncio.get_running_loop()
        self._listeners[request.id] = listener
        self._tell(lambda: self._stepper.add(request, matcher))

    def cancel(self, id: str) -> None:
        """End a request within a step; its listener hears `cancelled` for every output that was not complete."""
        self._tell(lambda: self._stepper.cancel(id))

    def forget(self, id: str) -> None:
        """Free what a request holds within a step; its listener hears nothing more."""
        if self._listeners.pop(id, None) is not None:
            self.cancel(id)

    def close(self) -> None:
        """End the thread after the step that it computes."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _tell(self, command: Callable[[], None]) -> None:
        self._inbox.append(command)
        self._wake.set()

    # --- in the thread ---

    def _run(self) -> None:
        while not self._closing:
            if not self._stepper.busy:
                self._wake.wait()
            self._wake.clear()
            try:
                while self._inbox:
                    self._inbox.popleft()()
                if self._stepper.busy:
                    self._stepper.expire(self._clock.now(), LATE)
                    self._stepper.step()
            except Exception as error:  # noqa: BLE001 - a fault of ours: those in hand must hear of it, and others may go on
                self._log.exception("a step failed")
                self._stepper.fail_all(Problem("error", f"the engine failed: {error}", "Send the request again."))
            if self._heard and self._loop is not None:
                heard, self._heard = self._heard, {}
                self._loop.call_soon_threadsafe(self._deliver, heard)

    def _said(self, id: str, delta: Delta) -> None:
        self._heard.setdefault(id, []).append((self._clock.monotonic(), delta))

    # --- on the event loop ---

    def _deliver(self, heard: dict[str, Heard]) -> None:
        for id, deltas in heard.items():
            listener = self._listeners.get(id)
            if listener is not None:
                listener(deltas)
