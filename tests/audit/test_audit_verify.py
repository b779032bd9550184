"""An auditor finds whatever was done to a log: every kind of change, at every place, and names the first bad entry."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmos import tlog
from llmos.auditfiles import LogFiles, encode_entry
from llmos.auditlog import (
    Report,
    find_event,
    inclusion_proof,
    read_entries,
    read_remembered,
    remember,
    verify_log,
    verify_proof,
)
from llmos.contracts.audit import LogEntry
from llmos.errors import NotFound, Rejected
from llmos.note import Checkpoint, SigningKey, VerifierKey, open_checkpoint
from llmos_audit.core import decide, stream_remade
from llmos_audit.files import DiskFiles
from llmos_audit.state import Position
from llmos_audit.writer import LogWriter

KEY = SigningKey("llmos/test", b"k" * 32)
VERIFIER = str(KEY.verifier)
SIZE = 600  # two full bundles and one of 88


def entry(sequence: int, body: str = "") -> LogEntry:
    return LogEntry(sequence, f"llmos.evt.job.cancelled.acme.j{sequence}", {"ce-id": f"e{sequence}"}, body or "{}")


def write(directory: Path, entries: list[LogEntry], *, batch: int = 256, key: SigningKey = KEY) -> Path:
    """Write a log as the service does."""
    files = DiskFiles(directory)
    files.lock()
    writer = LogWriter.begin(files, key)
    for at in range(0, len(entries), batch):
        writer.append(entries[at : at + batch])
    files.close()
    return directory


def forge(directory: Path, entries: list[bytes]) -> None:
    """Write bundles and tiles of these entries, as somebody would who has the disk but not the key."""
    tree = tlog.TiledTree()
    tiles: list[tlog.Tile] = []
    for data in entries:
        tiles += tree.append(tlog.leaf_hash(data))
    shutil.rmtree(directory / "tile")
    for number in range(0, len(entries), 256):
        bundle = entries[number : number + 256]
        _put(directory / tlog.tile_path("entries", number // 256, len(bundle)), tlog.join_bundle(bundle))
    for level, number, hashes in [*tiles, *tree.partial_tiles()]:
        _put(directory / tlog.tile_path(level, number, len(hashes)), b"".join(hashes))


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("logs") / "audit", [entry(number) for number in range(1, SIZE + 1)])


@pytest.fixture
def log(original: Path, tmp_path: Path) -> Iterator[Path]:
    yield shutil.copytree(original, tmp_path / "audit")


def raw(log: Path) -> list[bytes]:
    return list(LogFiles.at(log).entries(0, SIZE, SIZE))


def replace_bundle(log: Path, number: int, entries: list[bytes]) -> None:
    width = tlog.tile_width(0, number, SIZE)
    (log / tlog.tile_path("entries", number, width)).write_bytes(tlog.join_bundle(entries))


def checkpoint(log: Path) -> Checkpoint:
    return open_checkpoint((log / "checkpoint").read_text(), KEY.verifier)


def codes(report: Report) -> set[str]:
    return {problem.code for problem in report.problems}


def test_an_untouched_log_verifies_with_its_size_and_root(log: Path) -> None:
    report = verify_log(log, VERIFIER)
    assert report.ok
    assert (report.origin, report.size) == ("llmos/test", SIZE)
    assert base64.b64decode(report.root) == checkpoint(log).root


@pytest.mark.parametrize(
    ("size", "batch"), [(0, 1), (1, 1), (20, 1), *((n, b) for b in (40, 256) for n in (255, 256, 257, 511, 512, 513))]
)
def test_a_log_of_any_size_and_any_batches_verifies_and_is_the_same_tree(tmp_path: Path, size: int, batch: int) -> None:
    report = verify_log(write(tmp_path / "a", [entry(n) for n in range(1, size + 1)], batch=batch), VERIFIER)
    assert report.ok
    leaves = tlog.Frontier()
    for number in range(1, size + 1):
        leaves.append(tlog.leaf_hash(encode_entry(entry(number))))
    assert base64.b64decode(report.root) == leaves.root()


@pytest.mark.parametrize("index", [0, 100, 255, 256, 511, 512, 599])
def test_an_edited_entry_is_named(log: Path, index: int) -> None:
    entries = raw(log)
    number = index // 256
    entries[index] = encode_entry(entry(index + 1, '{"edited":true}'))
    replace_bundle(log, number, entries[number * 256 : number * 256 + 256])
    bad = verify_log(log, VERIFIER).first_bad
    assert bad is not None
    assert (bad.code, bad.index, bad.sequence, bad.subject) == ("entry", index, index + 1, entry(index + 1).subject)


@pytest.mark.parametrize("index", [0, 100, 254, 256, 512, 598])
def test_a_deleted_entry_is_named_by_the_one_that_stands_in_its_place(log: Path, index: int) -> None:
    entries = raw(log)
    number = index // 256
    replace_bundle(log, number, entries[number * 256 : index] + entries[index + 1 : number * 256 + 256])
    report = verify_log(log, VERIFIER)
    assert report.first_bad is not None
    assert (report.first_bad.index, report.first_bad.sequence) == (index, index + 2)
    assert {"entry", "sequence", "missing", "root"} >= codes(report) > {"entry", "sequence"}


def test_two_entries_that_changed_places_are_named_by_the_first(log: Path) -> None:
    entries = raw(log)
    entries[300], entries[310] = entries[310], entries[300]
    replace_bundle(log, 1, entries[256:512])
    bad = verify_log(log, VERIFIER).first_bad
    assert bad is not None
    assert (bad.code, bad.index, bad.sequence) == ("entry", 300, 311)


@pytest.mark.parametrize("left", [0, 255, 256, 512, 599])
def test_a_cut_off_log_is_named_by_the_first_entry_that_is_gone(log: Path, left: int) -> None:
    entries = raw(log)[:left]
    for number in range(3):
        width = tlog.tile_width(0, number, SIZE)
        path = log / tlog.tile_path("entries", number, width)
        if kept := entries[number * 256 : number * 256 + 256]:
            path.write_bytes(tlog.join_bundle(kept))
        else:
            path.unlink()
    bad = verify_log(log, VERIFIER).first_bad
    assert bad is not None
    assert (bad.code, bad.index) == ("missing", left)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_any_file_of_the_log_is_found(log: Path, data: st.DataObject) -> None:
    tiles = [tlog.tile_path(level, n, tlog.tile_width(0, n, SIZE)) for level in ("entries", 0) for n in range(3)]
    path = log / data.draw(st.sampled_from(["checkpoint", *tiles, tlog.tile_path(1, 0, 2)]))
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        assert not verify_log(log, VERIFIER).ok
    finally:
        path.write_bytes(content)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["delete", "edit", "swap", "insert"]))
def test_a_rewritten_log_is_found_even_with_all_its_tiles_rewritten(log: Path, data: st.DataObject, kind: str) -> None:
    entries = [encode_entry(entry(number)) for number in range(1, SIZE + 1)]
    at = data.draw(st.integers(0, SIZE - 2))
    if kind == "delete":
        del entries[at]
    elif kind == "edit":
        entries[at] = encode_entry(entry(at + 1, '{"edited":true}'))
    elif kind == "swap":
        entries[at], entries[at + 1] = entries[at + 1], entries[at]
    else:
        entries.insert(at, encode_entry(entry(at + 1, '{"forged":true}')))
    forge(log, entries)
    report = verify_log(log, VERIFIER)
    assert codes(report) & {"root", "missing"}
    if kind != "edit":  # contiguous sequences give the place away, or the bundle that is gone does
        assert report.first_bad is not None
        assert report.first_bad.index in (at, at + 1, 512)


def test_a_rewritten_log_signed_with_the_logs_own_key_is_found_by_what_was_remembered(tmp_path: Path) -> None:
    entries = [entry(number) for number in range(1, 301)]
    before = checkpoint(write(tmp_path / "a", entries))
    entries[10] = entry(11, '{"edited":true}')
    forked = write(tmp_path / "b", [*entries, entry(301)])
    assert verify_log(forked, VERIFIER).ok
    assert codes(verify_log(forked, VERIFIER, remembered=before)) == {"fork"}


def test_a_log_rolled_back_to_an_older_state_is_found_by_what_was_remembered(log: Path, tmp_path: Path) -> None:
    before = checkpoint(log)
    older = write(tmp_path / "b", [entry(number) for number in range(1, 301)])
    assert verify_log(older, VERIFIER).ok
    report = verify_log(older, VERIFIER, remembered=before)
    assert report.first_bad is not None
    assert (report.first_bad.code, report.first_bad.index) == ("rollback", 300)


@pytest.mark.parametrize("size", [0, 1, 200, 256, 600])
def test_a_log_that_grew_is_consistent_with_every_checkpoint_that_it_had(log: Path, tmp_path: Path, size: int) -> None:
    before = checkpoint(write(tmp_path / "b", [entry(number) for number in range(1, size + 1)]))
    assert verify_log(log, VERIFIER, remembered=before).ok


def test_a_checkpoint_of_another_key_or_another_log_is_not_accepted(log: Path, tmp_path: Path) -> None:
    other = SigningKey("llmos/test", b"o" * 32)
    assert codes(verify_log(log, str(other.verifier))) == {"checkpoint"}
    named = SigningKey("llmos/other", b"k" * 32)
    forked = write(tmp_path / "b", [entry(1)], key=named)
    assert codes(verify_log(forked, VERIFIER)) == {"checkpoint"}
    assert "fork" in codes(verify_log(log, VERIFIER, remembered=checkpoint_of(forked, named)))


def checkpoint_of(log: Path, key: SigningKey) -> Checkpoint:
    return open_checkpoint((log / "checkpoint").read_text(), key.verifier)


def test_a_remembered_checkpoint_comes_back_and_a_changed_one_is_refused(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "remembered"
    assert read_remembered(file, VERIFIER) is None
    remember(file, verify_log(log, VERIFIER).checkpoint)
    assert read_remembered(file, VERIFIER) == checkpoint(log)
    file.write_text(file.read_text().replace("600", "601", 1))
    with pytest.raises(Rejected, match="does not fit"):
        read_remembered(file, VERIFIER)


def test_gaps_and_streams_made_anew_are_part_of_a_log_that_verifies(tmp_path: Path) -> None:
    position, entries = Position(), []
    for heard in (entry(3), entry(4), entry(9)):
        for each in decide(position, heard):
            entries.append(each)
            position = Position(each.sequence, each)
    entries += [stream_remade(position, 2), entry(1), entry(2)]
    assert [each.sequence for each in entries] == [2, 3, 4, 8, 9, 0, 1, 2]
    assert verify_log(write(tmp_path / "a", entries), VERIFIER).ok


@pytest.mark.parametrize("sequences", [[1, 2, 4], [1, 2, 2], [2], [1, 3, 2], [0]])
def test_a_log_whose_sequences_have_an_unsaid_hole_does_not_verify(tmp_path: Path, sequences: list[int]) -> None:
    assert codes(verify_log(write(tmp_path / "a", [entry(n) for n in sequences]), VERIFIER)) == {"sequence"}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.integers(0, SIZE - 1))
def test_every_entry_can_be_proved_from_the_directory_alone(log: Path, index: int) -> None:
    proof = inclusion_proof(log, index)
    assert proof.entry == entry(index + 1)
    assert verify_proof(proof, VERIFIER).size == SIZE


def test_a_proof_for_another_entry_place_or_key_is_refused(log: Path) -> None:
    proof = inclusion_proof(log, 5)
    for other in (
        msgspec.structs.replace(proof, entry=entry(7)),
        msgspec.structs.replace(proof, index=6),
        msgspec.structs.replace(proof, hashes=proof.hashes[:-1]),
        msgspec.structs.replace(proof, hashes=["no base64", *proof.hashes[1:]]),
        msgspec.structs.replace(proof, checkpoint=proof.checkpoint.replace("600", "599", 1)),
    ):
        with pytest.raises(Rejected):
            verify_proof(other, VERIFIER)
    with pytest.raises(Rejected, match="not signed by"):
        verify_proof(proof, str(SigningKey("llmos/test", b"o" * 32).verifier))


def test_reading_gives_entries_with_their_index_and_ends_at_the_checkpoint(log: Path) -> None:
    assert [view.index for view in read_entries(log, 254, 4)] == [254, 255, 256, 257]
    assert [view.entry.sequence for view in read_entries(log, 598, 100)] == [599, 600]
    assert read_entries(log, 600, 1) == []
    with pytest.raises(Rejected, match="from 0 on"):
        read_entries(log, -1, 1)
    with pytest.raises(NotFound, match="no file `checkpoint`"):
        read_entries(log / "nothing")


def test_an_event_is_found_by_its_id_without_any_index(log: Path) -> None:
    assert find_event(log, "e300") == 299
    with pytest.raises(NotFound, match="no event e601"):
        find_event(log, "e601")


def test_a_key_is_read_back_and_a_damaged_one_is_refused() -> None:
    key = SigningKey.generate("llmos/x")
    assert VerifierKey.parse(f"{key.verifier}\n") == key.verifier
    assert SigningKey.parse(key.to_text()).verifier == key.verifier
    for text in ("", "a+b", str(key.verifier)[:-4], str(key.verifier).replace("llmos/x", "llmos/y")):
        with pytest.raises(Rejected):
            VerifierKey.parse(text)
    with pytest.raises(Rejected, match="'a b' can't name a log"):
        SigningKey.generate("a b")
