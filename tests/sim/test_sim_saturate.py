"""`llmos simulate saturate`: its file is re-checked by arithmetic of its own, and the same seed gives the same bytes.

`openb/` is an extract of alibaba/clusterdata's cluster-trace-gpu-v2023 (every 45th node, every 60th pod; Apache-2.0).
"""

import csv
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llmos_scheduler.cluster import Device, Machine, Shape
from llmos_scheduler.ranking import RANKINGS
from llmos_scheduler.saturate import saturate
from llmos_scheduler.simulate import main

OPENB = Path(__file__).parent / "openb"
NODES, TASKS = OPENB / "nodes.csv", OPENB / "tasks.csv"


def run(out: Path, *options: str) -> list[dict[str, Any]]:
    assert main(["saturate", "--nodes", str(NODES), "--tasks", str(TASKS), "--out", str(out), *options]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def rows(path: Path, key: str) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row[key]: row for row in csv.DictReader(file)}


class Verifier:
    """Knows the two CSV files and arithmetic, and nothing of the scheduler."""

    def __init__(self) -> None:
        self.nodes, self.tasks = rows(NODES, "sn"), rows(TASKS, "name")
        self.cpus = {name: int(node["cpu_milli"]) for name, node in self.nodes.items()}
        self.memory = {name: int(node["memory_mib"]) for name, node in self.nodes.items()}
        self.milli = {name: [1000] * int(node["gpu"]) for name, node in self.nodes.items()}

    def has_room(self, name: str, task: dict[str, str]) -> bool:
        models = [model for model in task["gpu_spec"].split("|") if model]
        gpus, share = int(task["num_gpu"]), int(task["gpu_milli"])
        return (
            int(task["cpu_milli"]) <= self.cpus[name]
            and int(task["memory_mib"]) <= self.memory[name]
            and (not gpus or not models or self.nodes[name]["model"] in models)
            and sum(milli >= share for milli in self.milli[name]) >= gpus
        )

    def check(self, line: dict[str, Any]) -> None:
        assert list(line) == ["task", "node", "gpus", "milli"]
        task = self.tasks[line["task"]]
        name, gpus = line["node"], line["gpus"]
        assert line["milli"] == int(task["gpu_milli"]) * bool(int(task["num_gpu"]))
        if name is None:
            assert gpus == []
            assert not any(self.has_room(node, task) for node in self.nodes), f"{line} was lost, and would fit"
            return
        assert self.has_room(name, task)
        assert len(gpus) == len(set(gpus)) == int(task["num_gpu"])
        self.cpus[name] -= int(task["cpu_milli"])
        self.memory[name] -= int(task["memory_mib"])
        for gpu in gpus:
            assert gpu >= 0
            self.milli[name][gpu] -= line["milli"]
        assert min(self.cpus[name], self.memory[name], *self.milli[name], 0) == 0, f"{name} is over-committed"


