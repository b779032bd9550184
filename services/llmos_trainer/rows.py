"""Reading labelled rows from JSONL, CSV and Parquet: every row comes with its line, every fault too.

`read_rows` never raises for what is wrong in a file. Lines count from 1; in Parquet they count rows.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

CSV_FIELD_CHARACTERS = 16 << 20


class Row(NamedTuple):
    """One labelled text."""

    line: int
    text: str
    label: str


class RowFault(NamedTuple):
    """What is wrong in a line; `None` when it is the file as a whole."""

    line: int | None
    message: str


class Columns(NamedTuple):
    """The names of the two columns that matter."""

    text: str
    label: str


Read = Iterator[Row | RowFault]


def read_rows(path: Path, columns: Columns) -> Read:
    """Every row and every fault of a file, in order. The format is told by the suffix, else by the content."""
    return _READERS[format_of(path)](path, columns)


def format_of(path: Path) -> str:
    """`jsonl`, `csv` or `parquet`."""
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else "csv"


def read_jsonl(path: Path, columns: Columns) -> Read:
    """One JSON object a line; blank lines are skipped."""
    typed = msgspec.defstruct(
        "TypedRow",
        [("text", str), ("label", str | int | bool)],
        rename={"text": columns.text, "label": columns.label},
    )
    decode: Callable[[bytes], Any] = msgspec.json.Decoder(typed).decode
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.isspace() or not line:
                continue
            try:
                row = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                yield from _explain_json(number, line, columns)
            else:
                yield from _row(number, row.text, row.label, columns)


def read_csv(path: Path, columns: Columns) -> Read:
    """Comma-separated values (RFC 4180) in UTF-8 with a header line; a quoted field may hold line breaks."""
    csv.field_size_limit(CSV_FIELD_CHARACTERS)
    # Bytes that are no UTF-8 come through as lone surrogates, so that the line can be named.
    with io.TextIOWrapper(path.open("rb"), "utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        line = 1
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                yield RowFault(line, f"no valid CSV: {error}")
                line = reader.line_num + 1
                if header is None:
                    return
                continue
            first, line = line, reader.line_num + 1
            if header is None:
                header = cells
                if absent := [name for name in columns if name not in header]:
                    yield RowFault(first, _absent(absent, header))
                    return
                places = [header.index(name) for name in columns]
            elif cells:
                if len(cells) != len(header):
                    yield RowFault(first, f"{len(cells)} fields, and the header has {len(header)}")
                else:
                    yield from _row(first, cells[places[0]], cells[places[1]], columns)


def read_parquet(path: Path, columns: Columns) -> Read:
    """Two columns of a Parquet file, a batch of rows at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if absent := [name for name in columns if name not in names]:
                yield RowFault(None, _absent(absent, names))
                return
            number = 0
            for batch in file.iter_batches(batch_size=4096, columns=list(columns)):
                texts, labels = (batch.column(name).to_pylist() for name in columns)
                for text, label in zip(texts, labels, strict=True):
                    number += 1
                    yield from _row(number, text, label, columns)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        yield RowFault(None, f"no valid Parquet: {str(error).splitlines()[0]}")


_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_READERS: dict[str, Callable[[Path, Columns], Read]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "parquet": read_parquet,
}


def _explain_json(number: int, line: bytes, columns: Columns) -> Iterator[RowFault]:
    """Everything that is wrong in a line that is no typed row."""
    try:
        row = msgspec.json.decode(line)
    except UnicodeDecodeError:
        yield RowFault(number, "no valid UTF-8")
        return
    except msgspec.DecodeError as error:
        yield RowFault(number, f"no valid JSON: {error}")
        return
    if not isinstance(row, dict):
        yield RowFault(number, f"{_kind(row)}, and a row is an object")
        return
    if absent := [name for name in columns if name not in row]:
        yield RowFault(number, _absent(absent, row))
    missing = object()
    text, label = (row.get(name, missing) for name in columns)
    if text is not missing and (fault := _text_fault(text, columns.text)):
        yield RowFault(number, fault)
    if label is not missing and (fault := _label_fault(label, columns.label)):
        yield RowFault(number, fault)


def _row(number: int, text: Any, label: Any, columns: Columns) -> Read:
    """The row, or all that is wrong with it."""
    faults = [fault for fault in (_text_fault(text, columns.text), _label_fault(label, columns.label)) if fault]
    if faults:
        yield from (RowFault(number, fault) for fault in faults)
    else:
        yield Row(number, text, str(label).lower() if isinstance(label, bool) else str(label))


def _text_fault(value: Any, column: str) -> str:
    if not isinstance(value, str):
        return f"{column!r} is {_kind(value)}, and must be text"
    if not value.strip():
        return f"{column!r} is empty"
    return _encoding_fault(value, column)


def _label_fault(value: Any, column: str) -> str:
    if isinstance(value, str):
        return _encoding_fault(value, column) if value.strip() else f"{column!r} is empty"
    return "" if isinstance(value, int) else f"{column!r} is {_kind(value)}, and must be text, an integer or a boolean"


def _encoding_fault(value: str, column: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{column!r} is no valid UTF-8"
    return ""


def _absent(names: Iterable[str], there: Iterable[str]) -> str:
    listed = ", ".join(repr(name) for name in sorted(there)[:20]) or "nothing"
    return f"no {' and no '.join(repr(name) for name in names)}; there is {listed}"


def _kind(value: Any) -> str:
    """What a value is, in a reader's words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "an integer", float: "a fraction"}
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")
