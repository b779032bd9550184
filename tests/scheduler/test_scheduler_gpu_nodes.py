"""The live scheduler places work with GPUs where the jobs to expect lose least; work without GPUs as ever."""

from typing import Any

from llmos.contracts.nodes import Gpu
from llmos.contracts.tasks import TaskPlaced

GIB = 1 << 30


def trained_on(world: Any) -> dict[str, str]:
    return {event.job: event.node for event in world.said(TaskPlaced) if event.kind == "train"}


def ready_to_train(world: Any, name: str, **wants: Any) -> None:
    """A job whose check has succeeded."""
    world.submit(name, **wants)
    tasks = world.state.jobs[name].tasks
    tasks["check"].state, tasks["train"].state = "succeeded", "waiting"


def gpus(world: Any, node: str, memory: int) -> None:
    """Give the node's GPUs another size."""
    has = world.state.nodes[node].inventory
    has.gpus[:] = [Gpu(gpu.id, f"gpu{memory}", memory * GIB, gpu.index) for gpu in has.gpus]


def test_small_work_leaves_the_node_that_large_work_needs(make_world: Any) -> None:
    world = make_world().node("a", 32, 64 * GIB, gpus=4).node("b", 32, 64 * GIB, gpus=4)
    ready_to_train(world, "j0", gpus=4)
    for number in range(1, 5):
        ready_to_train(world, f"j{number}", gpus=1, priority=1)
    placed = trained_on(world.settle())
    assert len({placed[f"j{number}"] for number in range(1, 5)}) == 1
    assert placed["j0"] not in {placed[f"j{number}"] for number in range(1, 5)}


def test_gpus_with_much_memory_are_left_to_who_needs_them(make_world: Any) -> None:
    world = make_world().node("a-80", 32, 64 * GIB, gpus=2).node("b-16", 32, 64 * GIB, gpus=2)
    gpus(world, "a-80", 80)
    gpus(world, "b-16", 16)
    for number in range(2):
        ready_to_train(world, f"big{number}", gpus=1, gpu_memory="40GiB")
        ready_to_train(world, f"any{number}", gpus=1, priority=1)
    placed = trained_on(world.settle())
    assert placed == {"any0": "b-16", "any1": "b-16", "big0": "a-80", "big1": "a-80"}


def test_a_gpu_task_avoids_the_node_where_it_failed_whatever_the_loss(make_world: Any) -> None:
    world = make_world().node("a", 32, 64 * GIB, gpus=1).node("b", 32, 64 * GIB, gpus=8)
    ready_to_train(world, "j", gpus=1)
    world.state.jobs["j"].tasks["train"].avoid = "a"
    assert trained_on(world.settle()) == {"j": "b"}


def test_work_without_gpus_keeps_off_gpu_nodes(make_world: Any) -> None:
    world = make_world().node("a", 8, 8 * GIB, gpus=2).node("b", 8, 8 * GIB)
    ready_to_train(world, "j", cpus=1)
    assert trained_on(world.settle()) == {"j": "b"}
