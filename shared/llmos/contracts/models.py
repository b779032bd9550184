"""Models: registered versions, what was measured of them, and who signed them."""

from msgspec import Struct, field


class Signature(Struct, frozen=True, omit_defaults=True):
    """An Ed25519 signature over `Statement` in its canonical JSON form; both fields base64, `key` names the public key."""

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

    `parity` holds `max_abs_diff`, `mean_abs_diff`, `agreement`; sizes in bytes, times in Unix seconds.
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
