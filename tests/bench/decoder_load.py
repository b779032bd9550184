"""Clients that ask for text, for any server of tokens: each asks again when its answer is whole, and they begin one
after another, so that requests join what is running. Standard library only.
"""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

PROMPT, WRITTEN, VOCABULARY = 128, 64, 30_000
Ask = Callable[[list[int]], AsyncIterator[int]]  # token ids -> how many tokens came, whenever some came


def prompt(number: int) -> list[int]:
    """A prompt that begins like no other."""
    dice = random.Random(number)
    return [dice.randrange(10, VOCABULARY) for _ in range(PROMPT)]


async def drive(ask: Ask, clients: int, requests: int) -> dict[str, float]:
    """Output tokens a second, and the medians of time to first token and time per output token, in milliseconds."""
    first: list[float] = []
    each: list[float] = []
    written = 0

    async def client(number: int) -> None:
        nonlocal written
        await asyncio.sleep(number * 0.05)
        for turn in range(requests):
            began, came, count = time.perf_counter(), 0.0, 0
            async for tokens in ask(prompt(1000 * clients + 10 * number + turn)):
                came = came or time.perf_counter()
                count += tokens
            first.append(came - began)
            each.append((time.perf_counter() - came) / max(1, count - 1))
            written += count

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    seconds = time.perf_counter() - began
    return {
        "tokens_s": written / seconds,
        "ttft_ms": statistics.median(first) * 1000,
        "tpot_ms": statistics.median(each) * 1000,
    }


async def warm(ask: Ask) -> None:
    """One short answer."""
    async for _ in ask(prompt(0)):
        pass


def report(name: str, clients: int, found: dict[str, Any]) -> None:
    print(
        f"{name:28} {clients:3} clients {found['tokens_s']:7.0f} tokens/s   first token {found['ttft_ms']:7.0f} ms   "
        f"per token {found['tpot_ms']:6.1f} ms",
        flush=True,
    )
