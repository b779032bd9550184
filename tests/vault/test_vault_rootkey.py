"""The root key's file: made once, read only when nobody else can."""

import os
import stat
from pathlib import Path

import pytest

from llmos.errors import Fatal
from llmos.signing import SigningKey, read_trusted, write_trusted
from llmos_vault.config import VaultConfig
from llmos_vault.rootkey import create_root, fault_of, read_root
from llmos_vault.service import open_root, publish_trust


def status(*, mode: int = 0o600, uid: int = 1000, gid: int = 1000, kind: int = stat.S_IFREG) -> os.stat_result:
    return os.stat_result((kind | mode, 0, 0, 1, uid, gid, 45, 0, 0, 0))


@pytest.mark.parametrize(
    "found, sound",
    [
        (status(mode=0o600), True),
        (status(mode=0o400), True),
        (status(mode=0o644), False),
        (status(mode=0o640), False),
        (status(mode=0o602), False),
        (status(mode=0o700), False),
        (status(uid=1001), False),
        (status(uid=0, gid=0, mode=0o400), True),
        (status(uid=0, gid=2000, mode=0o440), True),  # Kubernetes: fsGroup 2000
        (status(uid=0, gid=3000, mode=0o440), False),
        (status(uid=0, gid=2000, mode=0o460), False),
        (status(uid=0, gid=2000, mode=0o444), False),
        (status(kind=stat.S_IFDIR), False),
        (status(kind=stat.S_IFIFO), False),
    ],
)
def test_only_a_file_that_nobody_else_can_read_may_hold_the_root_key(found: os.stat_result, sound: bool) -> None:
    assert (fault_of(found, user=1000, groups=frozenset({1000, 2000})) == "") is sound


def test_root_itself_accepts_no_group(tmp_path: Path) -> None:
    assert fault_of(status(uid=0, gid=0, mode=0o440), user=0, groups=frozenset({0}))


def test_a_root_key_is_made_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "vault" / "root.key"
    assert read_root(path) is None
    made = create_root(path)
    assert path.stat().st_mode & 0o777 == 0o600
    again = read_root(path)
    assert again is not None
    assert again.unwrap(made.wrap(b"x", "name"), "name") == b"x"
    before = path.read_bytes()
    with pytest.raises(Fatal):
        create_root(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["root.key"]


def test_a_readable_root_key_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    create_root(path)
    path.chmod(0o644)
    with pytest.raises(Fatal, match="0644") as refused:
        read_root(path)
    assert f"chmod 600 {path}" in refused.value.problem.remedy


@pytest.mark.parametrize("content", [b"", b"c2hvcnQ=", b"\xff\xfe", b"A" * 5000])
def test_a_file_without_a_root_key_is_refused_without_quoting_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "root.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(Fatal, match="holds no root key") as refused:
        read_root(path)
    assert not content or content.decode("latin1") not in str(refused.value)


def test_a_mounted_secret_behind_a_link_is_read(tmp_path: Path) -> None:
    create_root(tmp_path / "..data-root.key")
    (tmp_path / "root.key").symlink_to("..data-root.key")
    (tmp_path / "..data-root.key").chmod(0o400)
    assert read_root(tmp_path / "root.key") is not None


def test_a_named_file_that_is_missing_is_made_only_when_allowed(tmp_path: Path) -> None:
    named = VaultConfig(data_dir=tmp_path, root_key_file=tmp_path / "secret" / "root.key")
    with pytest.raises(Fatal, match="there is no root key"):
        open_root(named, known=False)
    open_root(VaultConfig(data_dir=tmp_path, root_key_file=named.root_key_file, create_root=True), known=False)
    open_root(named, known=True)


def test_no_root_key_is_made_while_keys_of_another_one_exist(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="but this stack has keys"):
        open_root(VaultConfig(data_dir=tmp_path, create_root=True), known=True)
    assert not (tmp_path / "vault").exists()


def test_a_trust_file_that_pins_another_key_stops_the_vault(tmp_path: Path) -> None:

    config = VaultConfig(data_dir=tmp_path)
    first, second = (SigningKey("main", SigningKey.new_secret()) for _ in range(2))
    write_trusted(config.trusted_keys, {"partner": bytes(32)})
    publish_trust(config, {"main": first})
    assert read_trusted(config.trusted_keys) == {"main": first.public, "partner": bytes(32)}
    with pytest.raises(Fatal, match="trusts another key"):
        publish_trust(config, {"main": second})
    assert read_trusted(config.trusted_keys)["main"] == first.public
