"""A check of a job that trains nothing: the base must fit the task, and the gate's rows must fit the base."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmos_trainer.checking import run
from llmos_trainer.orders import CheckOrder, Faulted, Finished

PNG = base64.b64encode(b"\x89PNG and so on").decode()
Rows = list[dict[str, Any]]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory, model_builder: Callable[..., Path]) -> Callable[..., Path]:
    """The tiny model's folder with another class of transformers in it."""
    root = tmp_path_factory.mktemp("bases")

    def make(name: str, **config: Any) -> Path:
        import transformers as t

        folder = root / f"{name}-{len(config)}"
        if not folder.exists():
            model_builder(folder)
            kind = getattr(t, name)
            usual = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
            made = kind.config_class(vocab_size=64, max_position_embeddings=64, **usual, **config)
            kind(made).save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def check(tape: Any, tmp_path: Path) -> Callable[..., Any]:
    """Check rows by split for a task: what it made, or the faults as text."""

    def do(task: str, base: Path, *, length: int = 0, columns: dict[str, str] | None = None, **rows: Any) -> Any:
        files = {}
        for name, content in rows.items():
            path = content if isinstance(content, Path) else tmp_path / f"{name}.jsonl"
            if path is not content:
                path.write_bytes(msgspec.json.Encoder().encode_lines(content))
            files[name] = str(path)
        order = CheckOrder(
            files=files, references={name: f"data.{name}" for name in files}, faults=[], text="text", label="label",
            base=str(base), max_length=length, work=str(tmp_path / "work"), task=task, columns=columns or {},
            untrained=True,
        )  # fmt: skip
        run(msgspec.json.encode(order), tape)
        last = tape.last
        if isinstance(last, Faulted):
            return [str(fault) for fault in last.faults]
        assert isinstance(last, Finished), last
        return last

    return do


def lines(done: Finished, split: str) -> Rows:
    return [json.loads(line) for line in (Path(done.trees["dataset"]) / f"{split}.jsonl").read_text().splitlines()]


TAGGER = {"id2label": {0: "O", 1: "B-PER"}, "label2id": {"O": 0, "B-PER": 1}}


def test_test_rows_alone_do_and_a_tenth_of_them_validates(check: Any, bases: Any) -> None:
    rows = [{"words": ["please", f"help{at}"], "ner": [0, "B-PER"]} for at in range(40)]
    base = bases("BertForTokenClassification", **TAGGER)
    done = check("token-classification", base, columns={"tokens": "words", "tags": "ner"}, test=rows)
    counts = {name: len(lines(done, name)) for name in ("train", "validation", "test")}
    assert counts["train"] == 0 and counts["validation"] and counts["validation"] + counts["test"] == 40
    assert lines(done, "test")[0]["tags"] == ["O", "B-PER"], "numbers stand for the model's labels"
    assert json.loads((Path(done.trees["dataset"]) / "dataset.json").read_text())["labels"] == ["O", "B-PER"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        at.name for at in Path(done.trees["base"]).iterdir()
    }


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("token-classification", {"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ("token-classification", {"tokens": ["a b"], "tags": ["O"]}, "the token 'a b' holds a space"),
        (
            "token-classification",
            {"tokens": ["a"], "tags": ["B-ORG"]},
            "the model has no label 'B-ORG'; it has O, B-PER",
        ),
        ("token-classification", {"tokens": ["a"]}, "no 'tags'; there is 'tokens'"),
        ("question-answering", {"question": "q", "context": "c", "answers": 3}, "answers must be a text, or a list"),
        ("embeddings", {"text": "a", "pair": "", "score": 1}, "a text is empty"),
        ("embeddings", {"text": "a", "pair": "b", "score": "high"}, "'high' is no score"),
    ],
)
def test_a_row_that_does_not_fit_is_named_by_its_line(
    task: str, row: dict[str, Any], message: str, check: Any, bases: Any
) -> None:
    names = {"token-classification": "TokenClassification", "question-answering": "QuestionAnswering"}
    kinds = TAGGER if task == "token-classification" else {}
    base = bases(f"BertFor{names[task]}" if task in names else "BertModel", **kinds)
    (fault,) = check(task, base, test=[row])
    assert fault.startswith("data.test:1: ") and message in fault


