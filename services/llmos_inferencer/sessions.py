"""Loaded versions, and who uses or waits for one: a request keeps the session that it entered, so an answer never mixes
versions and is never given by a half-loaded one.
"""

import asyncio
from collections.abc import Callable

from llmos.clock import Clock
from llmos.contracts.models import ModelVersion
from llmos_inferencer.engine import BatchEngine, Engine, Generator, Late
from llmos_inferencer.meter import Meter
from llmos_inferencer.state import Lease


class Session:
    """A loaded version: how many requests use it, and since when none does."""

    def __init__(self, engine: Engine, version: ModelVersion, memory: int, meter: Meter, now: float) -> None:
        self.engine = engine
        self.version = version
        self.memory = memory
        self.meter = meter
        self.used_at = now
        self.active = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def enter(self) -> "Session":
        """One more request uses it."""
        self.active += 1
        self.idle.clear()
        return self

    def leave(self, now: float) -> None:
        """One request less."""
        self.active -= 1
        self.used_at = now
        if not self.active:
            self.idle.set()

    @property
    def generator(self) -> Generator | None:
        """The engine, if it generates step by step."""
        return None if hasattr(self.engine, "prepare") else self.engine

    @property
    def batch(self) -> BatchEngine | None:
        """The engine, if it answers in one pass."""
        return None if hasattr(self.engine, "submit") else self.engine


class Track:
    """One way through a deployment: the session of the moment, or none. `demand` is called when a request finds none:
    requests are held until `switch`.

    `version` is what is, or is to be, loaded here, on the devices of `lease`; `pinned` and `idle` are as
    `ReplicaAssigned` says.
    """

    def __init__(self, name: str, deployment: str, clock: Clock, *, demand: Callable[["Track"], None]) -> None:
        self.name = name
        self.deployment = deployment
        self.session: Session | None = None
        self.version: ModelVersion | None = None
        self.lease = Lease()
        self.pinned = False
        self.idle = 0.0
        self._clock = clock
        self._demand = demand
        self._held: list[asyncio.Future[Session]] = []

    def switch(self, session: Session) -> Session | None:
        """From now on `session` takes every request, those that were held first. The one before, still in use
        perhaps.
        """
        old, self.session, self.version = self.session, session, session.version
        held, self._held = self._held, []
        for future in held:
            if not future.done():
                future.set_result(session.enter())
        return old

    def detach(self) -> Session | None:
        """Take the session out; requests are held from now on."""
        old, self.session = self.session, None
        return old

    def hand_over(self, other: "Track") -> None:
        """Let another track answer who waits here."""
        held, self._held = self._held, []
        other._held += held
        if other.session is not None:
            other.switch(other.session)
        elif held:
            other._demand(other)

    def is_idle(self, now: float) -> bool:
        """Whether nobody has wanted the session for as long as it may stay unused."""
        session = self.session
        return (
            session is not None
            and not self.pinned
            and self.idle > 0
            and not session.active
            and now - session.used_at >= self.idle
        )

    async def enter(self, deadline: float | None) -> Session:
        """The session, entered, as soon as there is one. Raises `Late` at `deadline` (Unix seconds)."""
        if self.session is not None:
            return self.session.enter()
        future: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._held.append(future)
        self._demand(self)
        entered = False
        try:
            async with asyncio.timeout(deadline - self._clock.now() if deadline is not None else None):
                session = await future
            entered = True
            return session
        except TimeoutError:
            raise Late("the deadline passed while the model was loaded", remedy="Allow more time.") from None
        finally:
            if not entered:
                self._give_up(future)

    def _give_up(self, future: asyncio.Future[Session]) -> None:
        if future in self._held:
            self._held.remove(future)
        if future.done() and not future.cancelled():  # handed over in the very moment in which the request ended
            future.result().leave(self._clock.monotonic())
