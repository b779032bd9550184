"""`llmos bench`: how fast a deployed model answers so many clients at a time."""

import asyncio
import time
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from llmos.errors import Busy, LlmosError, Rejected
from llmos_cli.bench_report import Report, Taken, draw
from llmos_cli.exits import Exit, report, say
from llmos_cli.options import Output, Target
from llmos_cli.printing import print_table, print_value

if TYPE_CHECKING:
    from llmos.client import Client
    from llmos.contracts.inference import Input

SENTENCE = "the service was good and the answer came in time so we asked for more of it on the next day"


def bench(
    deployment: str,
    /,
    *,
    concurrency: int = 8,
    requests: int = 0,
    duration: float = 10.0,
    input_len: int = 128,
    output_len: int = 64,
    file: Annotated[str | None, Parameter(name=["--file", "-f"])] = None,
    context: str | None = None,
    plot: Path | None = None,
    timeout: float = 60.0,
    output: Output = "table",
    target: Target = Target(),
) -> int:
    """Ask a deployed model again and again, and show throughput and latency.

    Parameters
    ----------
    deployment
        The name under which the model is served.
    concurrency
        How many clients ask at a time, each its next request as soon as the last one is answered.
    requests
        How many requests in all; 0: as many as fit into the duration.
    duration
        For how many seconds, if no number of requests is given.
    input_len
        About how many tokens a request has.
    output_len
        How many tokens are generated, by models that generate.
    file
        Ask about this picture, recording, or the lines of this file instead.
    context
        The text in which a question is answered.
    plot
        Write a picture of the latencies (SVG) here.
    timeout
        Give a request up after so many seconds.
    """
    if concurrency < 1 or input_len < 1 or output_len < 1:
        raise Rejected("concurrency and lengths are at least 1", remedy=f"llmos bench {deployment} --concurrency 8")

    async def run() -> Report:
        async with await target.connect() as client:
            inputs, generates = await _prepare(client, deployment, input_len, file, context, timeout)
            say(f"{deployment} {'generates' if generates else 'answers in one pass'}; {concurrency} clients")
            return await _measure(
                client, deployment, inputs, output_len if generates else 0, concurrency, requests, duration, timeout
            )

    found = asyncio.run(run())
    if output == "table":
        print_table(["", "MEAN", "P50", "P90", "P99", "MAX"], found.rows())
        print(found.summary())
    else:
        print_value(found.plain(), output)
    if plot is not None:
        plot.write_text(draw(found), encoding="utf-8")
        say(f"latencies drawn to {plot}")
    if found.failures:
        report(f"{found.failures} of {found.requests + found.failures} requests failed: {found.problem}")
    return Exit.OK if found.requests else Exit.FAILED


async def _prepare(
    client: "Client", deployment: str, length: int, file: str | None, context: str | None, timeout: float
) -> "tuple[list[str | Input], bool]":
    """What to ask, of about `length` tokens, and whether the model generates: found out by asking twice."""
    from llmos.contracts.inference import InferenceParams
    from llmos_cli.infer_inputs import read_inputs

    if file:
        inputs = read_inputs([], [file], context)
        if not inputs:
            raise Rejected(f"{file} is empty", remedy="Write one text a line.")
    else:
        inputs = read_inputs([_text(length)], [], context)
    one = InferenceParams(max_tokens=1)
    answer = await client.infer(deployment, inputs[:1], params=one, timeout=timeout)
    tokens = answer.usage.prompt_tokens
    if not file and tokens and context is None:
        inputs = [_text(max(1, round(length * length / tokens)))]
    return inputs, bool(answer.usage.completion_tokens)


def _text(words: int) -> str:
    known = SENTENCE.split()
    return " ".join(known[at % len(known)] for at in range(words))


async def _measure(
    client: "Client",
    deployment: str,
    inputs: "list[str | Input]",
    output_len: int,
    concurrency: int,
    requests: int,
    duration: float,
    timeout: float,
) -> Report:
    taken: list[Taken] = []
    failed: list[LlmosError] = []
    asked = 0
    started = time.perf_counter()

    async def client_of_many() -> None:
        nonlocal asked
        while asked < requests if requests else time.perf_counter() - started < duration:
            given = inputs[asked % len(inputs)]
            asked += 1
            try:
                taken.append(await _one(client, deployment, given, output_len, timeout))
            except LlmosError as error:
                failed.append(error)
                if not isinstance(error, Busy):
                    return

    await asyncio.gather(*(client_of_many() for _ in range(concurrency)))
    seconds = time.perf_counter() - started
    return Report.of(deployment, concurrency, seconds, taken, len(failed), str(failed[0]) if failed else "")


async def _one(client: "Client", deployment: str, given: "str | Input", output_len: int, timeout: float) -> Taken:
    """One request, as its client sees it. Seconds."""
    from llmos.contracts.inference import InferenceAnswered, InferenceParams

    started = time.perf_counter()
    if not output_len:
        answer = await client.infer(deployment, [given], timeout=timeout)
        return Taken(time.perf_counter() - started, 0.0, answer.queue_ms / 1000, answer.usage.prompt_tokens, 0)
    first = 0.0
    params = InferenceParams(max_tokens=output_len)
    async with aclosing(client.stream(deployment, given, params=params, timeout=timeout)) as parts:
        async for part in parts:
            if isinstance(part, InferenceAnswered):
                seconds, usage = time.perf_counter() - started, part.usage
                return Taken(
                    seconds, first or seconds, part.queue_ms / 1000, usage.prompt_tokens, usage.completion_tokens
                )
            first = first or time.perf_counter() - started
    raise Busy("the stream ended without an answer")
