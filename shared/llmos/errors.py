"""The errors of llmos: each class says what happens next, each message says what to do."""

from msgspec import Struct


class Problem(Struct, frozen=True, omit_defaults=True):
    """An error as it travels on the bus and over HTTP.

    `code` is stable and machine-readable, `message` says what was wrong and where,
    `remedy` what to do; `param` names the field or argument at fault.
    """

    code: str
    message: str
    remedy: str = ""
    param: str = ""


class LlmosError(Exception):
    """Root of the tree; carries a `Problem`."""

    code = "error"

    def __init__(self, message: str, *, remedy: str = "", code: str = "", param: str = "") -> None:
        super().__init__(message)
        self.problem = Problem(code or self.code, message, remedy, param)

    def __str__(self) -> str:
        remedy = self.problem.remedy
        return f"{self.problem.message}. {remedy}" if remedy else self.problem.message


class Rejected(LlmosError):
    """The request is wrong: tell the sender, never retry."""

    code = "rejected"


class NotFound(Rejected):
    """The thing that the request names does not exist."""

    code = "not_found"


class Damaged(Rejected):
    """Stored bytes are not what their address or manifest says: storing them again helps, trying again does not."""

    code = "damaged"


class Busy(LlmosError):
    """It may work later: retry with back-off."""

    code = "busy"


class Unreachable(Busy):
    """No stack answers at the address: start it, or correct the address."""

    code = "unreachable"


class Fatal(LlmosError):
    """This process can't go on: stop it and say why."""

    code = "fatal"


def from_problem(problem: Problem) -> LlmosError:
    """Rebuild the error that a peer sent."""
    kinds: tuple[type[LlmosError], ...] = (Busy, Damaged, Fatal, NotFound, Rejected, Unreachable)
    kind = next((kind for kind in kinds if kind.code == problem.code), LlmosError)
    return kind(problem.message, remedy=problem.remedy, code=problem.code, param=problem.param)
