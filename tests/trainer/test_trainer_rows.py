"""Reading rows: each format gives the same rows, and every fault with its line."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmos_trainer.rows import Columns, Row, RowFault, format_of, read_rows

GOLDEN = Path(__file__).parent / "golden"
COLUMNS = Columns("text", "label")


def told(path: Path, columns: Columns = COLUMNS) -> str:
    """Rows and faults as lines of text."""
    lines = []
    for row in read_rows(path, columns):
        match row:
            case Row(line, text, label):
                lines.append(f"{line}: {label!r} {text!r}")
            case RowFault(line, message):
                lines.append(f"{line}: FAULT {message}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", ["faulty.jsonl", "faulty.csv"])
def test_every_fault_is_told_with_its_line(name: str) -> None:
    assert told(GOLDEN / name) == (GOLDEN / f"{name}.told.txt").read_text()


def test_a_parquet_file_is_read_like_the_others(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    table = {"label": ["x", None, "y", ""], "other": [1, 2, 3, 4], "text": ["good", "no label", None, " "]}
    pq.write_table(pa.table(table), path)
    assert told(path).splitlines() == [
        "1: 'x' 'good'",
        "2: FAULT 'label' is null, and must be text, an integer or a boolean",
        "3: FAULT 'text' is null, and must be text",
        "4: FAULT 'text' is empty",
        "4: FAULT 'label' is empty",
    ]
    pq.write_table(pa.table({"t": ["a", "b"], "l": pa.array([True, False]).cast(pa.bool_())}), path)
    assert list(read_rows(path, Columns("t", "l"))) == [Row(1, "a", "true"), Row(2, "b", "false")]
    assert told(path) == "None: FAULT no 'text' and no 'label'; there is 'l', 't'\n"


def test_a_damaged_parquet_file_is_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 and no more")
    [fault] = read_rows(path, COLUMNS)
    assert isinstance(fault, RowFault)
    assert fault.message.startswith("no valid Parquet: ")


def test_columns_are_found_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("class,body of text\nx,hello\n")
    assert list(read_rows(path, Columns("body of text", "class"))) == [Row(2, "hello", "x")]
    assert told(path) == "1: FAULT no 'text' and no 'label'; there is 'body of text', 'class'\n"


@pytest.mark.parametrize(
    ("content", "format"),
    [(b'\xef\xbb\xbf {"text": 1}', "jsonl"), (b"text,label\n", "csv"), (b"PAR1\x00", "parquet"), (b"", "csv")],
)
def test_the_format_is_told_by_the_content_when_there_is_no_suffix(tmp_path: Path, content: bytes, format: str) -> None:
    path = tmp_path / ("0" * 64)
    path.write_bytes(content)
    assert format_of(path) == format


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, name: str) -> None:
    content = {"a.jsonl": '{"text": "hi", "label": "x"}\n', "a.csv": "text,label\nhi,x\n"}[name]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    [row] = read_rows(tmp_path / name, COLUMNS)
    assert row[1:] == ("hi", "x")
