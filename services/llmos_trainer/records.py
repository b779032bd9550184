"""Reading rows of any columns from JSONL, CSV and Parquet: every row comes with its line, every fault too.

Like `rows`, which knows two columns of text and is what training reads by. `read_records` never raises for what is
wrong in a file.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llmos_trainer.rows import CSV_FIELD_CHARACTERS, RowFault, format_of


class Record(NamedTuple):
    """One row: the parts by their role."""

    line: int
    parts: dict[str, Any]


Read = Iterator[Record | RowFault]


def read_records(path: Path, columns: Mapping[str, str]) -> Read:
    """Every row and every fault of a file, in order; `columns` names the column of each role."""
    return _READERS[format_of(path)](path, columns)


def _read_jsonl(path: Path, columns: Mapping[str, str]) -> Read:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            plain = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not plain.strip():
                continue
            try:
                row = msgspec.json.decode(plain)
            except UnicodeDecodeError:
                yield RowFault(number, "no valid UTF-8")
            except msgspec.DecodeError as error:
                yield RowFault(number, f"no valid JSON: {error}")
            else:
                if isinstance(row, dict):
                    yield _record(number, row, columns)
                else:
                    yield RowFault(number, "a row is an object")


def _read_csv(path: Path, columns: Mapping[str, str]) -> Read:
    csv.field_size_limit(CSV_FIELD_CHARACTERS)
    with io.TextIOWrapper(path.open("rb"), "utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        line = 1
        try:
            if fault := _absent(columns, reader.fieldnames or ()):
                yield RowFault(1, fault)
                return
            line = reader.line_num + 1
            for row in reader:
                if None in row or None in row.values():
                    yield RowFault(line, f"another number of fields than the header's {len(reader.fieldnames or ())}")
                else:
                    yield _record(line, row, columns)
                line = reader.line_num + 1
        except csv.Error as error:
            yield RowFault(line, f"no valid CSV: {error}")


def _read_parquet(path: Path, columns: Mapping[str, str]) -> Read:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if fault := _absent(columns, file.schema_arrow.names):
                yield RowFault(None, fault)
                return
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=list(columns.values())):
                for row in batch.to_pylist():
                    number += 1
                    yield _record(number, row, columns)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        yield RowFault(None, f"no valid Parquet: {str(error).splitlines()[0]}")


_READERS: dict[str, Callable[[Path, Mapping[str, str]], Read]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
}


def _record(line: int, row: Mapping[str, Any], columns: Mapping[str, str]) -> Record | RowFault:
    if fault := _absent(columns, row):
        return RowFault(line, fault)
    return Record(line, {role: row[name] for role, name in columns.items()})


def _absent(columns: Mapping[str, str], there: Any) -> str:
    absent = [name for name in columns.values() if name not in there]
    listed = ", ".join(repr(name) for name in sorted(there)[:20]) or "nothing"
    return f"no {' and no '.join(map(repr, absent))}; there is {listed}" if absent else ""
