"""One thread for calls that may hang: whoever waits gives up after a while, and the process never waits for it."""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Call = tuple[Callable[[], Any], asyncio.Future[Any], asyncio.AbstractEventLoop]


class Aside:
    """Runs one call at a time in a daemon thread, which, unlike an executor's, does not hold up the process's end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._turn = asyncio.Lock()
        self._stuck = threading.Event()
        self._thread: threading.Thread | None = None

    async def run(self, call: Callable[[], T], *, timeout: float) -> T:
        """The result of `call`, or what it raised. Raises `TimeoutError` after `timeout` seconds, and at once while an
        earlier call has not come back."""
        async with self._turn:
            if self._stuck.is_set():
                raise TimeoutError
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            loop = asyncio.get_running_loop()
            result: asyncio.Future[T] = loop.create_future()
            self._stuck.set()
            self._calls.put((call, result, loop))
            async with asyncio.timeout(timeout):
                return await result

    def _work(self) -> None:
        while True:
            call, result, loop = self._calls.get()
            value: Any = None
            failure: BaseException | None = None
            try:
                value = call()
            except Exception as error:  # noqa: BLE001  # handed to whoever awaits it
                failure = error
            self._stuck.clear()
            try:
                loop.call_soon_threadsafe(_settle, result, value, failure)
            except RuntimeError:
                return  # the loop is closed: the process ends


def _settle(result: asyncio.Future[Any], value: Any, failure: BaseException | None) -> None:
    if result.done():
        return  # nobody waits any more
    if failure is None:
        result.set_result(value)
    else:
        result.set_exception(failure)
