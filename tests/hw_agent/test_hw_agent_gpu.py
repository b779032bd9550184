"""GPUs: one contract for NVML on a simulated library and on a real GPU, and a driver that hangs."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from llmos.clock import SystemClock
from llmos.contracts.nodes import Gpu
from llmos_hw_agent.aside import Aside
from llmos_hw_agent.fabric import infiniband
from llmos_hw_agent.gpu import GONE_AFTER_S, GpuInventory, GpuLoad, GpuWatch, Nvml

GIB = 1 << 30


class Card:
    """What a simulated GPU answers; `lost` makes every question about it fail, `silent` only that for utilisation.

    `parts` are its MIG slices by number, `None`: it is not in MIG mode; `wired` is its NVLink cluster and clique.
    """

    def __init__(
        self,
        uuid: str,
        *,
        lost: bool = False,
        silent: bool = False,
        name: bytes = b"NVIDIA H100",
        memory: int = 80 * GIB,
        parts: "dict[int, Card] | None" = None,
        wired: tuple[bytes, int] | None = None,
        sizes: tuple[int, int] = (0, 0),
    ) -> None:
        self.uuid = uuid
        self.lost = lost
        self.silent = silent
        self.name = name
        self.memory = memory
        self.parts = parts
        self.wired = wired
        self.sizes = sizes


class Library:
    """The functions of pynvml that are used, over simulated cards."""

    NVMLError = pynvml.NVMLError
    NVML_SUCCESS = pynvml.NVML_SUCCESS
    NVML_GPU_FABRIC_STATE_COMPLETED = pynvml.NVML_GPU_FABRIC_STATE_COMPLETED
    c_nvmlGpuFabricInfo_t = pynvml.c_nvmlGpuFabricInfo_t  # noqa: N815

    def __init__(self, cards: list[Card], *, driver: bool = True) -> None:
        self.cards = cards
        self.driver = driver
        self.opened = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        self._driver()
        return 12080

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        self._driver()
        return b"570.10"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._driver()
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        if self.cards[index].lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.cards[index]

    def nvmlDeviceGetCudaComputeCapability(self, card: Card) -> tuple[int, int]:  # noqa: N802
        return 9, 0

    def nvmlDeviceGetUUID(self, card: Card) -> str:  # noqa: N802
        return card.uuid

    def nvmlDeviceGetName(self, card: Card) -> bytes:  # noqa: N802
        return card.name

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:  # noqa: N802
        return type("Memory", (), {"total": card.memory, "used": card.memory // 4})

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:  # noqa: N802
        if card.sizes != (0, 0):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        if card.name == b"Tesla T4":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(card.parts is not None), 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, index: int) -> Card:  # noqa: N802
        if index not in (card.parts or {}):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        assert card.parts is not None
        return card.parts[index]

    def nvmlDeviceGetAttributes_v2(self, card: Card) -> Any:  # noqa: N802
        compute, whole = card.sizes
        size = card.memory >> 20
        names = {"computeInstanceSliceCount": compute, "gpuInstanceSliceCount": whole, "memorySizeMB": size}
        return type("Attributes", (), names)

    def nvmlDeviceGetGpuFabricInfo(self, card: Card, pointer: Any) -> None:  # noqa: N802
        if card.wired is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        info = pointer._obj
        info.clusterUuid[:] = list(card.wired[0])
        info.cliqueId, info.state, info.status = card.wired[1], pynvml.NVML_GPU_FABRIC_STATE_COMPLETED, 0

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> Any:  # noqa: N802
        if card.silent:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return type("Rates", (), {"gpu": 75, "memory": 10})

    def _driver(self) -> None:
        if not self.driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)


def cut_card() -> Card:
    """A GPU in MIG mode with three slices, the numbers of which have gaps."""
    return Card(
        "GPU-c",
        parts={
            0: Card("MIG-1", name=b"NVIDIA H100 MIG 3g.40gb", memory=40 * GIB, sizes=(3, 3)),
            2: Card("MIG-2", name=b"NVIDIA H100", memory=9856 << 20, sizes=(1, 1)),
            5: Card("MIG-3", name=b"NVIDIA H100", memory=40448 << 20, sizes=(1, 3)),
        },
    )


@pytest.fixture(params=["simulated", "in MIG mode", "real"])
def nvml(request: pytest.FixtureRequest) -> Iterator[Nvml]:
    if request.param == "simulated":
        yield Nvml(Library([Card("GPU-a"), Card("GPU-b")]))
        return
    if request.param == "in MIG mode":
        yield Nvml(Library([Card("GPU-a"), cut_card()]))
        return
    reader = Nvml()
    if not reader.inventory().gpus:
        pytest.skip("no NVIDIA GPU on this machine")
    yield reader


def test_the_inventory_names_every_gpu_and_the_driver(nvml: Nvml) -> None:
    found = nvml.inventory()
    assert found.driver
    assert float(found.cuda) >= 10
    assert [gpu.index for gpu in found.gpus] == sorted(gpu.index for gpu in found.gpus)
    assert not {gpu.parent for gpu in found.gpus} & {gpu.id for gpu in found.gpus}, "what is cut is no device itself"
    assert len({gpu.id for gpu in found.gpus}) == len(found.gpus)
    for gpu in found.gpus:
        assert gpu.id.startswith("MIG-" if gpu.parent else "GPU-")
        assert bool(gpu.profile) == bool(gpu.parent)
        assert gpu.model
        assert gpu.memory > 0
        assert float(gpu.compute) >= 3
    assert nvml.inventory() == found


def test_the_load_is_in_shares_and_of_known_gpus(nvml: Nvml) -> None:
    known = {gpu.index for gpu in nvml.inventory().gpus}
    for load in nvml.load():
        assert load.index in known
        assert 0 <= load.utilisation <= 1
        assert 0 <= load.memory <= 1


def test_simulated_cards_are_read_as_they_are() -> None:
    reader = Nvml(Library([Card("GPU-a")]))
    assert reader.inventory() == GpuInventory([Gpu("GPU-a", "NVIDIA H100", 80 * GIB, 0, "9.0")], "570.10", "12.8")
    assert reader.load() == [GpuLoad(0, 0.75, 0.25)]


def test_the_slices_of_a_gpu_in_mig_mode_are_devices_and_it_is_not() -> None:
    reader = Nvml(Library([Card("GPU-a"), cut_card(), Card("GPU-d", name=b"Tesla T4"), Card("GPU-e", parts={})]))
    whole, *parts, old = reader.inventory().gpus
    assert (whole.id, whole.parent, whole.profile) == ("GPU-a", "", "")
    assert [(part.id, part.profile, part.memory >> 20) for part in parts] == [
        ("MIG-1", "3g.40gb", 40960),
        ("MIG-2", "1g.10gb", 9856),
        ("MIG-3", "1c.3g.40gb", 40448),
    ]
    assert {(part.parent, part.model, part.index, part.compute) for part in parts} == {
        ("GPU-c", "NVIDIA H100", 1, "9.0")
    }
    assert old.id == "GPU-d", "a GPU that can't be cut; one that is cut and has no slice is no device at all"


def test_the_nvlink_domain_is_told_if_all_gpus_are_in_it() -> None:
    here, there = (bytes([number]) * 16 for number in (10, 11))
    for cards, fabric in (
        ([Card("GPU-a", wired=(here, 3)), Card("GPU-b", wired=(here, 3))], "nvlink-0a0a0a0a.3"),
        ([Card("GPU-a", wired=(here, 3)), Card("GPU-b", wired=(there, 3))], ""),
        ([Card("GPU-a", wired=(here, 3)), Card("GPU-b")], ""),
        ([Card("GPU-a", wired=(bytes(16), 0))], ""),
        ([], ""),
    ):
        assert Nvml(Library(cards)).inventory().fabric == fabric


def test_the_first_active_infiniband_port_names_the_fabric(tmp_path: Path) -> None:
    def port(name: str, link: str, state: str, prefix: str) -> None:
        folder = tmp_path / "sys/class/infiniband" / name / "ports/1"
        (folder / "gids").mkdir(parents=True)
        (folder / "link_layer").write_text(f"{link}\n")
        (folder / "state").write_text(f"{state}\n")
        (folder / "gids/0").write_text(f"{prefix}:0002:c903:0001:0002\n")

    assert infiniband(tmp_path) == ""
    port("mlx5_0", "Ethernet", "4: ACTIVE", "fe80:0000:0000:0000")
    port("mlx5_1", "InfiniBand", "1: DOWN", "fe80:0000:0000:0001")
    assert infiniband(tmp_path) == ""
    port("mlx5_2", "InfiniBand", "4: ACTIVE", "fec0:0000:0000:000a")
    assert infiniband(tmp_path) == "ib-fec000000000000a"


def test_a_machine_without_library_or_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Nvml(Library([], driver=False)).inventory() == GpuInventory()
    assert Nvml(Library([], driver=False)).load() == []
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert Nvml().inventory() == GpuInventory()


def test_a_lost_gpu_is_left_out_and_one_that_does_not_say_its_load_stays() -> None:
    reader = Nvml(Library([Card("GPU-a", lost=True), Card("GPU-b", silent=True), Card("GPU-c")]))
    assert [gpu.id for gpu in reader.inventory().gpus] == ["GPU-b", "GPU-c"]
    assert [load.index for load in reader.load()] == [2]


def test_a_driver_that_restarts_is_opened_again() -> None:
    library = Library([Card("GPU-a")])
    reader = Nvml(library)
    assert reader.inventory().gpus
    library.driver = False
    assert reader.inventory() == GpuInventory()
    library.driver = True
    assert reader.inventory().gpus
    assert library.opened == 2


class Hanging:
    """A reader whose driver can be made to hang."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.asked = 0
        self.error: Exception | None = None
        self.found = GpuInventory([Gpu("GPU-a", "H100", 80 * GIB)], "570", "12.8")

    def inventory(self) -> GpuInventory:
        self.asked += 1
        self.free.wait(30)
        if self.error:
            raise self.error
        return self.found

    def load(self) -> list[GpuLoad]:
        self.free.wait(30)
        return [GpuLoad(0, 0.5, 0.5)]


