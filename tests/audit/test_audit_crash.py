"""The writer is stopped at each of its steps, before and after it took effect, and the next one goes on from there.

Rules checked after every crash: nothing is lost that was confirmed, nothing is there twice, the log verifies, and of
all trees that were ever signed no two of one size differ.
"""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmos.auditlog import read_entries, verify_log
from llmos.contracts.audit import LogEntry
from llmos.errors import Fatal
from llmos.note import Checkpoint, SigningKey
from llmos_audit.files import DiskFiles
from llmos_audit.identity import open_log
from llmos_audit.writer import LogWriter

BATCHES = [3, 1, 250, 2, 5, 300, 1]  # crosses the ends of bundles, once within a batch and once exactly


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Files in memory where there is room: what a disk loses is simulated here, and its syncs would take minutes."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


class StepError(OSError):
    """The step that was told to fail."""


class FaultyFiles(DiskFiles):
    """Files whose steps are counted; one of them fails, lost or after it happened."""

    def __init__(self, root: Path, *, fail_at: int = -1, happens: bool = False, how: Callable[[], None] | None = None):
        super().__init__(root)
        self.steps = 0
        self._fail_at = fail_at
        self._happens = happens
        self._how = how or self._raise
        self.failed = False

    def _raise(self) -> None:
        self.failed = True
        raise StepError("this step failed")

    def _step(self, take: Callable[[], None]) -> None:
        number, self.steps = self.steps, self.steps + 1
        if number == self._fail_at and not self._happens:
            self._how()
        take()
        if number == self._fail_at and self._happens:
            self._how()

    def _make_folder(self, folder: Path) -> None:
        self._step(lambda: super(FaultyFiles, self)._make_folder(folder))

    def _write(self, path: Path, data: bytes) -> None:
        self._step(lambda: super(FaultyFiles, self)._write(path, data))

    def _rename(self, part: Path, path: Path) -> None:
        self._step(lambda: super(FaultyFiles, self)._rename(part, path))

    def _sync(self, folder: Path) -> None:
        self._step(lambda: super(FaultyFiles, self)._sync(folder))

    def _remove(self, path: Path) -> None:
        self._step(lambda: super(FaultyFiles, self)._remove(path))


class WitnessKey(SigningKey):
    """A key that remembers every tree that it signed."""

    def __init__(self, signed: dict[int, set[bytes]]) -> None:
        super().__init__("llmos/test", b"k" * 32)
        self.signed = signed

    def sign(self, text: str) -> str:
        checkpoint = Checkpoint.parse(text)
        self.signed.setdefault(checkpoint.size, set()).add(checkpoint.root)
        return super().sign(text)


def entry(sequence: int, version: int = 0) -> LogEntry:
    return LogEntry(sequence, f"llmos.evt.job.cancelled.acme.j{sequence}", {"ce-id": f"e{sequence}"}, f"[{version}]")


def write_on(files: DiskFiles, signed: dict[int, set[bytes]], last: int, confirmed: list[int], version: int) -> None:
    """Open the log and write as the service does, from where it stands until `last`; `version` marks who wrote."""
    files.lock()
    try:
        writer = LogWriter.begin(files, WitnessKey(signed))
        assert writer.position.sequence >= max(confirmed, default=0)
        for size in BATCHES * 2:
            first = writer.position.sequence + 1
            batch = [entry(number, version) for number in range(first, min(first + size, last + 1))]
            if not batch:
                return
            writer.append(batch)
            confirmed.append(writer.position.sequence)
    finally:
        files.close()


def check(directory: Path, signed: dict[int, set[bytes]], last: int) -> None:
    report = verify_log(directory, str(WitnessKey({}).verifier))
    assert report.ok, report.problems
    assert [view.entry.sequence for view in read_entries(directory, 0, last + 1)] == list(range(1, last + 1))
    assert all(len(roots) == 1 for roots in signed.values())


def fresh(parent: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=parent)) / "audit"


def count_steps(directory: Path) -> int:
    files = FaultyFiles(directory)
    write_on(files, {}, sum(BATCHES), [], 0)
    return files.steps


@pytest.mark.parametrize("happens", [False, True], ids=["lost", "happened"])
def test_a_step_that_fails_at_any_point_leaves_a_log_that_goes_on(tmp_path: Path, happens: bool) -> None:
    last = sum(BATCHES)
    for step in range(count_steps(tmp_path / "count")):
        directory, signed, confirmed = tmp_path / str(step), dict[int, set[bytes]](), list[int]()
        with pytest.raises((Fatal, StepError)):
            write_on(FaultyFiles(directory, fail_at=step, happens=happens), signed, last, confirmed, 1)
        # The next writer has other entries for what was not logged: a gap, or a stream that was made anew.
        write_on(DiskFiles(directory), signed, last, confirmed, 2)
        check(directory, signed, last)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(failures=st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=2, max_size=6))
def test_crashes_during_recovery_itself_leave_a_log_that_goes_on(
    tmp_path: Path, failures: list[tuple[int, bool]]
) -> None:
    directory, signed, confirmed = fresh(tmp_path), dict[int, set[bytes]](), list[int]()
    for version, (step, happens) in enumerate(failures):
        try:
            write_on(FaultyFiles(directory, fail_at=step, happens=happens), signed, 400, confirmed, version)
        except (Fatal, StepError):
            continue
    write_on(DiskFiles(directory), signed, 400, confirmed, 99)
    check(directory, signed, 400)


