"""Sealing: what was sealed comes back, and what was touched leaves nothing behind."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmos.errors import Rejected
from llmos.sealing import Recipient, RootKey, StreamingCipher, new_streaming_keyset, seal_to

MIB = 1 << 20
FIRST = MIB - 40 - 16  # plaintext of the first segment: a MiB less header and tag
LATER = MIB - 16


@pytest.fixture(scope="module")
def keyset() -> bytes:
    return new_streaming_keyset()


@pytest.fixture(scope="module")
def cipher(keyset: bytes) -> StreamingCipher:
    return StreamingCipher("acme/1", keyset)


@pytest.mark.parametrize("size", [0, 1, FIRST - 1, FIRST, FIRST + 1, MIB - 1, MIB, MIB + 1, FIRST + LATER, 5 * MIB + 7])
def test_a_sealed_file_of_any_size_comes_back(tmp_path: Path, cipher: StreamingCipher, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "plain").write_bytes(data)
    cipher.seal(tmp_path / "plain", tmp_path / "sealed", b"a/b")
    cipher.unseal(tmp_path / "sealed", tmp_path / "again", b"a/b")
    assert (tmp_path / "again").read_bytes() == data
    sealed = (tmp_path / "sealed").read_bytes()
    assert len(sealed) > size
    assert size < 32 or data[:32] not in sealed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "plain", "sealed"]
    assert (tmp_path / "sealed").stat().st_mode & 0o777 == 0o600


def test_a_file_sealed_twice_differs(tmp_path: Path, cipher: StreamingCipher) -> None:
    (tmp_path / "plain").write_bytes(b"same")
    for name in ("one", "two"):
        cipher.seal(tmp_path / "plain", tmp_path / name, b"")
    assert (tmp_path / "one").read_bytes() != (tmp_path / "two").read_bytes()


def _swap_segments(data: bytes) -> bytes:
    return data[:MIB] + data[2 * MIB : 3 * MIB] + data[MIB : 2 * MIB] + data[3 * MIB :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in the header": lambda data: data[:20],
    "cut at a segment's end": lambda data: data[: 2 * MIB],
    "cut by one byte": lambda data: data[:-1],
    "cut to the first segment": lambda data: data[:MIB],
    "a flipped bit in the header": lambda data: bytes([data[0], data[1] ^ 1]) + data[2:],
    "a flipped bit in the middle": lambda data: data[: 2 * MIB] + bytes([data[2 * MIB] ^ 1]) + data[2 * MIB + 1 :],
    "a flipped bit at the end": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "segments in another order": _swap_segments,
    "a segment twice": lambda data: data[: 2 * MIB] + data[MIB:],
    "bytes appended": lambda data: data + b"\0" * 16,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_ciphertext_is_refused_and_leaves_no_plaintext(
    tmp_path: Path, cipher: StreamingCipher, damage: str
) -> None:
    (tmp_path / "plain").write_bytes(os.urandom(4 * MIB))
    cipher.seal(tmp_path / "plain", tmp_path / "sealed", b"x")
    (tmp_path / "bad").write_bytes(DAMAGE[damage]((tmp_path / "sealed").read_bytes()))
    (tmp_path / "out").mkdir()
    with pytest.raises(Rejected, match="can't be unsealed"):
        cipher.unseal(tmp_path / "bad", tmp_path / "out" / "file", b"x")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failed_unsealing_leaves_the_destination_as_it_was(tmp_path: Path, cipher: StreamingCipher) -> None:
    (tmp_path / "bad").write_bytes(b"no ciphertext")
    (tmp_path / "dest").write_bytes(b"before")
    with pytest.raises(Rejected):
        cipher.unseal(tmp_path / "bad", tmp_path / "dest", b"x")
    assert (tmp_path / "dest").read_bytes() == b"before"


def test_another_context_or_key_version_does_not_unseal(tmp_path: Path, cipher: StreamingCipher) -> None:
    (tmp_path / "plain").write_bytes(b"secret")
    cipher.seal(tmp_path / "plain", tmp_path / "sealed", b"model.safetensors")
    other = StreamingCipher("acme/2", new_streaming_keyset())
    for reader, context in ((cipher, b"config.json"), (cipher, b""), (other, b"model.safetensors")):
        with pytest.raises(Rejected):
            reader.unseal(tmp_path / "sealed", tmp_path / "out", context)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_refuses_the_bytes_leaves_nothing(tmp_path: Path, cipher: StreamingCipher) -> None:
    (tmp_path / "plain").write_bytes(os.urandom(3 * MIB))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            cipher.seal(tmp_path / "plain", tmp_path / "sealed", b"")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    script = (
        "import os, resource, sys; from pathlib import Path; from llmos.sealing import *\n"
        "here = Path(sys.argv[1]); cipher = StreamingCipher('t/1', new_streaming_keyset())\n"
        "(here / 'plain').touch(); os.truncate(here / 'plain', int(sys.argv[2]))\n"
        "cipher.seal(here / 'plain', here / 'sealed', b''); cipher.unseal(here / 'sealed', here / 'again', b'')\n"
        "sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))\n"
    )

    def peak_kib(size: int) -> int:
        run = subprocess.run([sys.executable, "-c", script, tmp_path, str(size)], capture_output=True, check=True)
        return int(run.stdout)

    assert peak_kib(128 * MIB) - peak_kib(MIB) < 24 * 1024


def test_what_is_no_streaming_keyset_is_refused_without_quoting_it(keyset: bytes) -> None:
    recipient = Recipient().public
    for wrong in (b"", b"rubbish", recipient, keyset[:-1]):
        with pytest.raises(Rejected) as refused:
            StreamingCipher("acme/1", wrong)
        assert refused.value.__suppress_context__
        assert repr(wrong)[2:-1] not in str(refused.value) or not wrong


def test_keys_do_not_show_in_a_repr(cipher: StreamingCipher) -> None:
    assert repr(cipher) == "StreamingCipher('acme/1')"
    text = RootKey.new_text()
    assert text.strip() not in repr(RootKey.from_text(text))


def test_a_secret_opens_only_for_its_recipient_and_context() -> None:
    recipient = Recipient()
    sealed = seal_to(recipient.public, b"the key", b"for task 1")
    assert recipient.open(sealed, b"for task 1") == b"the key"
    with pytest.raises(Rejected):
        recipient.open(sealed, b"for task 2")
    with pytest.raises(Rejected):
        Recipient().open(sealed, b"for task 1")
    with pytest.raises(Rejected):
        recipient.open(sealed[:-1], b"for task 1")


def test_nothing_is_sealed_to_what_is_no_public_keyset(keyset: bytes) -> None:
    for wrong in (b"", b"rubbish", keyset):
        with pytest.raises(Rejected, match="no public keyset"):
            seal_to(wrong, b"the key", b"")


def test_a_wrapped_key_unwraps_only_under_its_root_key_and_name() -> None:
    root = RootKey.from_text(RootKey.new_text())
    wrapped = root.wrap(b"secret", "vault.key.acme.1")
    assert root.unwrap(wrapped, "vault.key.acme.1") == b"secret"
    assert root.wrap(b"secret", "vault.key.acme.1") != wrapped
    for reader, data, name in (
        (root, wrapped, "vault.key.acme.2"),
        (root, wrapped[:-1] + bytes([wrapped[-1] ^ 1]), "vault.key.acme.1"),
        (RootKey.from_text(RootKey.new_text()), wrapped, "vault.key.acme.1"),
    ):
        with pytest.raises(Rejected):
            reader.unwrap(data, name)


def test_a_root_key_is_32_bytes_in_base64() -> None:
    for wrong in ("", "not base64!", "c2hvcnQ="):
        with pytest.raises(Rejected):
            RootKey.from_text(wrong)
