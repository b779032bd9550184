"""The leader: which of several schedulers decides."""

from msgspec import Struct


class LeaderElected(Struct, frozen=True, omit_defaults=True):
    """This instance of the scheduler leads from here on; what an earlier leader still says is refused by the bus.

    `term` only ever grows.
    """

    instance: str
    term: int
