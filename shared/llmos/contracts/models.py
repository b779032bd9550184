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


class Candidate(Struct, frozen=True, omit_defaults=True):
    """One precision that was tried: what was measured on the validation split, and why it can't be chosen (if so)."""

    precision: str
    metrics: dict[str, float] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    chosen: bool = False


class ModelVersion(Struct, frozen=True, omit_defaults=True):
    """One registered version. `source` metrics are of the trained model, `metrics` of the exported artifact.

    `parity` holds `max_abs_diff`, `mean_abs_diff`, `agreement`; sizes in bytes, times in Unix seconds. `base` is the
    reference that the job named; `trained` is the artifact of kind `model` that was exported, from which
    `model:name@version` trains on. `target` is what it was made for; `candidates` are the precisions that
    `export.precision: auto` tried, in the order tried.
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
    target: str = "cpu"
    candidates: list[Candidate] = field(default_factory=list)


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


class ImageInput(Struct, frozen=True, omit_defaults=True):
    """How a picture becomes RGB bytes `[height, width, 3]`: resized, its middle cut out; the graph does the rest.

    `resize` is `[height, width]`, or one number: the length of the shorter edge. `crop` is `[height, width]` or empty.
    `resample` is Pillow's: nearest, bilinear, bicubic, lanczos, box, hamming.
    """

    resize: list[int]
    crop: list[int] = field(default_factory=list)
    resample: str = "bilinear"


class AudioInput(Struct, frozen=True, omit_defaults=True):
    """How a recording becomes samples: mono, `rate` a second, -1 to 1; the graph does the rest.

    `seconds` above 0: padded with zeros, or cut, to exactly so long; else as long as it is, at most `max_seconds`.
    `together`: recordings of different length may share a batch (padded with zeros, `audio_mask` 0 there); when it is
    false, only those of equal length may.
    """

    rate: int = 16_000
    seconds: float = 0.0
    max_seconds: float = 30.0
    together: bool = True


class Cache(Struct, frozen=True, omit_defaults=True):
    """The key-value cache of a decoder: `layers` times `past % layer` in and `present % layer` out, key and value.

    Each is `dtype` `[batch, heads, length, size]`. `kind` `gqa`: GroupQueryAttention, row lengths come from
    `attention_mask` (`[batch, total]`, ones from the left), past and present may be one buffer, more than one token at
    once only for a batch of one. `kind` `grown`: present is past with the new tokens behind it; all rows of a batch are
    of one length. `cross`, for encoder-decoders: what the encoder gives and every step takes, `[batch, heads, source,
    size]`.
    """

    layers: int
    heads: int
    size: int
    dtype: str = "float32"
    kind: str = "gqa"
    past_key: str = "past_key_values.%d.key"
    past_value: str = "past_key_values.%d.value"
    present_key: str = "present.%d.key"
    present_value: str = "present.%d.value"
    cross_key: str = ""
    cross_value: str = ""


class Generation(Struct, frozen=True, omit_defaults=True):
    """How a model that writes text goes about it, unless a request says otherwise.

    `start` are the decoder's first tokens (encoder-decoders), `eos_token_ids` end a text, `suppress` are never chosen,
    `suppress_first` not as the first. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing.
    """

    eos_token_ids: list[int] = field(default_factory=list)
    bos_token_id: int | None = None
    start: list[int] = field(default_factory=list)
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    suppress: list[int] = field(default_factory=list)
    suppress_first: list[int] = field(default_factory=list)


class ServingContract(Struct, frozen=True, omit_defaults=True):
    """`llmos.json` of an artifact of kind `onnx`: all that serving needs beside the graphs and `tokenizer.json`.

    Texts are tokenised by `tokenizer.json` (behind `prefix`), truncated to `max_length` tokens and padded on the right
    with `pad_token_id` (token type `pad_type_id`, mask 0). The graph `files["model"]` takes `input_names` (`input_ids`,
    `attention_mask`, `token_type_ids`: int64 `[batch, length]`, both free) and gives `output_name`, float32. By task:

    - text-classification: logits `[batch, labels]`, column i for `labels[i]`; probabilities are their softmax.
    - image-classification: likewise, of `pixels`, uint8 `[batch, height, width, 3]`, made as `image` says.
    - audio-classification: likewise, of `audio`, float32 `[batch, samples]`, made as `audio` says, and `audio_mask`
      (int64, as long) where `input_names` has it.
    - token-classification: logits `[batch, length, labels]`; a word has the label of its first token; labels are BIO,
      or names without a prefix.
    - question-answering: question and context as a pair, token types where `input_names` has them; logits
      `[batch, length, 2]`, start and end. Contexts of more than `max_length` tokens are read in windows that overlap by
      `stride` tokens, and an answer has at most `max_answer` tokens.
    - embeddings: `[batch, dimensions]`, pooled, and of length 1 if `normalise`, in the graph.
    - text-generation: `input_ids`, `attention_mask` and the `cache` in; logits `[batch, 1, vocab_size]` of the last
      token, and the cache, out. `max_length` bounds prompt and answer together. `chat_template` is Jinja over
      `messages`, `special_tokens` its names (`bos_token`, …).
    - translation, summarisation: `files["encoder"]` takes the text and gives the `cache`'s cross keys and values.
      `files["decoder"]` takes `input_ids` (`generation.start` first), `encoder_attention_mask` (the text's mask), both
      caches, and gives logits `[batch, 1, vocab_size]` of the last token, and its own cache.
    - speech-recognition: with `cache`, likewise, of `audio`, without masks; `max_length` bounds what is written. With
      `blank_token_id`, one graph gives logits `[batch, frames, vocab_size]`: the best token of each frame, decoded by
      `tokenizer.json` (CTC; frames of padding are blank).

    `source`, `base` and `dataset` are the addresses it was made from. `gate` is what it had to pass, `metrics` what was
    measured of this artifact on the test split (rounded, so that equal input gives equal bytes).
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
    target: str = "cpu"
    architecture: str = ""
    files: dict[str, str] = field(default_factory=lambda: {"model": "model.onnx"})
    prefix: str = ""
    pooling: str = ""
    normalise: bool = False
    dimensions: int = 0
    stride: int = 0
    max_answer: int = 0
    image: ImageInput | None = None
    audio: AudioInput | None = None
    vocab_size: int = 0
    chat_template: str = ""
    special_tokens: dict[str, str] = field(default_factory=dict)
    generation: Generation | None = None
    cache: Cache | None = None
    blank_token_id: int | None = None
