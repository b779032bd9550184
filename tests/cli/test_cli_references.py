"""Local files in a spec: found beside it, stored once, named again in faults."""

from pathlib import Path

from llmos.contracts.jobs import Fault
from llmos_cli.spec_references import find_absent, find_local, name_files, replace, upload


def spec_of(base: str, train: str) -> dict[str, object]:
    return {"model": {"base": base}, "data": {"train": train, "text": "t"}}


def test_a_relative_path_counts_from_the_specs_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n")
    (tmp_path / "base").mkdir()
    found, faults = find_local(spec_of("base", "./rows.csv"), tmp_path)
    assert found == {"model.base": tmp_path / "base", "data.train": tmp_path / "rows.csv"}
    assert faults == []


def test_a_file_url_is_taken_along_when_the_file_is_here_and_left_alone_when_not(tmp_path: Path) -> None:
    here = tmp_path / "a b.jsonl"
    here.write_text("")
    found, faults = find_local(spec_of("file:///nowhere/model", here.as_uri()), tmp_path)
    assert (found, faults) == ({"data.train": here}, [])
    assert find_absent(spec_of("file:///nowhere/model", here.as_uri())) == [
        Fault("model.base", "there is no file /nowhere/model")
    ]
    assert find_absent(spec_of("nowhere", "file:relative")) == []


def test_references_to_elsewhere_are_no_paths(tmp_path: Path) -> None:
    for reference in ("hf:a/b", "s3://bucket/rows.csv", "artifact:sha256:" + "a" * 64, "model:x@1", ""):
        assert find_local(spec_of(reference, reference), tmp_path) == ({}, [])


def test_every_path_that_names_nothing_is_a_fault_of_its_field(tmp_path: Path) -> None:
    _, faults = find_local(spec_of("./base", "rows.jsonl"), tmp_path)
    assert faults == [
        Fault("model.base", f"there is no file {tmp_path}/base"),
        Fault("data.train", f"there is no file {tmp_path}/rows.jsonl"),
    ]


def test_a_word_that_may_be_a_model_is_left_to_the_scheduler(tmp_path: Path) -> None:
    assert find_local(spec_of("org/model", "hf:a/b"), tmp_path) == ({}, [])


def test_a_spec_of_a_wrong_shape_has_no_files(tmp_path: Path) -> None:
    assert find_local({"model": "x", "data": [], "train": 1}, tmp_path) == ({}, [])


async def test_a_file_that_is_named_twice_is_stored_once(tmp_path: Path) -> None:
    stored: list[Path] = []

    async def put(path: Path) -> str:
        stored.append(path)
        return f"artifact:{len(stored)}"

    found = {"data.train": tmp_path / "a", "data.test": tmp_path / "a", "model.base": tmp_path / "b"}
    references = await upload(found, put)
    assert stored == [tmp_path / "a", tmp_path / "b"]
    assert references == {"data.train": "artifact:1", "data.test": "artifact:1", "model.base": "artifact:2"}
    assert replace(spec_of("b", "a"), {"data.train": "artifact:1"})["data"] == {"train": "artifact:1", "text": "t"}


def test_faults_of_a_stored_file_name_the_file_and_the_line() -> None:
    stored = "artifact:sha256:" + "a" * 64
    faults = [
        Fault(stored, "no 'label'", 7),
        Fault(stored, "there is no row"),
        Fault("s3://b/test.csv", "no 'text'", 1),
    ]
    assert [str(fault) for fault in name_files(faults, {stored: Path("/x/rows.jsonl")})] == [
        "/x/rows.jsonl:7: no 'label'",
        "/x/rows.jsonl: there is no row",
        "s3://b/test.csv:1: no 'text'",
    ]
