"""`llmos infer`: ask a deployed model."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from llmos.errors import Rejected
from llmos_cli.exits import Exit, say
from llmos_cli.generating import Generating
from llmos_cli.options import Output, Target
from llmos_cli.printing import print_table, print_value

if TYPE_CHECKING:
    from llmos.contracts.inference import InferenceAnswered, Input
    from llmos.contracts.inference import Output as Found

AT_ONCE = 64  # inputs in one request
NUMBERS = 6  # of an embedding in a table


def infer(
    deployment: str,
    /,
    *texts: str,
    file: Annotated[list[str] | None, Parameter(name=["--file", "-f"], allow_leading_hyphen=True)] = None,
    context: str | None = None,
    top: int = 0,
    timeout: float = 10.0,
    generating: Generating = Generating(),
    output: Output = "table",
    target: Target = Target(),
) -> int:
    """Ask a deployed model about texts, pictures or recordings.

    Parameters
    ----------
    deployment
        The name under which the model is served.
    texts
        Texts, or questions about the context.
    file
        A picture, a recording, texts (one a line; - reads stdin), or inputs as JSON (.jsonl). May be repeated.
    context
        The text in which a question is answered; @FILE reads it from a file.
    top
        How many labels to list for each input in JSON and YAML; 0 lists all.
    timeout
        Give up after so many seconds.
    """
    from llmos_cli.infer_inputs import read_inputs, shown

    asked = read_inputs(texts, file or [], context)
    if not asked:
        raise Rejected("there is nothing to ask", remedy=f"llmos infer {deployment} 'some text'")
    params = generating.params()

    async def ask() -> "list[InferenceAnswered]":
        async with await target.connect() as client:
            batches = list(_batches(asked))
            return [await client.infer(deployment, each, top=top, params=params, timeout=timeout) for each in batches]

    answers = asyncio.run(ask())
    outputs = [found for answer in answers for found in answer.outputs]
    if output == "table":
        _print(outputs, [shown(each) for each in asked])
        first, tokens = answers[0], sum(answer.usage.completion_tokens for answer in answers)
        generated = f", {tokens} tokens" if tokens else ""
        milliseconds = sum(answer.compute_ms for answer in answers)
        say(f"{first.model} version {first.version} on {first.node}, {milliseconds:.1f} ms{generated}")
    else:
        rest = {"model": answers[0].model, "version": answers[0].version, "node": answers[0].node}
        print_value({**rest, "outputs": outputs}, output)
    return Exit.OK


def _batches(inputs: "Sequence[str | Input]") -> "list[list[str | Input]]":
    """Requests of at most `AT_ONCE` inputs; one with bytes goes alone."""
    batches: list[list[str | Input]] = []
    heavy = True
    for each in inputs:
        alone = not isinstance(each, str) and bool(each.image or each.audio)
        if heavy or alone or len(batches[-1]) == AT_ONCE:
            batches.append([])
        batches[-1].append(each)
        heavy = alone
    return batches


def _print(outputs: "Sequence[Found]", asked: Sequence[str]) -> None:
    """A table that fits what the model says; generated text as it is."""
    first = outputs[0]
    if first.label:
        rows = [(found.label, f"{found.score:.3f}", text) for found, text in zip(outputs, asked, strict=True)]
        print_table(["LABEL", "SCORE", "TEXT"], rows)
    elif first.answer is not None:
        answered = [(found.answer, text) for found, text in zip(outputs, asked, strict=True) if found.answer]
        print_table(["ANSWER", "SCORE", "QUESTION"], [(a.text, f"{a.score:.3f}", text) for a, text in answered])
    elif first.embedding:
        starts = [" ".join(f"{value:.4f}" for value in found.embedding[:NUMBERS]) + " …" for found in outputs]
        sizes = [len(found.embedding) for found in outputs]
        print_table(["DIMENSIONS", "VECTOR", "TEXT"], zip(sizes, starts, asked, strict=True))
    elif any(found.entities for found in outputs):
        found_in = [(number, entity) for number, found in enumerate(outputs, 1) for entity in found.entities]
        places = [(e.text, e.label, f"{e.score:.3f}", f"{e.start}-{e.end}", number) for number, e in found_in]
        print_table(["ENTITY", "LABEL", "SCORE", "PLACE", "TEXT"], places)
    else:
        for found in outputs:
            print(found.text)