def test_a_model_without_the_tasks_head_is_refused_with_what_it_needs(check: Any, bases: Any) -> None:
    rows = [{"tokens": ["a"], "tags": ["LABEL_0"]}] * 3
    (fault,) = check("token-classification", bases("BertModel"), test=rows)
    assert fault == (
        "model.base: the checkpoint is a BertModel, and token-classification needs BertForTokenClassification"
    )


def test_a_family_that_nobody_proved_is_refused_with_those_that_are_supported(check: Any, bases: Any) -> None:
    (fault,) = check("text-generation", bases("BertLMHeadModel", is_decoder=True), test=[{"text": "a b"}] * 3)
    assert "a 'bert' model can't be exported for text-generation; supported are ernie4_5, gemma" in fault


def test_a_length_beyond_the_model_is_refused(check: Any, bases: Any) -> None:
    base = bases("BertForTokenClassification", **TAGGER)
    rows = [{"tokens": [f"a{at}"], "tags": ["O"]} for at in range(20)]
    (fault,) = check("token-classification", base, length=100, test=rows)
    assert fault == "model.base: export.max_length is 100, and the model reads 64 tokens. Set it to 64 or less."


def test_pictures_come_as_base64_or_as_files_beside_the_data(check: Any, tmp_path: Path) -> None:
    import transformers as t

    names = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    base = tmp_path / "base"
    usual = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    t.ViTForImageClassification(t.ViTConfig(**usual, **names, image_size=32)).save_pretrained(base)
    folder = tmp_path / "pictures"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(base64.b64decode(PNG) + b"a")
    rows = [{"image": "images/a.png", "label": "cat"}, {"image": PNG, "label": 1}, {"image": "no.png", "label": "cat"}]
    (folder / "rows.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(rows))
    assert check("image-classification", base, test=folder) == [
        "model.base: there is no preprocessor_config.json: save the processor beside the model",
        "data.test:3: 'no.png' is neither base64 nor a file beside the data",
    ]
    (base / "preprocessor_config.json").write_text("{}")
    (folder / "rows.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(rows[:2]))
    done = check("image-classification", base, test=folder)
    both = sorted(lines(done, "test") + lines(done, "validation"), key=lambda row: row["label"])
    assert [row["label"] for row in both] == ["cat", "dog"] and both[1]["image"] == PNG
    assert (Path(done.trees["base"]) / "preprocessor_config.json").exists()


def test_how_sentences_are_pooled_goes_along(check: Any, bases: Any, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bases("BertModel"), tmp_path / "base")
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (tmp_path / "base" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "base" / "1_Pooling").mkdir()
    rows = [{"text": f"a{at}", "pair": "b", "score": at} for at in range(9)]
    (fault,) = check("embeddings", tmp_path / "base", train=rows)
    assert "there is no 1_Pooling/config.json, which says how its vectors are pooled" in fault
    (tmp_path / "base" / "1_Pooling" / "config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    (fault,) = check("embeddings", tmp_path / "base", train=rows)
    assert "its pooling is 'of another kind'; supported are cls, max and mean" in fault
    (tmp_path / "base" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "base" / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    prompts = {"prompts": {"query": "find: "}, "default_prompt_name": "query"}
    (tmp_path / "base" / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    done = check("embeddings", tmp_path / "base", train=rows)
    pooling = json.loads((Path(done.trees["base"]) / "pooling.json").read_text())
    assert pooling == {"pooling": "cls", "normalise": False, "prefix": "find: ", "max_length": 32}


def test_csv_and_parquet_are_read_too(check: Any, bases: Any, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "rows.csv").write_text('text,pair,score\na,"b, c",0.5\nd,e\n')
    base = bases("BertModel")
    assert check("embeddings", base, test=tmp_path / "rows.csv") == [
        "data.test:3: another number of fields than the header's 3"
    ]
    table = pyarrow.table({"text": ["a", "b", "c"], "pair": ["x", "y", "z"], "score": [1.0, 0.5, None]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert check("embeddings", base, test=tmp_path / "rows.parquet") == ["data.test:3: null is no score"]
