"""Every task in one pass: small graphs whose answers can be foretold, through the same contract."""

import io
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from llmos.artifacts import put_tree
from llmos.contracts.inference import Entity, InferenceRequested, Input, Output
from llmos.contracts.models import AudioInput, ImageInput, ServingContract
from llmos.errors import Rejected
from llmos_inferencer.engine import Means, load

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "where", "who", "is", "lives", "she"]
WORDS += ["ada", "lovelace", "in", "london", "paris", "today", "new", "york", "and"]
IDS = {word: at for at, word in enumerate(WORDS)}
PLACES = {"london": 3, "paris": 3, "new": 3, "york": 4}
PERSONS = {"ada": 1, "lovelace": 2}
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def graph(nodes: list[Any], inputs: list[Any], output: str, constants: dict[str, Any]) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "task",
        inputs,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    return model


def texts_in() -> list[Any]:
    names = ("input_ids", "attention_mask")
    return [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in names]


def table_graph(table: np.ndarray[Any, Any], output: str = "logits") -> onnx.ModelProto:
    nodes = [helper.make_node("Gather", ["table", "input_ids"], [output])]
    return graph(nodes, texts_in(), output, {"table": table.astype(np.float32)})


def write(root: Path, model: onnx.ModelProto, task: str, **fields: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    onnx.save(model, root / "model.onnx")
    tokenizer = Tokenizer(models.WordLevel(IDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(root / "tokenizer.json"))
    given = {"labels": [], "max_length": 12, "input_names": [each.name for each in model.graph.input]}
    contract = ServingContract(task=task, pad_token_id=0, pad_token="[PAD]", **{**given, **fields})
    (root / "llmos.json").write_bytes(msgspec.json.encode(contract))
    return root


def tags(root: Path) -> Path:
    table = np.zeros((len(WORDS), len(LABELS)))
    table[:, 0] = 5
    for word, label in {**PLACES, **PERSONS}.items():
        table[IDS[word], label] = 10
    return write(root, table_graph(table), "token-classification", labels=LABELS, stride=4)


def questions(root: Path) -> Path:
    table = np.zeros((len(WORDS), 2))
    table[IDS["new"], 0] = table[IDS["york"], 1] = 9
    table[IDS["london"]] = 5, 5
    return write(root, table_graph(table), "question-answering", stride=3, max_answer=4)


def vectors(root: Path) -> Path:
    table = np.eye(len(WORDS))[:, 4:8]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["words", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["embedding"], keepdims=0),
    ]
    constants = {"table": table.astype(np.float32), "last": np.array([-1]), "one": np.array([1])}
    model = graph(nodes, texts_in(), "embedding", constants)
    return write(root, model, "embeddings", output_name="embedding", dimensions=4)


def pictures(root: Path) -> Path:
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["logits"], keepdims=0),
    ]
    given = [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["b", "h", "w", 3])]
    model = graph(nodes, given, "logits", {"axes": np.array([1, 2])})
    return write(
        root, model, "image-classification", labels=["red", "green", "blue"], image=ImageInput([8], crop=[8, 8])
    )


