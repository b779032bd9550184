"""From a conversation to a prompt: the model's chat template, in jinja2's sandbox."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from llmos.contracts.inference import Message
from llmos.errors import Rejected


class ChatTemplate:
    """A Jinja template as transformers writes it. Raises `Rejected` for one that can't be read."""

    def __init__(self, source: str, special: dict[str, str]) -> None:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda shape: datetime.now().strftime(shape)
        self._special = special
        self._errors = TemplateError
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise Rejected(f"the artifact's chat template can't be read: {error}", remedy="Export it again.") from error

    def render(self, messages: Sequence[Message], *, param: str) -> str:
        """The prompt for what the assistant says next. Raises `Rejected` with what the template finds wrong."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self._special)
        except Rejected as error:
            raise Rejected(error.problem.message, remedy=error.problem.remedy, param=param) from None
        except (self._errors, TypeError, ValueError) as error:
            raise Rejected(f"the chat template can't take these messages: {error}", param=param) from error


def _refuse(message: str) -> None:
    raise Rejected(
        f"the chat template refuses these messages: {message}", remedy="Order and name the turns as it says."
    )


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
