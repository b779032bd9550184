"""Models: registered versions, what was measured of them, and who signed them."""

from msgspec import Struct, field

from llmos.contracts.jobs import Bound


class Signature(Struct, frozen=True, omit_defaults=True):
    """An Ed25519 signature (base64) over a `Statement` in its canonical JSON form; `key` names the public key."""

    key: str
    signature: str


class Statement(Struct, frozen=True):
    """What the vault signs of a model version: this name and version is this artifact (its manifest's digest)."""

    tenant: str
    model: str
    version: int
    artifact: str


class ModelVersion(Struct, frozen=True, omit_defaults=True):
    """One registered version. `source` metrics are of the trained model, `metrics` of the exported artifact.

    `parity` holds `max_abs_diff`, `mean_abs_diff`, `agreement`; sizes in bytes, times in Unix seconds. `base` is the
    reference that the job named; `trained` is the artifact of kind `model` that was exported, from which
    `model:name@version` trains on.
    """

    model: str
    version: int
    tenant: str
    task: str
    artifact: str
    job: str
    created_at: float
    precision: str = "fp32"
    labels: list[str] = field(default_factory=list)
    source: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)
    size: int = 0
    source_size: int = 0
    base: str = ""
    private: bool = False
    signature: Signature | None = None
    trained: str = ""


class ModelRecord(Struct, frozen=True, omit_defaults=True):
    """KV `models`, key = model name: every version, oldest first. Written with compare-and-set."""

    name: str
    tenant: str
    versions: list[ModelVersion] = field(default_factory=list)


class ModelExported(Struct, frozen=True, omit_defaults=True):
    """A version was registered: the artifact passed its gate and is signed."""

    version: ModelVersion


class ModelRefused(Struct, frozen=True, omit_defaults=True):
    """The artifact did not pass its gate; nothing was registered."""

    model: str
    job: str
    tenant: str
    reasons: list[str] = field(default_factory=list)
    source: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)


class ServingContract(Struct, frozen=True, omit_defaults=True):
    """`llmos.json` of an artifact of kind `onnx`: all that serving needs beside `model.onnx` and `tokenizer.json`.

    Texts are tokenised by `tokenizer.json`, truncated to `max_length` tokens and padded on the right with
    `pad_token_id` (token type `pad_type_id`, mask 0). The graph takes `input_names` (each int64 `[batch, length]`, both
    free) and gives `output_name`: float32 logits `[batch, len(labels)]`, column i for `labels[i]`; probabilities are
    their softmax. `source`, `base` and `dataset` are the addresses it was made from. `gate` is what it had to pass,
    `metrics` what was measured of this artifact on the test split (rounded, so that equal input gives equal bytes).
    """

    task: str
    labels: list[str]
    max_length: int
    pad_token_id: int
    pad_token: str
    input_names: list[str]
    output_name: str = "logits"
    pad_type_id: int = 0
    precision: str = "fp32"
    source: str = ""
    base: str = ""
    dataset: str = ""
    gate: dict[str, Bound] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    opset: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    format: int = 1
