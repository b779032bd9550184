"""The complete check of queue settings: every fault at once, each with the path of its field. Pure."""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from llmos.contracts.jobs import Fault
from llmos.contracts.queues import POLICIES, QueueSettings
from llmos.specs import check_queue_path, check_shape

MOST_QUEUES = 1_000


def check_queues(raw: Any, at: str = "queues") -> tuple[list[QueueSettings], list[Fault]]:
    """Read the settings of all queues (a list of objects): the settings, or everything that is wrong with them.

    Whether the cluster has as many GPUs as the quotas guarantee is not asked: nodes come and go.
    """
    if not isinstance(raw, list):
        return [], [Fault(at, "must be a list of queues")]
    if len(raw) > MOST_QUEUES:
        return [], [Fault(at, f"lists {len(raw)} queues; at most {MOST_QUEUES} are possible")]
    faults: list[Fault] = []
    names: dict[str, str] = {}
    for index, item in enumerate(raw):
        path = f"{at}[{index}]"
        if not isinstance(item, dict):
            faults.append(Fault(path, "must be an object with a name"))
            continue
        shape = check_shape(item, QueueSettings, f"{path}.")
        broken = {fault.path for fault in shape}
        faults += shape
        faults += [fault for fault in _rules(item, path, names) if fault.path not in broken]
    if faults:
        return [], faults
    queues = [msgspec.convert(item, QueueSettings) for item in raw]
    faults = _guarantees(queues, at)
    return ([], faults) if faults else (queues, [])


def _rules(item: Mapping[str, Any], path: str, names: dict[str, str]) -> list[Fault]:
    faults: list[Fault] = []
    name, policy, weight = item.get("name"), item.get("policy"), item.get("weight")
    if isinstance(name, str):
        if wrong := check_queue_path(name):
            faults.append(Fault(f"{path}.name", wrong))
        elif name in names:
            faults.append(Fault(f"{path}.name", f"{name!r} is {names[name]} already"))
        names.setdefault(name, path)
    if isinstance(policy, str) and policy and policy not in POLICIES:
        near = get_close_matches(policy, POLICIES, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(POLICIES)}"
        faults.append(Fault(f"{path}.policy", f"there is no policy {policy[:100]!r}; {hint}"))
    if isinstance(weight, int | float) and not (weight > 0 and math.isfinite(weight)):
        faults.append(Fault(f"{path}.weight", f"must be above 0, not {weight:g}"))
    for field in ("quota", "limit"):
        value = item.get(field)
        if isinstance(value, int) and value < 0:
            faults.append(Fault(f"{path}.{field}", f"must be at least 0 GPUs, not {value}"))
    quota, limit = item.get("quota"), item.get("limit")
    if isinstance(quota, int) and isinstance(limit, int) and 0 <= limit < quota:
        faults.append(Fault(f"{path}.limit", f"is {limit} GPUs, below the quota of {quota}: it could never be used"))
    return faults


def _guarantees(queues: Sequence[QueueSettings], at: str) -> list[Fault]:
    """Quotas below a queue can't be more than its own quota or limit."""
    faults = []
    for index, queue in enumerate(queues):
        most = queue.quota if queue.quota is not None else queue.limit
        below = guaranteed(queues, queue.name)
        if most is not None and below > most:
            field = "quota" if queue.quota is not None else "limit"
            message = f"is {most} GPUs, but the queues below {queue.name} are guaranteed {below}"
            faults.append(Fault(f"{at}[{index}].{field}", message))
    return faults


def guaranteed(queues: Sequence[QueueSettings], above: str = "") -> int:
    """GPUs that the queues below `above` (empty: the root) are guaranteed: the topmost quotas on each path."""
    under = {queue.name: queue.quota for queue in queues if queue.quota is not None and _below(queue.name, above)}
    return sum(quota for name, quota in under.items() if not any(_below(name, other) for other in under))


def _below(name: str, above: str) -> bool:
    return name.startswith(f"{above}/") if above else True
