"""nats-py's client with one fault mended: a flush that was given up must not end the connection's read loop."""

import nats.aio.client


class Client(nats.aio.client.Client):
    """Upstream (2.16) hands every PONG to the oldest waiting flush; when that one was cancelled or timed out, the
    hand-over raises in the read loop, and the connection hears nothing more."""

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pongs_received += 1
            self._pings_outstanding = 0
            return
        await super()._process_pong()
