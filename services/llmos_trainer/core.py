"""The trainer's decisions, pure: what to do with an assignment, and what to make of the end of a child."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from llmos.contracts.jobs import Fault
from llmos.contracts.tasks import TaskStopRequested
from llmos.errors import LlmosError, Problem
from llmos_trainer.orders import End, Failed, Faulted, Finished, Stopped

GRACE_S = 5.0  # whoever sees that another member is gone lets that one's own story be told first
CRASHES = 2  # so often a child is started again within one attempt

_FOR_MEMORY = "If it was killed for memory, lower train.batch_size or ask for more in resources.memory."

# Why a run ends before its work does: by the end of this service; because its lease is asked back, to go on elsewhere;
# because nobody wants it any more; or by a newer lease.
Intent = Literal["drain", "preempt", "cancel", "superseded"]
INTENTS: tuple[Intent, ...] = ("drain", "preempt", "cancel", "superseded")  # a later one overrides those before it
SAVING: tuple[Intent | None, ...] = ("drain", "preempt")  # with a checkpoint of what is done


class GangBroken(LlmosError):
    """A member of a gang is gone, or never came: what the others hold is only good for a checkpoint."""

    code = "gang_broken"


class SaySucceeded(Struct, frozen=True):
    """Say `TaskSucceeded`. `outputs` are the child's folders by role, or their addresses once they are stored."""

    outputs: dict[str, str]
    metrics: dict[str, float]


class SayRejected(Struct, frozen=True):
    """Say `TaskRejected`."""

    faults: list[Fault]


class SayFailed(Struct, frozen=True):
    """Say `TaskFailed`."""

    problem: Problem
    retryable: bool


class SayCancelled(Struct, frozen=True):
    """Say `TaskCancelled`."""


class StartAgain(Struct, frozen=True):
    """Start another child from the newest checkpoint."""


class HandBack(Struct, frozen=True):
    """Give the assignment back to the queue, for whoever runs here next."""


class LetGo(Struct, frozen=True):
    """Say nothing: the lease is no longer the task's newest."""


Effect = SaySucceeded | SayRejected | SayFailed | SayCancelled | StartAgain | HandBack | LetGo


def decide_assigned(
    lease: int, running: int | None, stopped: int | None
) -> Literal["start", "join", "replace", "stop", "let go"]:
    """What to do with an assignment under `lease`.

    `running` is the lease under which the task runs here, `stopped` the newest lease that was told to stop. A lease
    that runs already was redelivered; an older one is stale.
    """
    if running is not None and running >= lease:
        return "join" if running == lease else "let go"
    if stopped is not None and stopped >= lease:
        return "stop" if stopped == lease else "let go"
    return "start" if running is None else "replace"


def newest_stop(known: TaskStopRequested | None, request: TaskStopRequested) -> TaskStopRequested:
    """Which stop request of a task counts: that of the newest lease; within one, that which wants nothing saved."""
    if known is None or (known.lease, not known.checkpoint) < (request.lease, not request.checkpoint):
        return request
    return known


def intent_of(request: TaskStopRequested) -> Intent:
    """What a stop request makes a run do."""
    return "preempt" if request.checkpoint else "cancel"


def overrides(intent: Intent, current: Intent | None) -> bool:
    """Whether a run that was told `current` takes note of `intent`."""
    return current is None or INTENTS.index(intent) > INTENTS.index(current)


def decide_ended(end: End | None, exit: str, intent: Intent | None, crashes: int) -> Effect:
    """What to make of a child that is gone.

    `end` is its last word, if it had one, `exit` how its process ended, `crashes` how often one ended without a word
    before. What it was told counts more than what it still achieved, except that a saving child may have finished.
    """
    if intent == "superseded":
        return LetGo()
    if intent == "cancel":
        return SayCancelled()
    match end:
        case Finished(trees, metrics):
            return SaySucceeded(trees, metrics)
        case Faulted(faults):
            return SayRejected(faults)
        case Failed(problem, retryable):
            return SayFailed(problem, retryable)
    if intent == "drain":
        return HandBack()
    if intent == "preempt":
        return SayCancelled()
    if crashes < CRASHES:
        return StartAgain()
    return SayFailed(
        Problem(
            "child_died",
            f"the process of the task ended {crashes + 1} times without a result: {exit}",
            remedy=_FOR_MEMORY,
        ),
        retryable=True,
    )


def decide_member_ended(end: End | None, exit: str, intent: Intent | None) -> Effect:
    """What to make of a gang's processes on this node, which are gone; `end` is the one that tells most.

    A gang is never put together again under its lease: whoever is lost, the next lease goes on from the checkpoint.
    Where all stopped because one of them was told to, the work is given back.
    """
    if intent == "superseded":
        return LetGo()
    if intent == "cancel":
        return SayCancelled()
    match end:
        case Finished(trees, metrics):
            return SaySucceeded(trees, metrics)
        case Failed(problem, retryable):
            return SayFailed(problem, retryable)
        case Stopped():
            return SayCancelled()
    if intent == "preempt":
        return SayCancelled()
    if intent == "drain":
        return SayFailed(GangBroken("the trainer of a member stopped, and its process did not in time").problem, True)
    message = f"the process of a member of the gang ended without a result: {exit}"
    return SayFailed(Problem("child_died", message, remedy=_FOR_MEMORY), retryable=True)


def most_telling(ends: Sequence[tuple[End | None, str]]) -> tuple[End | None, str]:
    """Of the ends of a node's processes, the first that says why: a failure of its own, a death, a lost peer; else the
    first."""

    def rank(ended: tuple[End | None, str]) -> int:
        match ended[0]:
            case Failed(problem, _):
                return 2 if problem.code == GangBroken.code else 0
            case None:
                return 1
        return 3

    return min(ends, key=rank)