def sounds(root: Path, task: str = "audio-classification") -> Path:
    """How loud it is; or, for speech, the samples times ten are the tokens."""
    given = [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["b", "n"])]
    if task == "speech-recognition":
        nodes = [
            helper.make_node("Unsqueeze", ["audio", "last"], ["column"]),
            helper.make_node("Sub", ["column", "tokens"], ["off"]),
            helper.make_node("Mul", ["off", "off"], ["square"]),
            helper.make_node("Neg", ["square"], ["logits"]),
        ]
        constants = {"last": np.array([-1]), "tokens": np.arange(5, dtype=np.float32) / 10}
        model = graph(nodes, given, "logits", constants)
        write(root, model, task, audio=AudioInput(rate=8000, together=False), blank_token_id=0)
        tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "|": 1, "l": 2, "o": 3, "h": 4}, unk_token="<pad>"))
        tokenizer.decoder = decoders.CTC("<pad>", "|")
        tokenizer.add_special_tokens(["<pad>"])
        tokenizer.save(str(root / "tokenizer.json"))
        return root
    given.append(helper.make_tensor_value_info("audio_mask", TensorProto.INT64, ["b", "n"]))
    nodes = [
        helper.make_node("Abs", ["audio"], ["loudness"]),
        helper.make_node("ReduceSum", ["loudness", "one"], ["sum"], keepdims=1),
        helper.make_node("Cast", ["audio_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Mul", ["mean", "signs"], ["logits"]),
    ]
    constants = {"one": np.array([1]), "signs": np.array([[10, 0.5]], np.float32)}
    return write(root, graph(nodes, given, "logits", constants), task, labels=["loud", "quiet"], audio=AudioInput(8000))


def answer(root: Path, *inputs: Input) -> list[Output]:
    """All inputs in one run, as the lanes do."""
    engine: Any = load(root, Means(1))
    prepared = engine.prepare(inputs)
    found = iter(engine.run([row for each in prepared for row in each.rows]))
    request = InferenceRequested("c", list(inputs))
    return [engine.read(each, [next(found) for _ in each.rows], request) for each in prepared]


def texts(*given: str) -> list[Input]:
    return [Input(text=text) for text in given]


def wav(samples: "np.ndarray[Any, Any]", rate: int = 8000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.repeat(samples, channels) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def png(color: tuple[int, int, int], size: tuple[int, int] = (20, 10)) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


# --- token classification ---


def test_words_are_joined_to_entities_with_their_place_in_the_text(tmp_path: Path) -> None:
    text = "ada lovelace lives in new york and in london"
    (output,) = answer(tags(tmp_path), *texts(text))
    assert [(e.label, e.text) for e in output.entities] == [
        ("PER", "ada lovelace"), ("LOC", "new york"), ("LOC", "london")
    ]  # fmt: skip
    assert all(text[e.start : e.end] == e.text and e.score > 0.9 for e in output.entities)


def test_neighbours_that_both_begin_stay_two_entities(tmp_path: Path) -> None:
    (output,) = answer(tags(tmp_path), *texts("london paris"))
    assert [e.text for e in output.entities] == ["london", "paris"]


def test_a_text_longer_than_the_model_takes_is_read_in_windows_and_no_entity_is_lost_or_doubled(tmp_path: Path) -> None:
    text = "she lives in london and ada lovelace lives in new york and " * 9
    (output,) = answer(tags(tmp_path), *texts(text))
    assert [e.text for e in output.entities] == ["london", "ada lovelace", "new york"] * 9
    assert all(text[e.start : e.end] == e.text for e in output.entities)


def test_no_entity_no_output(tmp_path: Path) -> None:
    assert answer(tags(tmp_path), *texts("she lives", "")) == [Output(), Output()]


# --- question answering ---


def test_the_best_span_of_the_context_answers_and_never_a_part_of_the_question(tmp_path: Path) -> None:
    context = "she lives in new york today"
    (output,) = answer(questions(tmp_path), Input(text="where is new york", pair=context))
    assert output.answer is not None
    assert (output.answer.text, context[output.answer.start : output.answer.end]) == ("new york", "new york")
    assert 0 < output.answer.score <= 1


def test_a_long_context_is_read_in_windows_to_its_end(tmp_path: Path) -> None:
    context = "she is in london and " * 12 + "lives in new york today"
    (output,) = answer(questions(tmp_path), Input(text="where is she", pair=context))
    assert output.answer is not None and output.answer.text == "new york"
    assert context[output.answer.start : output.answer.end] == "new york"


def test_a_question_that_leaves_no_room_for_its_context_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="no room") as error:
        answer(questions(tmp_path), Input(text="where is she " * 9, pair="london"))
    assert error.value.problem.param == "inputs[0].text"


@pytest.mark.parametrize("given", [Input(text="where"), Input(pair="london"), Input(token_ids=[1])])
def test_a_question_without_context_is_refused(tmp_path: Path, given: Input) -> None:
    with pytest.raises(Rejected, match="question"):
        answer(questions(tmp_path), given)


# --- embeddings ---


def test_an_embedding_is_what_the_graph_gives_whatever_its_neighbours(tmp_path: Path) -> None:
    outputs = answer(vectors(tmp_path), *texts("where who who", "is " * 8), Input(token_ids=[4, 7]))
    assert [output.embedding for output in outputs] == [[1, 2, 0, 0], [0, 0, 8, 0], [1, 0, 0, 1]]


def test_token_ids_that_are_too_many_are_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="13 token ids are more than the model's 12"):
        answer(vectors(tmp_path), Input(token_ids=[4] * 13))