class Hands:
    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


async def test_a_driver_that_hangs_is_reported_once_and_never_waited_for() -> None:
    reader, warnings, hands = Hanging(), list[str](), Hands()
    watch = GpuWatch(reader, hands, warnings.append, timeout=0.05)
    known = await watch.inventory()
    assert known == reader.found
    assert await watch.load() == [GpuLoad(0, 0.5, 0.5)]
    reader.free.clear()
    assert await watch.inventory() == known  # what is known stands for a while
    asked = reader.asked
    for _ in range(3):
        assert await watch.load() == []
        assert await watch.inventory() == known
    assert reader.asked == asked  # nothing piles up behind the call that hangs
    assert warnings == ["NVML does not answer within 0.05 s"]
    hands.at += GONE_AFTER_S + 1
    assert await watch.inventory() == GpuInventory()  # no work for GPUs whose driver is gone
    reader.free.set()
    for _ in range(100):
        if (await watch.inventory()).gpus:
            break
        await asyncio.sleep(0.02)
    assert await watch.inventory() == known
    assert warnings[1:] == ["NVML answers again"]


async def test_a_surprise_of_the_library_is_reported_and_survived() -> None:
    reader, warnings = Hanging(), list[str]()
    watch = GpuWatch(reader, SystemClock(), warnings.append)
    reader.error = AttributeError("no such function")
    assert await watch.inventory() == GpuInventory()
    assert warnings == ["NVML failed: AttributeError: no such function"]
    reader.error = None
    assert (await watch.inventory()).gpus


async def test_calls_aside_do_not_stop_the_loop_and_come_one_at_a_time() -> None:
    aside, running = Aside("test"), list[int]()

    def call() -> int:
        running.append(1)
        assert len(running) == 1
        time.sleep(0.02)
        running.pop()
        return threading.get_ident()

    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    threads = await asyncio.gather(*(aside.run(call, timeout=5) for _ in range(4)))
    counting.cancel()
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    assert turns > 4
