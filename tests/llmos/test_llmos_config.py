"""Configuration: the environment over the file's section over its top level; a bad value is named."""

from pathlib import Path

import pytest
from msgspec import Struct

from llmos.config import load
from llmos.errors import Fatal


class Settings(Struct, frozen=True, kw_only=True):
    node: str = "n"
    port: int = 1
    ratio: float = 0.5
    on: bool = False
    dirs: list[Path] = []
    names: list[str] = []
    labels: dict[str, str] = {}
    data_dir: Path = Path("x")


def test_defaults_stand_without_environment_and_file() -> None:
    assert load(Settings, section="a", env={}) == Settings()


def test_environment_wins_over_section_over_top_level(tmp_path: Path) -> None:
    file = tmp_path / "llmos.toml"
    file.write_text('node = "top"\nport = 2\nratio = 0.1\n[a]\nport = 3\nratio = 0.2\n[b]\nport = 9\n')
    settings = load(Settings, section="a", env={"LLMOS_RATIO": "0.3"}, file=file)
    assert (settings.node, settings.port, settings.ratio) == ("top", 3, 0.3)


def test_every_kind_of_value_is_read_from_the_environment() -> None:
    env = {
        "LLMOS_ON": "true",
        "LLMOS_DIRS": "/a:/b",
        "LLMOS_NAMES": "x, y",
        "LLMOS_LABELS": "zone=a,rack=3",
        "LLMOS_DATA_DIR": "/data",
    }
    settings = load(Settings, section="a", env=env)
    assert settings.on is True
    assert settings.dirs == [Path("/a"), Path("/b")]
    assert settings.names == ["x", "y"]
    assert settings.labels == {"zone": "a", "rack": "3"}
    assert settings.data_dir == Path("/data")


@pytest.mark.parametrize(("name", "value"), [("LLMOS_PORT", "many"), ("LLMOS_ON", "perhaps"), ("LLMOS_RATIO", "half")])
def test_a_bad_value_is_named_with_its_place(name: str, value: str) -> None:
    with pytest.raises(Fatal, match=f"{name}='{value}'"):
        load(Settings, section="a", env={name: value})


def test_a_file_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="can't read"):
        load(Settings, section="a", env={"LLMOS_CONFIG": str(tmp_path / "none.toml")})
    broken = tmp_path / "broken.toml"
    broken.write_text("port = ")
    with pytest.raises(Fatal, match="not valid TOML"):
        load(Settings, section="a", env={"LLMOS_CONFIG": str(broken)})


def test_a_missing_setting_without_default_is_named() -> None:
    class Needs(Struct, frozen=True, kw_only=True):
        token: str

    with pytest.raises(Fatal, match="'token' is missing"):
        load(Needs, section="a", env={})
