"""A replica runs on the GPU that it leases, or says why it can't; never quietly on another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from msgspec.structs import replace

from llmos.contracts.deployments import ReplicaAssigned
from llmos.contracts.models import ModelVersion
from llmos.errors import Rejected
from llmos_inferencer import core, runtime, state
from llmos_inferencer.devices import device
from llmos_inferencer.engine import Means
from llmos_inferencer.state import Lease, lease_of

HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The root of a machine with three GPUs, the driver's files in another order than the bus."""
    for bus, id in (("0000:af:00.0", "GPU-c3"), ("0000:18:00.0", "GPU-a1"), ("0000:3b:00.0", "GPU-b2")):
        folder = tmp_path / "proc/driver/nvidia/gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t NVIDIA H100\nGPU UUID: \t {id}\nBus Location: \t {bus}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("leased", "visible", "found"),
    [
        ([], None, "cpu"),
        ([], "", "cpu"),
        (["GPU-a1"], None, "cuda:0"),
        (["GPU-c3"], None, "cuda:2"),
        (["GPU-c3"], "2,0", "cuda:0"),
        (["GPU-a1"], "2, 0", "cuda:1"),
        (["GPU-b2"], "GPU-c3,GPU-b", "cuda:1"),
        (["MIG-7"], "MIG-7", "cuda:0"),
    ],
)
def test_the_leased_gpu_is_found_as_cuda_numbers_it_here(
    machine: Path, leased: list[str], visible: str | None, found: str
) -> None:
    assert device(Lease(tuple(leased)), visible, machine) == found


@pytest.mark.parametrize(
    ("leased", "visible", "reason"),
    [
        (["GPU-x"], None, "does not see the GPU GPU-x"),
        (["GPU-a1"], "", "does not see the GPU GPU-a1"),
        (["GPU-a1"], "1,7", "Check CUDA_VISIBLE_DEVICES"),
        (["MIG-7"], None, "CUDA_VISIBLE_DEVICES=MIG-7"),
        (["GPU-a1", "GPU-b2"], None, "leases 2"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_told_with_the_remedy(
    machine: Path, leased: list[str], visible: str | None, reason: str
) -> None:
    with pytest.raises(Rejected) as refused:
        device(Lease(tuple(leased)), visible, machine)
    assert reason in str(refused.value)


def test_a_share_bounds_the_arena_of_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert runtime.providers("cuda:1") == [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
    (name, options), _ = runtime.providers("cuda:0", 1 << 30)
    assert name == "CUDAExecutionProvider"
    assert options["gpu_mem_limit"] == 1 << 30
    assert runtime.providers("cpu", 1 << 30) == ["CPUExecutionProvider"]


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
def test_a_session_that_would_fall_back_to_the_cpu_is_refused(
    artifact: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(Rejected, match="can't use the device 'cuda:0'"):
        runtime.open_session(artifact() / "model.onnx", Means(1, "cuda:0"))


def test_the_same_version_on_other_devices_is_brought_up_there() -> None:
    version = ModelVersion("mood", 1, "default", "text-classification", f"sha256:{1:064x}", "job-1", 0.0)
    first = ReplicaAssigned("mood", "n1", 1, version=version, devices=["GPU-a1"], gpu_memory=8)
    actual = state.came_up(state.began({}, first), first)
    for change, effect in (
        ({}, core.Confirm),
        ({"devices": ["GPU-b2"]}, core.Bring),
        ({"gpu_memory": 9}, core.Bring),
        ({"devices": []}, core.Bring),
    ):
        (found,) = core.converge(state.heard({}, replace(first, generation=2, **change)), actual, 0.0)
        assert type(found) is effect, change
    moved = replace(first, generation=2, devices=["GPU-b2"])
    failed = state.failed(state.began(actual, moved), moved, retryable=True, now=0.0, version=version)
    assert failed["mood"].lease == lease_of(first), "what serves all the same runs where it ran"


async def test_a_replica_on_a_gpu_that_is_not_there_fails_for_good_and_what_served_goes_on(stand: Any) -> None:
    version = await stand.register(1)
    async with stand.running():
        await stand.ready(await stand.deploy(version))
        failed = await stand.failed(await stand.deploy(version, devices=["GPU-x"]))
        assert "GPU-x" in failed.problem.message
        assert not failed.retryable
        assert (await stand.ask("good")).problem is None
        await stand.ready(await stand.deploy(version))


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="this onnxruntime has no CUDA")
def test_a_session_is_opened_on_the_gpu_that_is_there(artifact: Callable[..., Path]) -> None:
    path = artifact() / "model.onnx"
    here, there = (runtime.open_session(path, Means(1, at, gpu_memory=1 << 30)) for at in ("cuda:0", "cpu"))
    assert here.get_providers()[0] == "CUDAExecutionProvider"
    assert [output.name for output in here.get_outputs()] == [output.name for output in there.get_outputs()]
