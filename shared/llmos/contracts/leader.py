"""The leader: which of several schedulers decides."""

from msgspec import Struct


class LeaderElected(Struct, frozen=True, omit_defaults=True):
    """This instance of the scheduler leads from here on; what an earlier leader still says is refused by the bus.

    `term` only ever grows.
    """

    instance: str
    term: int


class LeaderLease(Struct, frozen=True, omit_defaults=True):
    """KV `lease`, key `scheduler`: who may stand for election; renewed by compare-and-set every 1.5 s."""

    instance: str
    node: str = ""
    term: int = 0


class SnapshotPointer(Struct, frozen=True, omit_defaults=True):
    """KV `state`, key `scheduler.snapshot`: the scheduler's state as of an event, so that a start needs only the tail.

    `created` is when the stream EVENTS was made, `address` is in the artifact store, `format` is of the code that wrote
    it: no other reads it. `at` is in Unix seconds.
    """

    sequence: int
    created: str
    address: str
    format: str
    at: float = 0.0
