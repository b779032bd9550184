"""Bring what a job spec refers to, a file or a directory, to this machine; `parse` reads the reference itself."""

import os
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from llmos.artifacts import MANIFEST_LIMIT, ArtifactStore, Cipher, decode_manifest, get_tree
from llmos.artifacts_content import StoppedError, chunks_of, fresh_directory, hex_of, in_thread, open_file
from llmos.contracts.references import Reference, parse
from llmos.errors import Busy, Fatal, NotFound, Rejected

__all__ = ["Reference", "fetch", "parse"]

# What is taken from a hub's repository: weights and tokenizers that no program runs from. Never a pickle.
_HUB_FILES = ("*.json", "*.jinja", "*.model", "*.safetensors", "*.spm", "*.txt")
_POOLING = "1_Pooling/config.json"  # how a sentence-transformers model makes one vector of its tokens


async def fetch(
    reference: Reference,
    dest: Path,
    *,
    store: ArtifactStore,
    file_roots: Sequence[Path],
    models: Callable[[str, int | None], Awaitable[str]] | None = None,
    ciphers: Callable[[str], Awaitable[Cipher]] | None = None,
    env: Mapping[str, str] = os.environ,
) -> Path:
    """Bring what `reference` names into the directory `dest`, which must not exist; returns the file in it, or `dest`.

    What arrives is a copy of regular files with one link each, whole or not at all. `file:` is read only beneath one of
    `file_roots`, links resolved; `s3:` with the credentials in `env`, never from the artifact store's own objects; of
    an `hf:` repository only configuration, safetensors and tokenizer files arrive. An artifact may be a tree or a
    single object (a file named by its digest). `ciphers` gives the cipher of a sealed tree by the name in its
    manifest, `models` the address of a model's version (`None`: the newest).

    Raises `NotFound` for what does not exist, `Rejected` for what may not be read, `Busy` for a server that gives no
    answer.
    """
    match reference.scheme:
        case "file":
            source = _allowed(Path(reference.name), file_roots)
            return await _staged(dest, lambda folder, stopped: _copy(source, folder, file_roots, stopped))
        case "s3":
            from llmos.references_s3 import fetch_objects

            bucket, key = reference.name, reference.key
            return await _staged(dest, lambda folder, stopped: fetch_objects(env, store, bucket, key, folder, stopped))
        case "hf":
            return await _staged(dest, lambda folder, stopped: _fetch_hub(reference, folder, env, stopped))
        case "model":
            if models is None:
                raise Rejected(f"{reference} can't be used here", remedy="Name the artifact: artifact:sha256:….")
            return await _fetch_artifact(await models(reference.name, reference.version), dest, store, ciphers)
    return await _fetch_artifact(reference.name, dest, store, ciphers)


async def _fetch_artifact(
    address: str, dest: Path, store: ArtifactStore, ciphers: Callable[[str], Awaitable[Cipher]] | None
) -> Path:
    manifest = None
    if await store.size(address) <= MANIFEST_LIMIT:
        manifest = decode_manifest(await store.get_bytes(address, limit=MANIFEST_LIMIT))
    if manifest is None:
        with fresh_directory(dest) as folder:
            await store.get_file(address, folder / hex_of(address))
        return dest / hex_of(address)
    cipher = await ciphers(manifest.sealed_by) if manifest.sealed_by and ciphers else None
    await get_tree(store, address, dest, cipher=cipher)
    return dest


async def _staged(dest: Path, bring: Callable[[Path, Event], Path]) -> Path:
    """Let `bring` fill a fresh directory that becomes `dest`; `bring` returns the file or directory that it brought."""
    with fresh_directory(dest) as folder:
        brought = await in_thread(lambda stopped: bring(folder, stopped))
        return dest / brought.relative_to(folder)


def _allowed(path: Path, roots: Sequence[Path]) -> Path:
    """The path with every link resolved, if it lies beneath a root; whether it exists is not told otherwise."""
    resolved = path.resolve()
    if not any(resolved.is_relative_to(root.resolve()) for root in roots):
        raise Rejected(
            f"file://{path} may not be read here",
            remedy="Put it beneath a directory that LLMOS_FILE_ROOTS names, or use s3:// or artifact:.",
        )
    return resolved


def _copy(source: Path, folder: Path, roots: Sequence[Path], stopped: Event) -> Path:
    """Copy a file or a tree, links followed as far as they stay beneath a root."""
    if not source.exists():
        raise NotFound(f"there is no file://{source}", remedy="Give the path of a file or directory on this node.")
    if not source.is_dir():
        return _copy_file(source, folder / source.name, stopped)
    for at, folders, files in os.walk(source):
        for name in sorted(files):
            path = Path(at, name)
            _copy_file(_allowed(path, roots), folder / path.relative_to(source), stopped)
        for name in folders:
            if Path(at, name).is_symlink():
                raise Rejected(f"{Path(at, name)} links to a directory", remedy="Put the directory itself there.")
    return folder


def _copy_file(source: Path, dest: Path, stopped: Event) -> Path:
    if not stat.S_ISREG(source.stat().st_mode):
        raise Rejected(f"{source} is no regular file", remedy="Give a file that holds data.")
    dest.parent.mkdir(parents=True, exist_ok=True)
    with open_file(source) as reading, dest.open("xb") as writing:
        for chunk in chunks_of(reading, stopped):
            writing.write(chunk)
    return dest


def _fetch_hub(reference: Reference, folder: Path, env: Mapping[str, str], stopped: Event) -> Path:
    """Download a model repository, or take it from the hub's cache, and copy what may be loaded."""
    try:
        from huggingface_hub import errors, snapshot_download
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whichever library it uses
        from tqdm import tqdm
    except ImportError as error:
        raise Fatal("huggingface_hub is not installed", remedy="Install llmos[trainer].") from error

    class Watched(tqdm):  # type: ignore[misc]  # tqdm has no types; the hub reports each chunk to it, shown or not
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if stopped.is_set():
                raise StoppedError
            return None

    def download(allow: list[str], ignore: list[str] | None = None) -> Path:
        return Path(
            snapshot_download(
                reference.name,
                revision=reference.revision,
                endpoint=env.get("HF_ENDPOINT") or None,
                cache_dir=env.get("HF_HUB_CACHE") or None,
                token=env.get("HF_TOKEN") or None,
                tqdm_class=Watched,
                allow_patterns=allow,
                ignore_patterns=ignore,
            )
        )

    try:
        snapshot = download([*_HUB_FILES], ["*/*"])
        if (snapshot / "modules.json").exists():
            download([_POOLING])
    except errors.GatedRepoError as error:
        raise Rejected(f"{reference} needs permission", remedy="Accept its terms and set HF_TOKEN.") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise NotFound(
            f"the hub has no {reference}", remedy="Look at its name and revision; set HF_TOKEN if it is private."
        ) from error
    except ValueError as error:  # a name that the hub refuses, or a file too large for plain HTTP
        raise Rejected(f"{reference} can't be downloaded: {error}", remedy="Name a copy by file://.") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, HTTPError) as error:
        raise Busy(
            f"{reference} is not in the cache, and the hub did not bring it: {error}",
            remedy="Look at the network and HF_ENDPOINT, or download the model and name it as file:// or s3://.",
        ) from error
    for path in sorted(snapshot.iterdir()):  # the cache may hold what others asked for, too
        if any(path.match(pattern) for pattern in _HUB_FILES):
            _copy_file(path, folder / path.name, stopped)
    if (snapshot / _POOLING).exists():
        _copy_file(snapshot / _POOLING, folder / _POOLING, stopped)
    return folder
