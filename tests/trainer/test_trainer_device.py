"""What a child makes of the devices that its task leased."""

from typing import Any

import pytest
import torch

from llmos.contracts.jobs import DataSource, JobSpec, ModelSource, TrainSettings
from llmos.contracts.tasks import TaskAssigned
from llmos_trainer.device import memory_share, prepare, settles
from llmos_trainer.gangs import in_gang, processes
from llmos_trainer.orders import TrainOrder
from llmos_trainer.trainings import environment

GIB = 1 << 30
SPEC = JobSpec("j", ModelSource("file:///m"), DataSource("file:///d"))


@pytest.mark.parametrize(
    ("milli", "memory", "share"),
    [
        (1000, 0, 1.0),
        (250, 0, 0.25),
        (250, 40 * GIB, 0.5),
        (1000, 20 * GIB, 0.25),
        (500, 200 * GIB, 1.0),
    ],
)
def test_memory_is_bounded_by_what_was_leased_of_it_or_else_of_the_gpu(milli: int, memory: int, share: float) -> None:
    assert memory_share(milli, memory, 80 * GIB) == share


def test_a_child_sees_its_devices_alone_and_a_slice_by_its_uuid() -> None:
    for devices in ([], ["GPU-a", "GPU-b"], ["MIG-7"]):
        assigned = TaskAssigned("t", "j", "default", "train", 1, 1, SPEC, devices=devices)
        assert environment(assigned)["CUDA_VISIBLE_DEVICES"] == ",".join(devices)
        assert processes(assigned) == max(1, len(devices))
        assert in_gang(assigned) == (len(devices) > 1)


def test_a_child_on_a_gpu_takes_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    total = type("Properties", (), {"total_memory": 80 * GIB})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: total)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *args: done.append(args))
    order = TrainOrder("t", "r", "d", "b", "w", TrainSettings(), device="cuda:1", gpu_memory=8 * GIB)
    device = prepare(order)
    assert device == torch.device("cuda", 1)
    assert done == [device, (0.1, device)]


class Stream:
    """A device's queue of work that is done after so many looks, or fails."""

    def __init__(self, looks: int, *, fails: bool = False) -> None:
        self.looks = looks
        self.fails = fails

    def query(self) -> bool:
        if self.fails:
            raise RuntimeError("NCCL communicator was aborted")
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize(
    ("stream", "saved"), [(Stream(0), True), (Stream(2), True), (Stream(10**9), False), (Stream(0, fails=True), False)]
)
def test_a_device_that_waits_for_a_lost_member_is_not_read_from(
    stream: Stream, saved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    assert settles(torch.device("cuda", 0), within=0.3) is saved
    assert settles(torch.device("cpu"))
