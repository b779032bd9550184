"""The log's key: made once, together with the empty log, and from then on neither is there without the other."""

import stat
from pathlib import Path

from llmos.auditfiles import log_directory, verifier_key_file
from llmos.errors import Fatal, Rejected
from llmos.note import SigningKey
from llmos_audit.files import DiskFiles
from llmos_audit.writer import LogWriter

KEY = "audit.key"
NEW_KEY = "audit.key.new"  # the key of a log that is just being made


def open_log(data_dir: Path, origin: str) -> tuple[LogWriter, DiskFiles]:
    """Open the log under `data_dir` for writing, or make it, named `origin`, on the first start.

    The caller closes the files. Raises `Fatal` if another process writes it, if it or its key is gone, altered or
    readable by others, or if it has another name.
    """
    files, keys = DiskFiles(log_directory(data_dir)), DiskFiles(data_dir, mode=0o600)
    files.lock()
    try:
        made = KEY in keys.names(".")
        if not made and NEW_KEY not in keys.names("."):
            _make_key(files, keys, origin)
        key = _read_key(keys.root / (KEY if made else NEW_KEY))
        if key.verifier.name != origin:
            raise Fatal(
                f"the log in {files.root} is {key.verifier.name}, not {origin}",
                remedy=f"Set LLMOS_ORIGIN={key.verifier.name}, or another LLMOS_DATA_DIR for a log of its own.",
            )
        if made and "checkpoint" not in files.names("."):
            raise Fatal(
                f"the log of the key {keys.root / KEY} is gone from {files.root}",
                remedy="Restore it; or, to begin a new one for good, move the key away too.",
            )
        writer = LogWriter(files, key) if made else LogWriter.begin(files, key)
        verifier_key_file(data_dir).write_text(f"{key.verifier}\n")
        if not made:
            keys.rename(NEW_KEY, KEY)
    except BaseException:
        files.close()
        raise
    return writer, files


def _make_key(files: DiskFiles, keys: DiskFiles, origin: str) -> None:
    if "checkpoint" in files.names("."):
        raise Fatal(f"the key of the log in {files.root} is gone", remedy=f"Restore {keys.root / KEY}.")
    try:
        keys.put({NEW_KEY: SigningKey.generate(origin).to_text().encode()})
    except Rejected as error:
        raise Fatal(str(error)) from error


def _read_key(path: Path) -> SigningKey:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise Fatal(f"others than its owner can read the log's key {path}", remedy=f"chmod 600 {path}")
        return SigningKey.parse(path.read_text())
    except OSError as error:
        raise Fatal(f"can't read the log's key {path}: {error.strerror}", remedy="Let this user own it.") from error
    except Rejected as error:
        raise Fatal(f"{path}: {error}") from error
