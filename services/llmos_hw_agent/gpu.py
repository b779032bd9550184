"""GPUs through NVML: read in a thread of its own, given up when it hangs."""

import importlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from llmos.clock import Clock
from llmos.contracts.nodes import Gpu
from llmos_hw_agent.aside import Aside
from llmos_hw_agent.fabric import nvlink_domain
from llmos_hw_agent.slices import slices

T = TypeVar("T")

TIMEOUT_S = 5.0
GONE_AFTER_S = 60.0  # a driver that is silent for so long gets no more work


class GpuInventory(Struct, frozen=True):
    """What there is. `driver` and `cuda` (the newest version that the driver supports) are empty without a driver,
    `fabric` is the NVLink domain that all GPUs belong to, empty if there is none."""

    gpus: list[Gpu] = []
    driver: str = ""
    cuda: str = ""
    fabric: str = ""


class GpuLoad(Struct, frozen=True):
    """One GPU now: utilisation and memory in use, both 0–1."""

    index: int
    utilisation: float
    memory: float


class GpuReader(Protocol):
    """What is asked of a GPU library. Calls may take long or hang, and come from one thread."""

    def inventory(self) -> GpuInventory:
        """The GPUs that work now; none, rather than an error, without a library, a driver or a device."""

    def load(self) -> list[GpuLoad]:
        """How busy they are; a GPU that can't say is left out."""


class Nvml:
    """NVML by `nvidia-ml-py`. Opened at the first call, and again after a failure: a driver may come, or restart."""

    def __init__(self, library: Any = None) -> None:
        self._library = library
        self._open = False

    def inventory(self) -> GpuInventory:
        nvml = self._ready()
        if nvml is None:
            return GpuInventory()
        try:
            cuda = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
            count = int(nvml.nvmlDeviceGetCount())
            return GpuInventory(
                [gpu for index in range(count) for gpu in _devices(nvml, index)],
                _text(nvml.nvmlSystemGetDriverVersion()),
                f"{cuda // 1000}.{cuda % 1000 // 10}",
                nvlink_domain(nvml, count),
            )
        except nvml.NVMLError:
            self._close(nvml)
            return GpuInventory()

    def load(self) -> list[GpuLoad]:
        nvml = self._ready()
        if nvml is None:
            return []
        loads: list[GpuLoad] = []
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                try:
                    handle = nvml.nvmlDeviceGetHandleByIndex(index)
                    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
                except nvml.NVMLError:
                    continue  # lost, or a kind that does not say (MIG)
                loads.append(GpuLoad(index, rates.gpu / 100, memory.used / max(1, memory.total)))
        except nvml.NVMLError:
            self._close(nvml)
        return loads

    def _ready(self) -> Any:
        if self._library is None:
            try:
                self._library = importlib.import_module("pynvml")
            except ImportError:
                return None
        if not self._open:
            try:
                self._library.nvmlInit()
            except self._library.NVMLError:
                return None  # no library or no driver
            self._open = True
        return self._library

    def _close(self, nvml: Any) -> None:
        self._open = False
        try:
            nvml.nvmlShutdown()
        except nvml.NVMLError:
            pass  # it was not open any more


class GpuWatch:
    """Asks a reader without ever blocking. A hang is reported once; what is known stands for a minute, then nothing."""

    def __init__(
        self, reader: GpuReader, clock: Clock, warn: Callable[[str], None], *, timeout: float = TIMEOUT_S
    ) -> None:
        self._reader = reader
        self._clock = clock
        self._warn = warn
        self._timeout = timeout
        self._aside = Aside("nvml")
        self._known = GpuInventory()
        self._answered = clock.monotonic()
        self._fault = ""

    async def inventory(self) -> GpuInventory:
        """What there is, as far as is known; returns within the timeout."""
        found = await self._ask(self._reader.inventory)
        if found is not None:
            self._known = found
        elif self._clock.monotonic() - self._answered > GONE_AFTER_S:
            self._known = GpuInventory()
        return self._known

    async def load(self) -> list[GpuLoad]:
        """How busy the GPUs are; nothing when they do not say in time, or when there are none."""
        return await self._ask(self._reader.load) or [] if self._known.gpus else []

    async def _ask(self, call: Callable[[], T]) -> T | None:
        fault = ""
        answer: T | None = None
        try:
            answer = await self._aside.run(call, timeout=self._timeout)
        except TimeoutError:
            fault = f"NVML does not answer within {self._timeout:g} s"
        except Exception as error:  # noqa: BLE001  # a library's surprise is reported; the node goes on without its GPUs
            fault = f"NVML failed: {type(error).__name__}: {error}"
        if fault != self._fault:
            self._warn(fault or "NVML answers again")
        self._fault = fault
        if not fault:
            self._answered = self._clock.monotonic()
        return answer


def _devices(nvml: Any, index: int) -> list[Gpu]:
    """What work can be placed on of the GPU `index`: itself, its slices in MIG mode, or nothing if it has failed."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        gpu = Gpu(
            id=_text(nvml.nvmlDeviceGetUUID(handle)),
            model=_text(nvml.nvmlDeviceGetName(handle)),
            memory=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            index=index,
            compute=f"{major}.{minor}",
        )
    except nvml.NVMLError:
        return []
    try:
        cut, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        cut = 0  # a GPU that can't be cut
    return slices(nvml, handle, gpu) if cut else [gpu]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
