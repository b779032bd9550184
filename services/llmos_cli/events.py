"""`llmos get events`: the whole history, as lines for people or as JSON lines for programs."""

from contextlib import aclosing

import msgspec

from llmos_cli.exits import Exit
from llmos_cli.options import Target
from llmos_cli.printing import moment
from llmos_cli.telling import tell


async def events(target: Target, output: str) -> int:
    """Print every event that is kept, oldest first, until the newest of this moment."""
    from llmos.history import job_of

    async with await target.connect() as client:
        newest = (await client.bus.stream_state("EVENTS")).last
        if not newest:
            return Exit.OK
        async with aclosing(client.bus.follow("EVENTS")) as history:
            async for heard in history:
                if output in ("json", "yaml"):
                    fact = {
                        "sequence": heard.sequence,
                        "time": heard.time,
                        "type": heard.envelope.type,
                        "data": msgspec.Raw(heard.data),
                    }
                    print(msgspec.json.encode(fact).decode())
                elif (event := heard.event()) is not None and (line := tell(event)):
                    print(f"{moment(heard.time)}  {job_of(event) or '-':<24}  {line}")
                if heard.sequence >= newest:
                    break
    return Exit.OK
