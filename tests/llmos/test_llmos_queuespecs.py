"""Queue settings: every fault is named at once, with the path of its field."""

from typing import Any

import pytest

from llmos.contracts.jobs import Fault
from llmos.contracts.queues import QueueSettings
from llmos.queuespecs import check_queues, guaranteed


def faults_of(*queues: Any) -> list[str]:
    return [str(fault) for fault in check_queues(list(queues))[1]]


def test_right_settings_are_read() -> None:
    queues, faults = check_queues([{"name": "a", "quota": 4}, {"name": "a/b", "policy": "srsf", "weight": 2}])
    assert faults == []
    assert queues == [QueueSettings("a", quota=4), QueueSettings("a/b", "srsf", 2.0)]
    assert check_queues([]) == ([], [])


def test_every_fault_is_named_with_its_field() -> None:
    assert faults_of(
        {"name": "a", "quote": 4, "weight": 0},
        {"name": "a b", "policy": "srfs", "quota": -1, "limit": "many"},
        {"policy": "x"},
        {"name": "a", "quota": 4, "limit": 2},
        "a",
    ) == [
        "queues[0].quote: no such field; did you mean quota?",
        "queues[0].weight: must be above 0, not 0",
        "queues[1].limit: must be int or null, not str",
        "queues[1].name: 'a b' must be names of 1 to 128 letters, digits, '_' or '-', with / between them",
        "queues[1].policy: there is no policy 'srfs'; did you mean srsf?",
        "queues[1].quota: must be at least 0 GPUs, not -1",
        "queues[2].name: is missing",
        "queues[2].policy: there is no policy 'x'; known are priority, priority-preempt, fifo, easy, round-robin, saf, "
        "srsf, las, deadline",
        "queues[3].name: 'a' is queues[0] already",
        "queues[3].limit: is 2 GPUs, below the quota of 4: it could never be used",
        "queues[4]: must be an object with a name",
    ]


@pytest.mark.parametrize("field", ["quota", "limit"])
def test_a_queue_can_not_guarantee_more_than_it_has(field: str) -> None:
    below = [{"name": "a/b", "quota": 3}, {"name": "a/c/d", "quota": 2}, {"name": "a/c/d/e", "quota": 1}]
    _, faults = check_queues([{"name": "a", field: 4}, *below])
    assert faults == [Fault(f"queues[0].{field}", "is 4 GPUs, but the queues below a are guaranteed 5")]
    queues, faults = check_queues([{"name": "a", field: 5}, *below])
    assert (guaranteed(queues), faults) == (5, [])


def test_what_is_no_list_is_said_to_be_none() -> None:
    assert check_queues({"a": 1})[1] == [Fault("queues", "must be a list of queues")]
