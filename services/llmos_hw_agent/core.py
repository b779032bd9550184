"""The hw-agent's decisions: what the node's inventory is, and whether there is something to say about it. Pure."""

from msgspec import Struct
from msgspec.structs import replace

from llmos.contracts.nodes import Inventory, NodeInventoried

GIB = 1 << 30


def same(old: Inventory, new: Inventory) -> bool:
    """Whether nothing changed that matters. Free disk drifts all the time: it counts from 1 GiB and a tenth on."""
    drift = abs(old.disk - new.disk)
    return replace(old, disk=0) == replace(new, disk=0) and (drift < GIB or drift < old.disk / 10)


class Telling(Struct, frozen=True):
    """What the node's newest fact is (to be noted on disk if that lacks it), and whether to say it."""

    fact: NodeInventoried
    say: bool


def decide(node: str, inventory: Inventory, kept: NodeInventoried | None, said: NodeInventoried | None) -> Telling:
    """What is true now. `kept` is what this node noted last, `said` what the history holds.

    Versions only grow, also when one of the two was lost; where both have one version, the history is right. What the
    history forgot (it keeps 30 days) is said again.
    """
    newest = max((fact for fact in (said, kept) if fact is not None), key=lambda fact: fact.version, default=None)
    if newest is None:
        return Telling(NodeInventoried(node, 1, inventory), True)
    if not same(newest.inventory, inventory):
        return Telling(NodeInventoried(node, newest.version + 1, inventory), True)
    return Telling(newest, newest != said)
