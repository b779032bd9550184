"""`llmos infer`: ask a deployed model."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from llmos.errors import NotFound, Rejected
from llmos_cli.exits import Exit, say
from llmos_cli.options import Output, Target
from llmos_cli.printing import print_table, print_value

if TYPE_CHECKING:
    from llmos.contracts.inference import InferenceAnswered

AT_ONCE = 64  # texts in one request


def infer(
    deployment: str,
    /,
    *texts: str,
    file: Annotated[str | None, Parameter(name=["--file", "-f"], allow_leading_hyphen=True)] = None,
    top: int = 0,
    timeout: float = 10.0,
    output: Output = "table",
    target: Target = Target(),
) -> int:
    """Classify texts with a deployed model.

    Parameters
    ----------
    deployment
        The name under which the model is served.
    texts
        The texts to classify.
    file
        Read texts from this file, one a line; - reads stdin.
    top
        How many labels to list for each text in JSON and YAML; 0 lists all.
    timeout
        Give up after so many seconds.
    """
    asked = [*texts, *_lines(file)]
    if not asked:
        raise Rejected("there is no text to classify", remedy=f"llmos infer {deployment} 'some text'")

    async def ask() -> "list[InferenceAnswered]":
        async with await target.connect() as client:
            starts = range(0, len(asked), AT_ONCE)
            return [await client.infer(deployment, asked[at : at + AT_ONCE], top=top, timeout=timeout) for at in starts]

    answers = asyncio.run(ask())
    outputs = [output for answer in answers for output in answer.outputs]
    if output == "table":
        rows = [(found.label, f"{found.score:.3f}", text) for found, text in zip(outputs, asked, strict=True)]
        print_table(["LABEL", "SCORE", "TEXT"], rows)
        first = answers[0]
        say(f"{first.model} version {first.version} on {first.node}, {sum(a.compute_ms for a in answers):.1f} ms")
    else:
        rest = {"model": answers[0].model, "version": answers[0].version, "node": answers[0].node}
        print_value({**rest, "outputs": outputs}, output)
    return Exit.OK


def _lines(file: str | None) -> list[str]:
    if file is None:
        return []
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}", remedy="Correct the path.") from None
    except UnicodeDecodeError as error:
        raise Rejected(f"{file}: not UTF-8 at byte {error.start}", remedy="Save the file as UTF-8 text.") from error
    return [line for line in text.splitlines() if line.strip()]
