"""What a node says of itself, and when."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llmos import config as configuration
from llmos.contracts.nodes import Gpu, Inventory, NodeInventoried
from llmos.errors import Fatal
from llmos_hw_agent.config import HwAgentConfig
from llmos_hw_agent.core import GIB, Telling, decide, same
from llmos_hw_agent.machine import disk_free, read_machine

HAVE = Inventory(cpus=4.0, memory=8 * GIB, disk=100 * GIB)


def fact(version: int, inventory: Inventory = HAVE) -> NodeInventoried:
    return NodeInventoried("n1", version, inventory)


def test_a_new_node_says_version_one() -> None:
    assert decide("n1", HAVE, None, None) == Telling(fact(1), True)


def test_an_unchanged_node_says_nothing() -> None:
    assert decide("n1", HAVE, fact(3), fact(3)) == Telling(fact(3), False)


@pytest.mark.parametrize(
    "change",
    [
        {"cpus": 2.0},
        {"memory": GIB},
        {"gpus": [Gpu("GPU-1", "H100", 80 * GIB)]},
        {"labels": {"a": "b"}},
        {"torch": "2"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_change_is_the_next_version(change: dict[str, object]) -> None:
    changed = replace(HAVE, **change)
    assert decide("n1", changed, fact(3), fact(3)) == Telling(fact(4, changed), True)


@pytest.mark.parametrize(
    "disk, unchanged",
    [(100 * GIB - 1, True), (95 * GIB, True), (90 * GIB, False), (110 * GIB, False), (0, False)],
)
def test_free_disk_counts_from_a_gib_and_a_tenth_on(disk: int, unchanged: bool) -> None:
    assert same(HAVE, replace(HAVE, disk=disk)) is unchanged
    assert same(replace(HAVE, disk=GIB), replace(HAVE, disk=GIB // 2))


def test_what_the_history_forgot_or_never_got_is_said_again() -> None:
    assert decide("n1", HAVE, fact(3), None) == Telling(fact(3), True)
    assert decide("n1", HAVE, fact(3), fact(2, replace(HAVE, cpus=1.0))) == Telling(fact(3), True)


def test_a_node_that_lost_its_disk_goes_on_from_the_history() -> None:
    other = replace(HAVE, cpus=2.0)
    assert decide("n1", HAVE, None, fact(7)) == Telling(fact(7), False)
    assert decide("n1", other, None, fact(7)) == Telling(fact(8, other), True)
    assert decide("n1", other, fact(7, other), fact(7)) == Telling(fact(8, other), True)


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["nothing", "note", "history"])), max_size=12))
def test_one_version_is_never_two_inventories(steps: list[tuple[int, str]]) -> None:
    """Whatever changes, and whether the note on disk or the history is lost between, versions stay unambiguous."""
    kept: NodeInventoried | None = None
    said: NodeInventoried | None = None
    seen: dict[int, Inventory] = {}
    for cpus, lost in steps:
        kept, said = (None if lost == "note" else kept), (None if lost == "history" else said)
        telling = decide("n1", replace(HAVE, cpus=float(cpus)), kept, said)
        kept, said = telling.fact, telling.fact if telling.say else said
        assert said == kept
        assert kept.inventory.cpus == cpus
        assert seen.setdefault(kept.version, kept.inventory) == kept.inventory


def test_settings_are_read_from_the_environment() -> None:
    env = {"LLMOS_LABELS": "zone=a,rack=3", "LLMOS_CPUS": "0", "LLMOS_MEMORY": "6GiB", "LLMOS_NODE": "n1"}
    config = configuration.load(HwAgentConfig, section="hw_agent", env=env)
    assert config.labels == {"zone": "a", "rack": "3"}
    assert config.memory_bytes() == 6 * GIB


@pytest.mark.parametrize(
    "text, size",
    [
        ("", 0),
        ("0", 0),
        ("1024", 1024),
        ("512MiB", 512 << 20),
        ("1.5 GiB", 3 << 29),
        ("2Gi", 2 << 30),
        ("2GB", 2 * 10**9),
    ],
)
def test_memory_is_bytes_or_a_size(text: str, size: int) -> None:
    assert HwAgentConfig(memory=text).memory_bytes() == size


@pytest.mark.parametrize("text", ["much", "-1", "1XB", "1 2"])
def test_memory_that_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(Fatal, match="LLMOS_MEMORY"):
        HwAgentConfig(memory=text).memory_bytes()


def test_the_machine_is_named_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nvendor_id\t: X\nmodel name\t: Xeon 9\n")
    (tmp_path / "etc/os-release").write_text('NAME="Debian"\nPRETTY_NAME="Debian 12"\n')
    machine = read_machine(tmp_path)
    assert (machine.cpu_model, machine.os) == ("Xeon 9", "Debian 12")
    assert machine.cpus >= 1
    assert machine.memory > 0
    assert read_machine(tmp_path / "nothing").os
    assert disk_free(tmp_path) > 0
    assert disk_free(tmp_path / "nothing") == 0
