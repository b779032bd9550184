"""The log's files are what other implementations of C2SP tlog-tiles, tlog-checkpoint and signed-note read and write."""

import base64
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from llmos.contracts.audit import LogEntry
from llmos.errors import Rejected
from llmos.note import Checkpoint, SigningKey, VerifierKey, open_checkpoint, open_note
from llmos_audit.files import DiskFiles
from llmos_audit.writer import LogWriter

# The example in the documentation of Go's golang.org/x/mod/sumdb/note.
GO_SIGNER = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_VERIFIER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
NEUMANN = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
GO_NOTE = f"{GO_TEXT}\n{NEUMANN}"
ENOCH = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"

GOLDEN = Path(__file__).parent / "golden" / "checkpoint-600"
KEY = SigningKey("llmos/test", b"k" * 32)


def write(directory: Path, size: int) -> Path:
    files = DiskFiles(directory)
    writer = LogWriter.begin(files, KEY)
    entries = [LogEntry(n, f"llmos.evt.job.cancelled.acme.j{n}", {"ce-id": f"e{n}"}, "{}") for n in range(1, size + 1)]
    for at in range(0, size, 100):
        writer.append(entries[at : at + 100])
    return directory


def test_a_key_of_gos_note_package_signs_here_what_it_signs_there() -> None:
    key = SigningKey.parse(GO_SIGNER)
    assert str(key.verifier) == GO_VERIFIER
    assert key.sign(GO_TEXT) == GO_NOTE
    assert key.to_text() == GO_SIGNER


def test_signatures_of_unknown_keys_are_ignored_and_one_of_the_known_key_suffices() -> None:
    key = VerifierKey.parse(GO_VERIFIER)
    assert open_note(GO_NOTE + ENOCH, key) == GO_TEXT
    with pytest.raises(Rejected, match="not signed by PeterNeumann"):
        open_note(f"{GO_TEXT}\n{ENOCH}", key)


@pytest.mark.parametrize(
    "note",
    [
        GO_NOTE.replace("think", "thank"),
        GO_NOTE.replace("x08go/ZJ", "x08go/ZK"),
        GO_NOTE[:-1],
        GO_NOTE.replace("\n\n", "\n"),
        GO_NOTE.replace("— Peter", "- Peter"),
        GO_NOTE + GO_NOTE.splitlines()[-1].replace("UgYN1F", "UgYN2F") + "\n",
        GO_NOTE.replace("AM=", "AN="),
        "",
    ],
)
def test_a_note_that_was_changed_anywhere_is_refused(note: str) -> None:
    with pytest.raises(Rejected):
        open_note(note, VerifierKey.parse(GO_VERIFIER))


@pytest.mark.parametrize(
    "text",
    [
        "a\n1\n",
        "a\n01\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "a\n-1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "a\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2J=\n",
        "a\n1\nAAAA\n",
        "\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "a\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=",
    ],
)
def test_a_text_that_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match="no checkpoint"):
        Checkpoint.parse(text)


def test_the_specifications_example_is_read_as_it_says() -> None:
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    got = Checkpoint.parse(text)
    assert (got.origin, got.size) == ("example.com/behind-the-sofa", 20852163)
    assert got.to_text() == text


def test_a_log_written_here_has_the_checkpoint_that_gos_sumdb_verified(tmp_path: Path) -> None:
    """The golden file was verified once by golang.org/x/mod/sumdb (note, tlog): signature, root and all 600 proofs."""
    assert (write(tmp_path, 600) / "checkpoint").read_text() == GOLDEN.read_text()


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 600])
def test_a_reader_written_from_the_specification_alone_finds_every_file(tmp_path: Path, size: int) -> None:
    """Signature, tile paths, partial widths, bundles and hashes, with nothing of ours but the log's directory."""
    log = write(tmp_path, size)
    text, _, signature = (log / "checkpoint").read_text().rpartition("\n\n")
    origin, count, root = text.split("\n")
    assert (origin, count) == ("llmos/test", str(size))
    raw = base64.b64decode(signature.split(" ")[2])
    public = KEY.verifier.public
    assert raw[:4] == sha256(b"llmos/test\n\x01" + public).digest()[:4]
    Ed25519PublicKey.from_public_bytes(public).verify(raw[4:], f"{text}\n".encode())

    leaves: list[bytes] = []
    for number in range((size + 255) // 256):
        suffix = "" if size >= (number + 1) * 256 else f".p/{size % 256}"
        bundle = (log / f"tile/entries/{number:03d}{suffix}").read_bytes()
        while bundle:
            length = bundle[0] << 8 | bundle[1]
            leaves.append(sha256(b"\x00" + bundle[2 : 2 + length]).digest())
            bundle = bundle[2 + length :]
        assert (log / f"tile/0/{number:03d}{suffix}").read_bytes() == b"".join(leaves[number * 256 :])
    assert len(leaves) == size
    if size >= 256:
        whole = [_root(leaves[at : at + 256]) for at in range(0, size - 255, 256)]
        assert (log / f"tile/1/000.p/{len(whole)}").read_bytes() == b"".join(whole)
    assert base64.b64decode(root) == _root(leaves)


def _root(hashes: list[bytes]) -> bytes:
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    return sha256(b"\x01" + _root(hashes[:k]) + _root(hashes[k:])).digest()


def test_whole_tiles_replace_their_parts(tmp_path: Path) -> None:
    log = write(tmp_path, 600)
    assert not (log / "tile/0/000.p").exists()
    assert not (log / "tile/entries/001.p").exists()
    assert (log / "tile/entries/002.p/88").exists()


def test_a_checkpoint_named_otherwise_than_its_key_is_refused() -> None:
    note = KEY.sign(Checkpoint("llmos/other", 0, sha256(b"").digest()).to_text())
    with pytest.raises(Rejected, match="of the log llmos/other, not llmos/test"):
        open_checkpoint(note, KEY.verifier)