def test_a_process_killed_at_any_step_leaves_a_log_that_goes_on(tmp_path: Path) -> None:
    last = sum(BATCHES)
    steps = count_steps(tmp_path / "count")
    for step in range(0, steps, 3):
        directory = tmp_path / str(step)
        pid = os.fork()
        if pid == 0:
            try:
                files = FaultyFiles(directory, fail_at=step, happens=bool(step % 2), how=_die)
                write_on(files, {}, last, [], 1)
            finally:
                os._exit(7)
        _pid, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
        signed: dict[int, set[bytes]] = {}
        write_on(DiskFiles(directory), signed, last, [], 2)
        check(directory, signed, last)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class PowerLossFiles(DiskFiles):
    """Files that forget at a power loss what was not synced: any of the renames since their folder's last sync."""

    def __init__(self, root: Path, stop_at: int) -> None:
        super().__init__(root)
        self._stop_at = stop_at
        self._steps = 0
        self.unsynced: list[tuple[Path, bytes | None]] = []  # what stood under a name before its rename

    def _count(self) -> None:
        self._steps += 1
        if self._steps > self._stop_at:
            raise StepError("the power is gone")

    def _rename(self, part: Path, path: Path) -> None:
        self._count()
        self.unsynced.append((path, path.read_bytes() if path.exists() else None))
        super()._rename(part, path)

    def _sync(self, folder: Path) -> None:
        self._count()
        super()._sync(folder)
        self.unsynced = [(path, before) for path, before in self.unsynced if path.parent != folder]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stop_at=st.integers(1, 80), data=st.data())
def test_a_power_loss_that_undoes_what_was_not_synced_leaves_a_log_that_goes_on(
    tmp_path: Path, stop_at: int, data: st.DataObject
) -> None:
    directory, signed, confirmed = fresh(tmp_path), dict[int, set[bytes]](), list[int]()
    last = sum(BATCHES)
    files = PowerLossFiles(directory, stop_at)
    try:
        write_on(files, signed, last, confirmed, 1)
    except (Fatal, StepError):
        for path, before in reversed(files.unsynced):
            if data.draw(st.booleans()):
                if before is None:
                    path.unlink(missing_ok=True)
                else:
                    path.write_bytes(before)
    write_on(DiskFiles(directory), signed, last, confirmed, 2)
    check(directory, signed, last)


@pytest.mark.parametrize("cut", [1, 2, 10, 200])
def test_a_torn_bundle_beyond_the_checkpoint_is_dropped_and_one_within_it_is_not(tmp_path: Path, cut: int) -> None:
    directory, signed = tmp_path / "audit", dict[int, set[bytes]]()
    write_on(DiskFiles(directory), signed, 4, [], 1)
    within = directory / "tile/entries/000.p/4"
    beyond = directory / "tile/entries/000.p/6"
    whole = within.read_bytes()
    beyond.write_bytes((whole + whole)[:-cut])
    write_on(DiskFiles(directory), signed, 9, [], 2)
    check(directory, signed, 9)
    files = directory / "tile/entries/000.p/9"
    files.write_bytes(files.read_bytes()[:-cut])
    with pytest.raises(Fatal, match="is not as it was written"):
        write_on(DiskFiles(directory), signed, 10, [], 3)


@pytest.mark.parametrize("name", ["checkpoint", "tile/0/000.p/4", "tile/entries/000.p/4"])
def test_a_log_that_was_altered_is_not_written_on(tmp_path: Path, name: str) -> None:
    write_on(DiskFiles(tmp_path), {}, 4, [], 1)
    data = bytearray((tmp_path / name).read_bytes())
    data[-20] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Fatal, match="llmos audit verify"):
        write_on(DiskFiles(tmp_path), {}, 5, [], 2)


@pytest.mark.parametrize("step", range(14))
@pytest.mark.parametrize("happens", [False, True], ids=["lost", "happened"])
def test_a_first_start_that_is_interrupted_can_be_repeated(
    tmp_path: Path, step: int, happens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def counted(name: str) -> Callable[..., None]:
        real = getattr(DiskFiles, name)

        def take(*args: object) -> None:
            nonlocal count
            count += 1
            if count == step + 1 and not happens:
                raise StepError("lost")
            real(*args)
            if count == step + 1 and happens:
                raise StepError("happened")

        return take

    with monkeypatch.context() as patched:
        for name in ("_make_folder", "_write", "_rename", "_sync"):
            patched.setattr(DiskFiles, name, counted(name))
        try:
            open_log(tmp_path, "llmos/a")[1].close()
        except StepError:
            pass
    writer, files = open_log(tmp_path, "llmos/a")
    writer.append([entry(1)])
    files.close()
    assert (tmp_path / "audit.key").stat().st_mode & 0o777 == 0o600
    assert verify_log(tmp_path / "audit", (tmp_path / "audit.pub").read_text()).size == 1


def test_a_writer_that_failed_takes_nothing_more(tmp_path: Path) -> None:
    files = FaultyFiles(tmp_path, fail_at=9)
    files.lock()
    writer = LogWriter.begin(files, WitnessKey({}))
    with pytest.raises(Fatal, match="this step failed"):
        for number in range(1, 10):
            writer.append([entry(number)])
    with pytest.raises(Fatal, match="Start the service again"):
        writer.append([entry(1)])
