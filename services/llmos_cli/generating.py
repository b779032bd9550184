"""Options of commands that have text generated."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from llmos.errors import NotFound, Rejected

if TYPE_CHECKING:
    from llmos.contracts.inference import InferenceParams


@Parameter(name="*")
@dataclass(frozen=True)
class Generating:
    """How text is generated; what is not given is as the model's artifact says."""

    max_tokens: Annotated[int, Parameter(help="How many tokens at most; 0: as the model says.")] = 0
    temperature: Annotated[float | None, Parameter(help="0 always takes the likeliest token.")] = None
    top_p: Annotated[float | None, Parameter(help="Choose among the likeliest tokens of this probability.")] = None
    top_k: Annotated[int | None, Parameter(help="Choose among so many likeliest tokens.")] = None
    seed: Annotated[int | None, Parameter(help="The same seed gives the same text.")] = None
    stop: Annotated[list[str] | None, Parameter(help="End before this text; may be repeated.")] = None
    schema: Annotated[str | None, Parameter(help="A file with a JSON schema that the text must fit.")] = None
    regex: Annotated[str, Parameter(help="A regular expression that the text must fit.")] = ""

    def params(self) -> "InferenceParams":
        """As the request carries it. Raises `NotFound` and `Rejected` for a bad schema file."""
        from llmos.contracts.inference import InferenceParams

        return InferenceParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=self.stop or [],
            schema=_schema(self.schema) if self.schema else None,
            regex=self.regex,
        )


def _schema(file: str) -> dict[str, object]:
    try:
        schema: dict[str, object] = msgspec.json.decode(Path(file).read_bytes(), type=dict)
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}", remedy="Correct the path.") from None
    except msgspec.DecodeError as error:
        raise Rejected(f"{file}: {error}", remedy="Write a JSON schema, an object.") from error
    return schema