@pytest.mark.parametrize("policy", RANKINGS)
@pytest.mark.parametrize("seed", ["1", "2"])
def test_nothing_is_over_committed_and_only_what_fits_nowhere_is_lost(
    policy: str, seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run(tmp_path / "p.jsonl", "--seed", seed, "--policy", policy, "--json")
    verifier = Verifier()
    for line in lines:
        verifier.check(line)
    summary = json.loads(capsys.readouterr().out)
    capacity = 1000 * sum(int(node["gpu"]) for node in verifier.nodes.values())
    free = sum(sum(milli) for milli in verifier.milli.values())
    assert summary["allocation_at_130_percent"] == round(100 * (1 - free / capacity), 2)
    assert summary["arrived"] == len(lines)
    assert summary["placed"] == sum(line["node"] is not None for line in lines)


@pytest.mark.parametrize("demand", [0.5, 1.3])
def test_the_trace_arrives_once_before_a_task_repeats_and_ends_at_the_demand(demand: float, tmp_path: Path) -> None:
    lines = run(tmp_path / "p.jsonl", "--demand", str(demand))
    tasks, nodes = rows(TASKS, "name"), rows(NODES, "sn")
    first = [line["task"] for line in lines[: len(tasks)]]
    assert len(set(first)) == len(first)
    asked = [line["milli"] * int(tasks[line["task"]]["num_gpu"]) for line in lines]
    capacity = 1000 * sum(int(node["gpu"]) for node in nodes.values())
    assert sum(asked[:-1]) < demand * capacity <= sum(asked)


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "llmos_scheduler.simulate", "saturate", "--seed", "7"]
        command += ["--nodes", str(NODES), "--tasks", str(TASKS), "--out", str(tmp_path / hash_seed)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": hash_seed}, stdout=subprocess.DEVNULL)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    run(tmp_path / "8", "--seed", "8")
    assert (tmp_path / "8").read_bytes() != (tmp_path / "1").read_bytes()


def test_the_seed_permutes_the_order_in_which_nodes_are_tried(tmp_path: Path) -> None:
    runs = [run(tmp_path / "p.jsonl", "--policy", "first-fit", "--seed", str(seed)) for seed in range(5)]
    assert len({next(line["node"] for line in lines if line["node"]) for lines in runs}) > 2


def made(name: str) -> tuple[list[tuple[str, Machine]], list[tuple[str, Shape]]]:
    """Clusters that no trace was tuned for: little memory, scarce models, many tasks without GPUs."""
    random = Random(name)
    hardware, wishes = {
        "little memory": (
            [Machine(64_000, 256, (Device("a"),) * 8)] * 20 + [Machine(64_000, 512, (Device("b"),) * 4)] * 15,
            lambda: Shape(2_000, random.choice([4, 16, 32, 64]), 1, random.choice([200, 500, 1000])),
        ),
        "scarce models": (
            [Machine(64_000, 512, (Device("a"),) * 8)] * 5 + [Machine(64_000, 512, (Device("b"),) * 4)] * 30,
            lambda: Shape(
                4_000, 8, 1, random.choice([300, 1000]), 0, frozenset(random.choice(["a", "a", "b"] + [""] * 7).strip())
            ),
        ),
        "many cpus": (
            [Machine(96_000, 512, (Device("a"),) * 8)] * 20 + [Machine(128_000, 512, (Device("a"),) * 2)] * 12,
            lambda: random.choice([Shape(16_000, 8), Shape(8_000, 8, 1, random.choice([450, 1000]))]),
        ),
    }[name]  # fmt: skip
    return [(str(number), machine) for number, machine in enumerate(hardware)], [
        (str(number), wishes()) for number in range(600)
    ]


@pytest.mark.parametrize("name", ["little memory", "scarce models", "many cpus"])
def test_the_gradient_wastes_less_than_first_fit_on_clusters_it_never_saw(name: str) -> None:
    nodes, tasks = made(name)
    reached: dict[str, list[float]] = defaultdict(list)
    for policy in ("gradient", "first-fit"):
        for seed in range(3):
            reached[policy].append(saturate(nodes, tasks, demand=1.3, seed=seed, policy=policy).allocation[100])
    assert sum(reached["gradient"]) > sum(reached["first-fit"])


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("nodes", "sn,cpu_milli,memory_mib,gpu\n", "no column model"),
        ("nodes", "sn,cpu_milli,memory_mib,gpu,model\n", "lists no nodes"),
        ("nodes", "sn,cpu_milli,memory_mib,gpu,model\na,1,1,1,T4\na,1,1,1,T4\n", "line 3, sn: the node 'a' is listed"),
        ("nodes", "sn,cpu_milli,memory_mib,gpu,model\na,1,1,0,\n", "no node has one"),
        ("tasks", "name,cpu_milli,memory_mib,num_gpu,gpu_milli\nt,1.5,1,1,1\n", "line 2, cpu_milli: '1.5' is no whole"),
        ("tasks", "name,cpu_milli,memory_mib,num_gpu,gpu_milli\nt,1,1,2,500\n", "line 2, gpu_milli: several GPUs"),
    ],
)
def test_a_fault_in_a_trace_is_named_with_its_place(
    file: str, text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.csv"
    wrong.write_text(text)
    paths = {"nodes": NODES, "tasks": TASKS} | {file: wrong}
    assert main(["saturate", "--nodes", str(paths["nodes"]), "--tasks", str(paths["tasks"])]) == 2
    assert says in capsys.readouterr().err
