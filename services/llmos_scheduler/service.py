"""The shell: follows the history; and while it leads, asks `decide` what follows from it, performs that, and waits
until its own facts have come back before it asks again. It keeps nothing that it could not rebuild from the stream.
"""

import asyncio
from collections.abc import Sequence

from llmos.cancel import cancel
from llmos.service import Context
from llmos_scheduler.answering import Answering
from llmos_scheduler.brain import Brain
from llmos_scheduler.config import SchedulerConfig
from llmos_scheduler.core import decide
from llmos_scheduler.effects import Effect, Emit
from llmos_scheduler.following import Following
from llmos_scheduler.hearing import Hearing
from llmos_scheduler.leading import Leadership
from llmos_scheduler.performing import RETRY_S, Performing
from llmos_scheduler.presence import notice
from llmos_scheduler.records import State
from llmos_scheduler.snapshots import Snapshots
from llmos_scheduler.submitting import Submitting

TICK_S = 0.5  # time alone can make something due


async def serve(ctx: Context[SchedulerConfig]) -> None:
    """Run the scheduler until `ctx.stopping` is set."""
    await Scheduler(ctx).run()


class Scheduler:
    """One scheduler. Any number may run: one leads, the others follow and stand by."""

    def __init__(self, ctx: Context[SchedulerConfig]) -> None:
        self._ctx = ctx
        self._following = Following(ctx)
        self._hearing = Hearing(ctx, self._following.changed.set)
        self._leadership = Leadership(ctx, self._following)
        self._performing = Performing(ctx, self._leadership)
        self._brain = Brain(State())  # of the state, while we lead
        self._submitting = Submitting(ctx, self._following, self._performing)
        self._answering = Answering(ctx, self._following, self._leadership, self._performing, lambda: self._brain)
        self._snapshots = Snapshots(ctx, self._following)
        self._following.on_election = self._leadership.heard
        self._following.leads = lambda: self._leadership.fence is not None

    async def run(self) -> None:
        """Catch up with the history, stand by, lead, until told to stop. Safe to kill at any point."""
        history = await self._ctx.bus.stream_state("EVENTS")
        await self._snapshots.load(history)
        if history.first > history.last:  # nothing is left of it
            self._following.applied = history.last
        stopping = asyncio.create_task(self._ctx.stopping.wait())
        taking_part = asyncio.create_task(self._take_part(history.last))
        running = [asyncio.create_task(loop()) for loop in (self._following.run, self._hearing.run)]
        try:
            await asyncio.wait([stopping, taking_part, *running], return_when=asyncio.FIRST_COMPLETED)
            for task in (taking_part, *running):
                if task.done():
                    task.result()  # a loop that ended has failed: that ends the process
            await cancel(taking_part)
            led = self._leadership.fence is not None
            await self._leadership.resign()  # another goes on meanwhile
            if led:
                await self._snapshots.save_at_end()
        finally:
            await cancel(stopping, taking_part, *running)
            await self._leadership.resign()

    async def _take_part(self, newest: int) -> None:
        following, leadership = self._following, self._leadership
        await following.catch_up(newest)
        self._ctx.log.info(
            "caught up", sequence=following.applied, jobs=len(following.state.jobs), alive=len(following.state.alive)
        )
        self._ctx.announce(load=lambda: {"leads": float(leadership.fence is not None)})
        while True:
            await leadership.win()
            await self._lead()
            await leadership.resign()
            self._ctx.log.warning("leads no more; stands by", term=leadership.term)

    async def _lead(self) -> None:
        """Decide, admit and answer until somebody else leads; a loop that fails ends the process."""
        self._brain = Brain(self._following.state)
        parts = (self._leadership.keep, self._submitting.run, self._answering.run, self._decide, self._snapshots.run)
        loops = [asyncio.create_task(part()) for part in parts]
        lost = asyncio.create_task(self._leadership.lost.wait())
        try:
            await asyncio.wait([lost, *loops], return_when=asyncio.FIRST_COMPLETED)
            for task in loops:
                if task.done():
                    task.result()
        finally:
            await cancel(lost, *loops)
            self._following.state.journal = None  # nobody looks at it until we lead again

    async def _decide(self) -> None:
        following, hearing, brain = self._following, self._hearing, self._brain
        said, noticed = 0, 0.0
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    await following.changed.wait()
            except TimeoutError:
                pass
            following.changed.clear()
            await following.came_back(said)
            now = self._ctx.clock.now()
            since = hearing.since(now)
            effects: Sequence[Effect] = ()
            if hearing.news or abs(now - noticed) >= TICK_S:  # who is there counts before what to do with them
                hearing.news, noticed = False, now
                effects = list(notice(following.state, hearing.beats, now, since=since))
            effects = effects or decide(following.state, brain, now, since=since)
            facts = [effect for effect in effects if isinstance(effect, Emit)]
            commands = [effect for effect in effects if not isinstance(effect, Emit)]
            if facts:
                outcomes = await self._performing.say(facts)
                said = max([said, *(at for at in outcomes if isinstance(at, int))])
            if commands and not await self._performing.do(commands):
                brain.ask_again()
                await asyncio.sleep(RETRY_S)
