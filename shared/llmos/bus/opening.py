"""Opening a connection: reach a server that is new enough and make what is missing on it, or say what to do."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nats.errors

from llmos.bus import api
from llmos.bus.client import Client
from llmos.cancel import cancel
from llmos.errors import Busy, Fatal

CONNECT_TIMEOUT_S = 2
RECONNECT_S = 0.2
PING_S = 10
_REFUSED = re.compile("authori[sz]ation|authentication|permissions", re.IGNORECASE)
_PASSWORD = re.compile(r"//[^@/,]*@")


async def open_connection(
    nc: Client,
    url: str,
    *,
    source: str,
    credentials: str,
    within: float,
    on_error: Callable[[Exception], Awaitable[None]],
    on_lost: Callable[[], Awaitable[None]],
    on_back: Callable[[], Awaitable[None]],
) -> None:
    """Connect, check the server's level, and make the streams and buckets that are missing, in `within` seconds.

    Raises `Fatal` for a server that is too old or refuses the credentials, `Busy` when none answers. Passwords in the
    URL are not shown.
    """
    if credentials and not Path(credentials).is_file():
        raise Fatal(f"there is no credentials file {credentials}", remedy="Correct LLMOS_NATS_CREDENTIALS.")
    heard: list[str] = []

    async def error_cb(error: Exception) -> None:
        heard[:] = [str(error)]
        await on_error(error)

    options: dict[str, Any] = {"user_credentials": credentials} if credentials else {}
    connecting = asyncio.ensure_future(
        nc.connect(
            servers=url.split(","),
            name=source,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_S,  # type: ignore[arg-type]  # seconds; nats-py only sleeps on it
            connect_timeout=CONNECT_TIMEOUT_S,
            ping_interval=PING_S,
            error_cb=error_cb,
            disconnected_cb=on_lost,
            reconnected_cb=on_back,
            skip_subject_validation=True,
            **options,
        )
    )
    shown = _PASSWORD.sub("//", url)
    try:
        async with asyncio.timeout(within):
            await asyncio.wait({connecting})
            connecting.result()
            await api.check_level(nc)
            await api.ensure(nc)
    except (TimeoutError, OSError, nats.errors.Error) as error:
        why = (heard[0] if heard else str(error)) or "no answer"
        if _REFUSED.search(why):
            raise Fatal(f"the bus at {shown} refused {source}: {why}", remedy="Check the credentials.") from error
        raise Busy(
            f"can't reach the bus at {shown}: {why}",
            remedy="Start the stack with `llmos up`, or set LLMOS_NATS_URL to a nats-server with JetStream.",
        ) from error
    except ModuleNotFoundError as error:
        raise Fatal(f"credentials need {error.name}", remedy="pip install 'nats-py[nkeys]'") from error
    finally:
        await cancel(connecting)
