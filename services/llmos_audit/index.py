"""Where an event and a job's events stand in the log: a small SQLite file, made from the log alone.

It may lag behind the log after a crash, or be deleted: it catches up when it is opened. Memory stays bounded however
long the log grows.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from llmos.auditfiles import LogFiles, decode_entry
from llmos.contracts.audit import LogEntry
from llmos_audit.core import job_of

_CHUNK = 4096  # entries in one transaction while catching up
_SCHEMA = """
CREATE TABLE IF NOT EXISTS event (id TEXT PRIMARY KEY, place INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS job (id TEXT, place INTEGER, PRIMARY KEY (id, place)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS covered (size INTEGER NOT NULL);
"""


class Index:
    """Event id → its place (the first, if an id came twice); job id → places. For one thread at a time."""

    def __init__(self, file: Path, log: LogFiles, size: int) -> None:
        """Open the index of a log of `size` entries and bring it up to date."""
        try:
            self._open(file)
            if self.size > size:  # the log's folder was replaced by an older one
                raise sqlite3.DatabaseError("the index is of another log")
        except sqlite3.DatabaseError:
            with suppress(AttributeError):
                self._db.close()
            for name in (file, file.with_name(file.name + "-wal"), file.with_name(file.name + "-shm")):
                name.unlink(missing_ok=True)
            self._open(file)
        entries = log.entries(self.size, size, size)
        while chunk := [decode_entry(data) for data in islice(entries, _CHUNK)]:
            self.add(chunk)

    def _open(self, file: Path) -> None:
        self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")  # a crash of the machine may lose the newest rows, no more
        self._db.executescript(_SCHEMA)
        row = self._db.execute("SELECT max(size) FROM covered").fetchone()
        self.size: int = row[0] or 0

    def add(self, entries: Iterable[LogEntry]) -> None:
        """Take up the entries that follow those it has."""
        events, jobs, place = [], [], self.size
        for entry in entries:
            if event := entry.event:
                events.append((event, place))
            if job := job_of(entry):
                jobs.append((job, place))
            place += 1
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR IGNORE INTO event VALUES (?, ?)", events)
        self._db.executemany("INSERT OR IGNORE INTO job VALUES (?, ?)", jobs)
        self._db.execute("DELETE FROM covered")
        self._db.execute("INSERT INTO covered VALUES (?)", (place,))
        self._db.execute("COMMIT")
        self.size = place

    def event(self, id: str) -> int | None:
        """The place of an event."""
        row = self._db.execute("SELECT place FROM event WHERE id = ?", (id,)).fetchone()
        return None if row is None else int(row[0])

    def job(self, id: str, start: int, limit: int) -> list[int]:
        """At most `limit` places of a job's events, from `start` on."""
        rows = self._db.execute(
            "SELECT place FROM job WHERE id = ? AND place >= ? ORDER BY place LIMIT ?", (id, start, limit)
        )
        return [int(row[0]) for row in rows]

    def close(self) -> None:
        self._db.close()
