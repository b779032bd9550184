"""What may be trained on: refused without a weight being loaded, with what to do about it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmos.errors import Rejected
from llmos_trainer import pretrained


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change_config(model: Path, **settings: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def only_fault(model: Path, max_length: int = 64) -> str:
    [fault] = pretrained.examine(model, max_length)
    return fault


def test_a_whole_model_has_no_fault(model: Path) -> None:
    assert pretrained.examine(model, 64) == []


def test_weights_that_are_only_pickled_are_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")
    fault = only_fault(model)
    assert "pytorch_model.bin" in fault and "safetensors" in fault


def test_a_pickle_beside_safetensors_is_left_behind(model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04boom")
    assert pretrained.examine(model, 64) == []
    pretrained.stage(model, tmp_path / "staged")
    assert sorted(path.name for path in (tmp_path / "staged").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_damaged_and_missing_weights_are_told_apart(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert only_fault(model).startswith("model.safetensors is damaged")
    weights.unlink()
    assert only_fault(model) == "model.safetensors is missing"


def test_shards_are_staged_as_they_are(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert pretrained.examine(model, 64) == []
    pretrained.stage(model, tmp_path / "staged")
    assert (tmp_path / "staged" / "model-00001-of-00001.safetensors").exists()
    index["weight_map"]["x"] = "../other.safetensors"
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert only_fault(model).endswith("names a file outside the folder")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "clip"}, "can't classify sequences"),
        ({"model_type": "bart"}, "can't classify sequences"),
        ({"model_type": "none-such", "auto_map": {"AutoConfig": "evil.Config"}}, "model_type 'none-such'"),
    ],
)
def test_an_architecture_that_can_not_classify_is_refused(model: Path, settings: dict[str, object], words: str) -> None:
    change_config(model, **settings)
    assert words in only_fault(model)


def test_a_config_that_is_no_json_is_refused(model: Path) -> None:
    (model / "config.json").write_text("{")
    assert "config.json is no valid JSON" in only_fault(model)


def test_more_tokens_than_the_model_reads_are_refused_with_the_limit(model: Path) -> None:
    assert only_fault(model, 65) == "train.max_length is 65, and the model reads 64 tokens. Set it to 64 or less."


def test_a_model_without_a_tokenizer_is_refused(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    assert "no tokenizer can be read" in only_fault(model)


def test_a_tokenizer_of_another_model_is_refused(model: Path) -> None:
    change_config(model, vocab_size=20)
    assert "the model knows 20" in only_fault(model)


def test_a_fast_tokenizer_is_built_from_older_files(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\n##s\n")
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"}')
    assert pretrained.examine(model, 64) == []
    pretrained.stage(model, tmp_path / "staged")
    assert pretrained.load_tokenizer(tmp_path / "staged", 64).encode("hellos").tokens == [
        "[CLS]",
        "hello",
        "##s",
        "[SEP]",
    ]


def test_all_faults_come_at_once(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "tokenizer.json").write_text("{}")
    assert len(pretrained.examine(model, 1000)) == 3


def test_a_sentence_transformers_folder_is_entered(model: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    shutil.move(model, outer / "0_Transformer")
    (outer / "1_Pooling").mkdir()
    (outer / "1_Pooling" / "config.json").write_text("{}")
    (outer / "modules.json").write_text(json.dumps([{"path": "0_Transformer"}, {"path": "1_Pooling"}]))
    assert pretrained.find_model(outer) == outer / "0_Transformer"
    (outer / "modules.json").unlink()
    with pytest.raises(Rejected, match=r"no config\.json"):
        pretrained.find_model(outer)


def test_loading_twice_gives_equal_weights_off_the_file(tiny_model: Path) -> None:
    first, second = (pretrained.load(tiny_model, ["a", "b", "c"], seed=5).model for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(parameter.data_ptr() % 64 == 0 for parameter in first.parameters())
    assert first.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_a_model_trained_for_other_labels_gets_a_new_head(tiny_model: Path, tmp_path: Path) -> None:
    pretrained.load(tiny_model, ["a", "b"], seed=5).model.save_pretrained(tmp_path / "two")
    pretrained.copy_tokenizer(tiny_model, tmp_path / "two")
    loaded = pretrained.load(tmp_path / "two", ["a", "b", "c"], seed=5)
    assert loaded.model.num_labels == 3
    assert loaded.fresh == ["classifier"]


def test_half_precision_weights_are_trained_in_full_precision(tiny_model: Path, tmp_path: Path) -> None:
    model = pretrained.load(tiny_model, ["a", "b"], seed=5).model.to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    pretrained.copy_tokenizer(tiny_model, tmp_path / "half")
    loaded = pretrained.load(tmp_path / "half", ["a", "b"], seed=5).model
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_checkpoint_that_lacks_a_part_of_the_body_is_refused(model: Path) -> None:
    change_config(model, num_hidden_layers=3)
    with pytest.raises(Rejected, match="lacks 16 weights"):
        pretrained.load(model, ["a", "b"], seed=5)
    change_config(model, num_hidden_layers=2, hidden_size=16)
    with pytest.raises(Rejected, match="lacks"):
        pretrained.load(model, ["a", "b"], seed=5)


def test_every_supported_family_of_the_tests_loads(model_builder: Callable[..., Path], tmp_path: Path) -> None:
    folder = model_builder(tmp_path / "distil", family="distilbert")
    assert pretrained.load(folder, ["a", "b"], seed=1).fresh == ["classifier", "pre_classifier"]


def test_marians_two_vocabularies_become_one_tokenizer(tmp_path: Path) -> None:
    from transformers.convert_slow_tokenizer import import_protobuf

    from llmos_trainer.pretrained import read_tokenizer

    pieces = import_protobuf().ModelProto()
    for piece, score, kind in (
        ("<unk>", 0.0, 2), ("</s>", 0.0, 3), ("▁the", -1.0, 1), ("▁fox", -2.0, 1), ("▁", -3.0, 1), ("s", -4.0, 1),
    ):  # fmt: skip
        pieces.pieces.add(piece=piece, score=score, type=kind)
    (tmp_path / "source.spm").write_bytes(pieces.SerializeToString())
    numbers = ["</s>", "<unk>", "▁der", "▁the", "▁fox", "▁", "s", "F", "▁Fuchs", "ü", "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: at for at, piece in enumerate(numbers)}))
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.encode("  the   foxs ").ids == [3, 4, 6, 0]
    assert tokenizer.encode("ü fox").ids == [5, 9, 4, 0], "a letter of the other language stands for itself"
    assert tokenizer.decode([2, 8, 0]) == "der Fuchs"
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(Rejected, match="no tokenizer can be read"):
        read_tokenizer(tmp_path)