# --- pictures ---


def test_a_picture_is_classified_whatever_its_size(tmp_path: Path) -> None:
    files = [png((200, 0, 0)), png((0, 0, 90), (8, 8)), png((1, 200, 1), (7, 50))]
    outputs = answer(pictures(tmp_path), *(Input(image=data) for data in files))
    assert [output.label for output in outputs] == ["red", "blue", "green"]


@pytest.mark.parametrize("data", [b"", b"no picture", png((1, 1, 1))[:40]])
def test_what_is_no_picture_is_refused_by_its_place(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Rejected) as error:
        answer(pictures(tmp_path), Input(image=png((9, 0, 0))), Input(image=data))
    assert error.value.problem.param.startswith("inputs[1]")


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmos.media.MAX_PIXELS", 100)
    with pytest.raises(Rejected, match="pixels"):
        answer(pictures(tmp_path), Input(image=png((9, 0, 0))))


# --- sounds ---


def test_recordings_of_different_length_rate_and_channels_share_a_run(tmp_path: Path) -> None:
    loud, quiet = np.full(4000, 0.9), np.full(900, 0.001)
    files = [wav(loud), wav(quiet, channels=2), wav(np.full(48000, 0.8), rate=48000)]
    outputs = answer(sounds(tmp_path), *(Input(audio=data) for data in files))
    assert [output.label for output in outputs] == ["loud", "loud", "loud"]
    assert outputs[0].score > 0.99 and abs(outputs[1].score - 0.5) < 0.01


@pytest.mark.parametrize("data", [b"", b"no sound", wav(np.zeros(0))])
def test_what_is_no_recording_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Rejected) as error:
        answer(sounds(tmp_path), Input(audio=data))
    assert error.value.problem.param.startswith("inputs[0]")


def test_a_recording_longer_than_the_model_takes_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"lasts 31\.0 s, the model takes 30 s"):
        answer(sounds(tmp_path), Input(audio=wav(np.zeros(31 * 8000))))


def test_speech_is_the_best_token_of_each_frame_with_repeats_and_blanks_taken_out(tmp_path: Path) -> None:
    frames = np.array([4, 4, 3, 3, 0, 2, 2, 0, 2, 1, 3], np.float32) / 10
    (output,) = answer(sounds(tmp_path, "speech-recognition"), Input(audio=wav(frames)))
    assert output.text == "holl o"


# --- on the bus ---

Make = Callable[[Path], Path]


@pytest.mark.parametrize(
    ("task", "make", "given", "check"),
    [
        ("token-classification", tags, Input(text="in london"), lambda o: o.entities[0].text == "london"),
        ("question-answering", questions, Input(text="where", pair="in paris"), lambda o: o.answer is not None),
        ("embeddings", vectors, Input(text="where"), lambda o: o.embedding == [1, 0, 0, 0]),
        ("image-classification", pictures, Input(image=png((0, 250, 0))), lambda o: o.label == "green"),
        ("audio-classification", sounds, Input(audio=wav(np.full(800, 0.9))), lambda o: o.label == "loud"),
    ],
)
async def test_a_task_is_served_on_the_bus_and_its_input_may_lie_in_the_store(
    stand: Any, task: str, make: Make, given: Input, check: Callable[[Output], bool]
) -> None:
    root = make(stand.folder / "exported")
    version = stand.sign("mood", 1, await put_tree(stand.store, root, kind="onnx"))
    async with stand.running():
        await stand.ready(await stand.deploy(version))
        answer = await stand.ask(given)
        assert answer.problem is None and check(answer.outputs[0])
        assert answer.usage.prompt_tokens > 0
        if task == "image-classification":
            address = await stand.store.put_bytes(given.image)
            assert check((await stand.ask(Input(artifact=address))).outputs[0])
            missing = await stand.ask(Input(artifact="sha256:" + "0" * 64))
            assert missing.problem.param == "inputs[0].artifact"
        if task == "token-classification":
            assert isinstance(answer.outputs[0].entities[0], Entity)
