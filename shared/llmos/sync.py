"""The SDK for blocking code: a portal (one event loop in a background thread) and the client's face through it.

with SyncClient() as llmos:
    job = llmos.submit({"name": "intents", "model": {"base": "hf:…"}, "data": {"train": "file:///…"}})
    print(llmos.wait(job).state)
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from llmos.client import Client

P = ParamSpec("P")
R = TypeVar("R")


class Portal:
    """An event loop that runs in a daemon thread until `close`."""

    def __init__(self, name: str = "llmos") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"{name}-loop", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, R]) -> R:
        """Run `work` on the loop and return its result. An interrupt of the caller (Ctrl-C) cancels it there."""
        if not self._thread.is_alive():
            work.close()
            raise RuntimeError("this portal is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[R]) -> Iterator[R]:
        """Iterate over `items`, which live on the loop; they are closed there when the iteration is left."""
        try:
            while True:
                try:
                    item = self.call(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            close = getattr(items, "aclose", None)
            if close is not None and self._thread.is_alive():
                self.call(close())

    def close(self) -> None:
        """Cancel what still runs, stop the loop and wait for its thread; repeating it changes nothing."""
        if self._thread.is_alive():
            self.call(_cancel_others())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _next(items: AsyncIterator[R]) -> R:
    return await anext(items)


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def blocking(
    method: Callable[Concatenate[Client, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate["SyncClient", P], R]:
    """The blocking form of an async method, with the same signature."""

    @wraps(method)
    def call(face: "SyncClient", /, *args: P.args, **kwargs: P.kwargs) -> R:
        return face.portal.call(method(face.inner, *args, **kwargs))

    return call


def iterating(
    method: Callable[Concatenate[Client, P], AsyncIterator[R]],
) -> Callable[Concatenate["SyncClient", P], Iterator[R]]:
    """The blocking form of an async generator method, with the same signature."""

    @wraps(method)
    def iterate(face: "SyncClient", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return face.portal.iterate(method(face.inner, *args, **kwargs))

    return iterate


class SyncClient:
    """`Client` for blocking code: the same methods and arguments, run on a loop in a background thread."""

    def __init__(self, nats_url: str | None = None, tenant: str = "default", *, artifacts: str | None = None) -> None:
        self.portal = Portal("llmos-client")
        try:
            self.inner = self.portal.call(Client.connect(nats_url, tenant, artifacts=artifacts))
        except BaseException:
            self.portal.close()
            raise

    submit = blocking(Client.submit)
    verdict = blocking(Client.verdict)
    job = blocking(Client.job)
    jobs = blocking(Client.jobs)
    explain = blocking(Client.explain)
    cancel = blocking(Client.cancel)
    events = iterating(Client.events)
    wait = blocking(Client.wait)
    nodes = blocking(Client.nodes)
    cordon = blocking(Client.cordon)
    uncordon = blocking(Client.uncordon)
    queues = blocking(Client.queues)
    set_queues = blocking(Client.set_queues)
    reservations = blocking(Client.reservations)
    reserve = blocking(Client.reserve)
    unreserve = blocking(Client.unreserve)
    plan = blocking(Client.plan)
    models = blocking(Client.models)
    model = blocking(Client.model)
    deployments = blocking(Client.deployments)
    shift = blocking(Client.shift)
    rollback = blocking(Client.rollback)
    infer = blocking(Client.infer)
    stream = iterating(Client.stream)
    upload = blocking(Client.upload)

    def close(self) -> None:
        """Disconnect and end the background thread."""
        try:
            self.portal.call(self.inner.close())
        finally:
            self.portal.close()

    def __enter__(self) -> "SyncClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
