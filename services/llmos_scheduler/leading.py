"""Which of several schedulers decides: a lease in the bucket `lease`, and an election in the history as the fence.

The lease only says who may stand for election and when. What makes one the leader is `LeaderElected`, stored behind
the one before it; all that a leader says is stored only while its own election is the newest. So the server refuses a
leader that was paused or cut off while another took over, whatever the clocks say: the fencing token of Kleppmann, "How
to do distributed locking" (2016), checked where the facts are kept.
"""

import asyncio
from typing import Any, Never

from llmos.bus import Conflict, Fence
from llmos.contracts.leader import LeaderElected, LeaderLease
from llmos.contracts.subjects import event_subject
from llmos.errors import Busy, LlmosError
from llmos.service import Context
from llmos_scheduler.following import Following

KEY = "scheduler"
RENEW_S = 1.5
LOOK_S = 0.8
LOOKS = 7  # looks in a row that find the lease as it was: nobody renews it any more
FRESH_S = 3.0  # a leadership that was confirmed so recently can't have been taken over
ELECTED = event_subject(LeaderElected("", 0))


class Leadership:
    """One scheduler's part in it. `fence` goes with all that the leader says."""

    def __init__(self, ctx: Context[Any], following: Following) -> None:
        self._ctx = ctx
        self._following = following
        self._bucket = ctx.bus.bucket("lease")
        self._renewing = asyncio.Lock()
        self._revision = 0
        self._confirmed = (0.0, 0.0)  # by the machine's clock and by its wall clock, which a sleep does not stop
        self.instance = ctx.instance
        self.fence: Fence | None = None
        self.term = 0
        self.lost = asyncio.Event()

    async def win(self) -> None:
        """Stand by until the lease is free or nobody renews it, then be elected."""
        while True:
            try:
                await self._take_lease()
                if await self._elect():
                    return
                await self.resign()
            except LlmosError as error:
                self._ctx.log.warning("no election", error=str(error))
                await self.resign()
            await asyncio.sleep(LOOK_S)

    async def _take_lease(self) -> None:
        seen, looks = 0, 0
        while True:
            try:
                entry = await self._bucket.get(KEY, LeaderLease)
                known = entry.value.term if entry is not None else 0
                lease = LeaderLease(self.instance, self._ctx.node, max(known, self.term))
                before = self._now()
                if entry is None:
                    self._revision = await self._bucket.create(KEY, lease)
                elif entry.revision == seen and looks >= LOOKS:
                    self._revision = await self._bucket.update(KEY, lease, entry.revision)
                else:
                    seen, looks = entry.revision, looks + 1 if entry.revision == seen else 1
                    await asyncio.sleep(LOOK_S)
                    continue
            except (Busy, Conflict):  # a look that failed says nothing of who renews
                seen = looks = 0
                await asyncio.sleep(LOOK_S)
                continue
            self.term, self._confirmed = lease.term, before
            return

    async def _elect(self) -> bool:
        """Say that we lead from here on, behind the last who did; whether it is so."""
        bus = self._ctx.bus
        before = await bus.last_sequence("EVENTS", ELECTED)
        last = await bus.last_of("EVENTS", ELECTED, LeaderElected)
        self.term = max(self.term, last.term if last else 0) + 1
        vote = LeaderElected(self.instance, self.term)
        try:
            await bus.emit(vote, id=f"leader.{self.instance}.{self.term}", fence=Fence(ELECTED, before))
        except Conflict:
            pass  # somebody else, or ourselves by a publish whose confirmation was lost
        await self._following.came_back(await bus.last_sequence("EVENTS", ELECTED))
        election = self._following.election
        if election is None or election.event != vote:
            return False
        self.lost.clear()
        self.fence = Fence(ELECTED, election.sequence)
        self._ctx.log.info("leads", term=self.term, sequence=election.sequence)
        return True

    async def keep(self) -> None:
        """Renew the lease for as long as we lead."""
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self.confirm(RENEW_S / 2)
            except Busy as error:  # while the bus is away, nobody is elected either
                self._ctx.log.warning("the lease was not renewed", error=str(error))

    async def confirm(self, fresh: float = FRESH_S) -> None:
        """Be sure that nobody else was elected until a moment ago. Raises `Busy` when the bus does not say."""
        if self._age() < fresh:
            return
        async with self._renewing:
            if self._age() < fresh:
                return
            before = self._now()
            lease = LeaderLease(self.instance, self._ctx.node, self.term)
            try:
                self._revision = await self._bucket.update(KEY, lease, self._revision)
            except Conflict:
                await self.step_down()
            self._confirmed = before

    async def step_down(self) -> Never:
        """Somebody else leads: whoever learns it waits here until it is cancelled, and answers nothing."""
        self.lost.set()
        await asyncio.Event().wait()
        raise AssertionError

    def heard(self) -> None:
        """An election may have been heard: step down if it is another's."""
        election = self._following.election
        if self.fence is not None and election is not None and election.sequence > self.fence.sequence:
            self.lost.set()

    async def resign(self) -> None:
        """Give the lease back, if we hold it: another need not wait until it is old."""
        self.fence = None
        revision, self._revision = self._revision, 0
        if revision:
            try:
                async with asyncio.timeout(2):
                    await self._bucket.delete(KEY, revision)
            except (LlmosError, TimeoutError):
                pass  # it is another's, or grows old by itself

    def _now(self) -> tuple[float, float]:
        return self._ctx.clock.monotonic(), self._ctx.clock.now()

    def _age(self) -> float:
        """Seconds since the leadership was confirmed: the longer of two clocks, or for ever if one went back."""
        ages = [now - then for now, then in zip(self._now(), self._confirmed, strict=True)]
        return max(ages) if min(ages) >= 0 else float("inf")
