"""References: how a job spec names a model or data, `file://`, `s3://`, `artifact:`, `hf:` and `model:`; pure."""

import re
from difflib import get_close_matches
from typing import Literal
from urllib.parse import quote, unquote

from msgspec import Struct

from llmos.errors import Rejected

Scheme = Literal["file", "s3", "artifact", "hf", "model"]
SCHEMES: dict[Scheme, str] = {
    "file": "file:///absolute/path",
    "s3": "s3://bucket/key",
    "artifact": "artifact:sha256:<64 hex digits>",
    "hf": "hf:org/name@revision",
    "model": "model:name@version",
}

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BUCKET = re.compile(r"(?!.*[.-]\.|.*\.-|(?:\d+\.){3}\d+$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_HF = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[\w][\w./-]*")
_MODEL = re.compile(r"[A-Za-z0-9_-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Reference(Struct, frozen=True):
    """What a reference names; `str()` gives its canonical text.

    `name` is the absolute path (`file`), the bucket (`s3`), the address (`artifact`), the repository (`hf`) or the
    model (`model`). `key` is the object's key or the prefix of several (`s3`), `revision` the branch, tag or commit
    (`hf`), `version` the model's version, `None` for the newest (`model`).
    """

    scheme: Scheme
    name: str
    key: str = ""
    revision: str = ""
    version: int | None = None

    def __str__(self) -> str:
        match self.scheme:
            case "file":
                return f"file://{quote(self.name)}"
            case "s3":
                return f"s3://{self.name}/{self.key}"
            case "hf":
                return f"hf:{self.name}@{self.revision}"
            case "model":
                return f"model:{self.name}" if self.version is None else f"model:{self.name}@{self.version}"
        return f"artifact:{self.name}"


def parse(text: str) -> Reference:
    """Read a reference. Raises `Rejected`; the remedy names the form that was probably meant."""
    if not text.strip() or text != text.strip() or _CONTROL.search(text):
        raise _fault(text, f"Write one of {_forms()}, without spaces around it")
    match = _SCHEME.fullmatch(text)
    if match is None:
        raise _fault(text, _suggest_bare(text))
    scheme, rest = match[1], match[2]
    match scheme:
        case "file":
            return _parse_file(text, rest)
        case "s3":
            return _parse_s3(text, rest)
        case "artifact":
            if not _DIGEST.fullmatch(rest):
                raise _fault(text, _suggest_artifact(rest))
            return Reference("artifact", rest)
        case "hf":
            return _parse_hf(text, rest)
        case "model":
            return _parse_model(text, rest)
    raise _fault(text, _suggest_scheme(scheme, rest))


def is_bucket(name: str) -> bool:
    """Whether `name` may be a bucket of S3: 3–63 lower-case letters, digits, `.` and `-`."""
    return _BUCKET.fullmatch(name) is not None


def _parse_file(text: str, rest: str) -> Reference:
    path = unquote(rest.removeprefix("//").removeprefix("localhost"))
    if _CONTROL.search(path):
        raise _fault(text, "Leave control characters out of the path")
    if not rest.startswith("//") or not path.startswith("/") or path.startswith("//"):
        raise _fault(text, f"A file needs an absolute path: file:///{path.lstrip('/')}")
    return Reference("file", path)


def _parse_s3(text: str, rest: str) -> Reference:
    bucket, _, key = rest.removeprefix("//").partition("/")
    if not rest.startswith("//") or not is_bucket(bucket) or not key or {".", ".."} & set(key.split("/")):
        meant = f"s3://{rest.lstrip('/')}"
        if meant != text and "/" in rest.lstrip("/"):
            remedy = f"Did you mean {meant}?"
        else:
            remedy = f"Write {SCHEMES['s3']}; a bucket's name has 3 to 63 lower-case letters, digits, '.' and '-'"
        raise _fault(text, remedy)
    return Reference("s3", bucket, key=key)


def _parse_hf(text: str, rest: str) -> Reference:
    name, at, revision = rest.partition("@")
    revision = revision if at else "main"
    if not _HF.fullmatch(name) or not _REVISION.fullmatch(revision) or ".." in f"{name}/{revision}":
        plain = rest.lstrip("/")
        raise _fault(text, f"Did you mean hf:{plain}?" if plain != rest and plain else f"Write {SCHEMES['hf']}")
    return Reference("hf", name, revision=revision)


def _parse_model(text: str, rest: str) -> Reference:
    name, at, version = rest.partition("@")
    if _MODEL.fullmatch(name) and not at:
        return Reference("model", name)
    if _MODEL.fullmatch(name) and re.fullmatch(r"[1-9][0-9]{0,17}", version):
        return Reference("model", name, version=int(version))
    near = re.fullmatch(r"/*([A-Za-z0-9_-]+)[:@/]v?([1-9][0-9]*)", rest)
    raise _fault(
        text, f"Did you mean model:{near[1]}@{near[2]}?" if near else f"Write {SCHEMES['model']}, or model:name"
    )


def _suggest_bare(text: str) -> str:
    if text.startswith("/"):
        return f"For a file, write file://{quote(text)}"
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return f"For an artifact, write artifact:sha256:{text}"
    if (
        text.startswith((".", "~"))
        or re.search(r"\.(jsonl?|csv|parquet|safetensors|txt)$", text)
        or text.count("/") > 1
    ):
        return f"For a file, write its absolute path: file:///…/{text.lstrip('./~')}"
    if _HF.fullmatch(text):
        return f"For a model of the hub, write hf:{text}; for one of this registry, model:{text.rpartition('/')[2]}"
    return f"Write one of {_forms()}"


def _suggest_artifact(rest: str) -> str:
    digest = re.search(r"[0-9A-Fa-f]{64}", rest)
    return f"Did you mean artifact:sha256:{digest[0].lower()}?" if digest else f"Write {SCHEMES['artifact']}"


def _suggest_scheme(scheme: str, rest: str) -> str:
    hub = re.fullmatch(r"//huggingface\.co/([^/]+/[^/]+)/?.*", rest)
    if scheme.lower() in ("http", "https"):
        return f"Did you mean hf:{hub[1]}?" if hub else f"Downloads over {scheme} aren't done; write one of {_forms()}"
    if scheme == "sha256":
        return f"For an artifact, write artifact:sha256:{rest}"
    near = get_close_matches(scheme.lower(), [*SCHEMES, "huggingface"], n=1, cutoff=0.7)
    if not near:
        return f"Write one of {_forms()}"
    meant = f"{'hf' if near[0] == 'huggingface' else near[0]}:{rest}"
    try:
        return f"Did you mean {parse(meant)}?"
    except Rejected as error:
        return error.problem.remedy


def _forms() -> str:
    return ", ".join(SCHEMES.values())


def _fault(text: str, remedy: str) -> Rejected:
    return Rejected(f"{text[:200]!r} is no reference", remedy=remedy if remedy.endswith("?") else f"{remedy}.")
