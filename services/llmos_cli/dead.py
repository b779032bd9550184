"""`llmos dead list|show|replay`: messages that no service could handle, kept whole in DEAD."""

import asyncio
import base64
from typing import TYPE_CHECKING

from cyclopts import App

from llmos.errors import NotFound
from llmos_cli.exits import Exit, say
from llmos_cli.options import Output, Target
from llmos_cli.printing import moment, print_fields, print_table, print_value

if TYPE_CHECKING:
    from llmos.client import Client
    from llmos.contracts.dead import DeadLetter

app = App(name="dead", help="List, show and replay messages that no service could handle.", help_format="plaintext")


@app.command(name="list")
def list_letters(*, output: Output = "table", target: Target = Target()) -> int:
    """List the dead letters, oldest first; each has a number."""

    async def ask() -> "dict[int, tuple[float, DeadLetter]]":
        async with await target.connect() as client:
            return await _letters(client)

    letters = asyncio.run(ask())
    if output == "table":
        rows = [
            (number, moment(at), letter.stream, letter.consumer, letter.subject, letter.reason)
            for number, (at, letter) in letters.items()
        ]
        print_table(["NUMBER", "DIED", "STREAM", "CONSUMER", "SUBJECT", "REASON"], rows)
        if not rows:
            say("no dead letters")
    else:
        print_value(
            [{"number": number, "died": at, "letter": letter} for number, (at, letter) in letters.items()], output
        )
    return Exit.OK


@app.command
def show(number: int, /, *, output: Output = "table", target: Target = Target()) -> int:
    """Show one dead letter with its payload.

    Parameters
    ----------
    number
        Its number in the list.
    """

    async def ask() -> "tuple[float, DeadLetter]":
        async with await target.connect() as client:
            return _pick(await _letters(client), number)

    at, letter = asyncio.run(ask())
    if output != "table":
        print_value(letter, output)
        return Exit.OK
    print_fields(
        [
            ("died", moment(at)),
            ("subject", letter.subject),
            ("stream", f"{letter.stream}, consumer {letter.consumer}, sequence {letter.sequence}"),
            ("deliveries", letter.deliveries),
            ("reason", letter.reason),
        ]
    )
    print("headers:", *(f"  {name}: {value}" for name, value in letter.headers.items()), sep="\n")
    print(f"payload:\n{base64.b64decode(letter.data).decode(errors='backslashreplace')}")
    return Exit.OK


@app.command
def replay(number: int, /, *, target: Target = Target()) -> int:
    """Publish a dead letter's message again on its subject, as it was. The letter stays.

    Parameters
    ----------
    number
        Its number in the list.
    """

    async def publish() -> str:
        from llmos.ids import new_id

        async with await target.connect() as client:
            _, letter = _pick(await _letters(client), number)
            # A new message id, or the stream would drop it as a repetition; the server's own headers don't apply again.
            kept = {name: value for name, value in letter.headers.items() if not name.lower().startswith("nats-")}
            headers = kept | {"Nats-Msg-Id": new_id("replay")}
            await client.bus.store(letter.subject, base64.b64decode(letter.data), headers)
            return letter.subject

    print(f"published again on {asyncio.run(publish())}")
    return Exit.OK


async def _letters(client: "Client") -> "dict[int, tuple[float, DeadLetter]]":
    import msgspec

    from llmos.contracts.dead import DeadLetter
    from llmos.history import read

    return {
        heard.sequence: (heard.time, msgspec.json.decode(heard.data, type=DeadLetter))
        for heard in await read(client.bus, "DEAD", ["llmos.dead.*.*"])
    }


def _pick(letters: "dict[int, tuple[float, DeadLetter]]", number: int) -> "tuple[float, DeadLetter]":
    if number not in letters:
        raise NotFound(f"there is no dead letter {number}", remedy="See `llmos dead list`.")
    return letters[number]
