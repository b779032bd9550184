"""The artifact store in an S3 bucket: `<prefix>/sha256/<hex>`; the only module that imports minio.

minio-py blocks, so every request runs in a small pool of threads. Uploads go in parts and downloads in chunks:
memory is bounded by `_WORKERS * (_PARALLEL_PARTS + 1)` parts, whatever an object's size.
"""

import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import certifi
import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error
from urllib3.exceptions import HTTPError

from llmos.artifacts_content import (
    CHUNK,
    StoppedError,
    address_of,
    chunks_of,
    hex_of,
    in_thread,
    new_file,
    open_file,
    verify,
    write_chunks,
)
from llmos.contracts.references import is_bucket
from llmos.errors import Busy, Fatal, LlmosError, NotFound, Rejected

_WORKERS = 4
_PARALLEL_PARTS = 3
_PART = 8 << 20  # bytes
_MAX_PARTS = 10_000  # S3's limit
_RESUMES = 3  # how often a download that breaks off goes on where it was
_PROBE = b"llmos artifact store\n"

_MISSING = {"NoSuchKey", "NoSuchObject", "ResourceNotFound"}
_FORBIDDEN = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"}
_WRONG = {"InvalidBucketName", "NoSuchBucket", "AuthorizationHeaderMalformed", "PermanentRedirect"}

T = TypeVar("T")


def connect(env: Mapping[str, str], *, http: urllib3.PoolManager | None = None) -> Minio:
    """A client for the server that `LLMOS_S3_URL` names; sends nothing yet. `Rejected` names the variable at fault."""
    url = env.get("LLMOS_S3_URL", "")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
        raise Rejected(
            f"LLMOS_S3_URL is {url!r}" if url else "LLMOS_S3_URL is not set",
            remedy="Set it to the S3 server, such as http://127.0.0.1:9000.",
            param="LLMOS_S3_URL",
        )
    for name in ("LLMOS_S3_ACCESS_KEY", "LLMOS_S3_SECRET_KEY"):
        if not env.get(name):
            raise Rejected(f"{name} is not set", remedy=f"Set it to the credentials for {url}.", param=name)
    return Minio(
        parts.netloc,
        access_key=env["LLMOS_S3_ACCESS_KEY"],
        secret_key=env["LLMOS_S3_SECRET_KEY"],
        secure=parts.scheme == "https",
        region=env.get("LLMOS_S3_REGION") or "us-east-1",
        http_client=http or _http(),
    )


class S3Store:
    """Keeps the contract of `ArtifactStore` in a bucket.

    Persisted means: the server acknowledged the whole object; it shows objects only when they are complete. A put of
    more than a part skips the transfer when the server has an object of that size under the address; a smaller one is
    written anew.
    """

    def __init__(self, client: Minio, bucket: str, *, prefix: str = "") -> None:
        """Make the bucket when it is absent, and check that an object can be written and read back."""
        if not is_bucket(bucket):
            raise Rejected(
                f"{bucket!r} can't be a bucket",
                remedy="Use 3 to 63 lower-case letters, digits, '.' and '-'.",
                param="artifacts",
            )
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/sha256/" if prefix else "sha256/"
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="llmos-s3")
        with problems(f"s3://{bucket}"):
            self._probe()

    async def put_bytes(self, data: bytes) -> str:
        """See `ArtifactStore`."""
        address = address_of(data)
        await self._run(lambda _: self._put(address, io.BytesIO(data), len(data)))
        return address

    async def put_file(self, path: Path) -> str:
        """See `ArtifactStore`. Reads the file twice; `Busy` when it changed in between."""

        def work(stopped: Event) -> str:
            with open_file(path) as source:
                digest = sha256()
                for chunk in chunks_of(source, stopped):
                    digest.update(chunk)
                size = source.tell()
                source.seek(0)
                address = f"sha256:{digest.hexdigest()}"
                checked = _Checked(source, size, address, stopped)
                self._put(address, cast(BinaryIO, checked), size)  # minio only calls read()
            return address

        return await self._run(work)

    async def get_bytes(self, address: str, *, limit: int = 64 << 20) -> bytes:
        """See `ArtifactStore`."""

        def work(stopped: Event) -> bytes:
            if self._size(address) > limit:
                raise Rejected(f"{address} has more than {limit} bytes", remedy="Get it as a file.")
            data = b"".join(self._chunks(address, stopped))
            verify(address, address_of(data), self._place(address))
            return data

        return await self._run(work)

    async def get_file(self, address: str, dest: Path) -> None:
        """See `ArtifactStore`."""

        def work(stopped: Event) -> None:
            with new_file(dest.parent) as (path, sink):
                verify(address, write_chunks(self._chunks(address, stopped), sink), self._place(address))
                sink.flush()
                path.replace(dest)

        await self._run(work)

    async def has(self, address: str) -> bool:
        """See `ArtifactStore`."""
        try:
            await self.size(address)
        except NotFound:
            return False
        return True

    async def size(self, address: str) -> int:
        """See `ArtifactStore`."""
        return await self._run(lambda _: self._size(address))

    async def remove(self, address: str) -> None:
        """See `ArtifactStore`."""
        await self._run(lambda _: self._client.remove_object(self._bucket, self._key(address)))

    def holds(self, bucket: str, key: str) -> bool:
        """Whether an object with this key, or one whose key begins with it, may be one of the store's."""
        return bucket == self._bucket and (key.startswith(self._prefix) or self._prefix.startswith(key))

    def _key(self, address: str) -> str:
        return self._prefix + hex_of(address)

    def _place(self, address: str) -> str:
        return f"s3://{self._bucket}/{self._key(address)}"

    async def _run(self, work: Callable[[Event], T]) -> T:
        with problems(f"s3://{self._bucket}"):
            return await in_thread(work, self._pool)

    def _size(self, address: str) -> int:
        with problems(self._place(address)):
            return int(self._client.stat_object(self._bucket, self._key(address)).size or 0)

    def _put(self, address: str, source: BinaryIO, size: int) -> None:
        try:
            if size > _PART and self._size(address) == size:
                return
        except NotFound:
            pass  # to be uploaded
        self._client.put_object(
            self._bucket,
            self._key(address),
            source,
            size,
            part_size=part_size(size),
            num_parallel_uploads=_PARALLEL_PARTS,
        )

    def _chunks(self, address: str, stopped: Event) -> Iterator[bytes]:
        return read_object(self._client, self._bucket, self._key(address), stopped)

    def _probe(self) -> None:
        address = address_of(_PROBE)
        key = self._key(address)
        try:
            self._client.put_object(self._bucket, key, io.BytesIO(_PROBE), len(_PROBE))
        except S3Error as error:
            if error.code != "NoSuchBucket":
                raise
            self._make_bucket()
            self._client.put_object(self._bucket, key, io.BytesIO(_PROBE), len(_PROBE))
        verify(address, address_of(b"".join(self._chunks(address, Event()))), self._place(address))

    def _make_bucket(self) -> None:
        try:
            self._client.make_bucket(self._bucket)
        except S3Error as error:
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):  # another process was faster
                raise


class _Checked:
    """A file being uploaded under `address`: its end is handed over only if all that was read hashes to the address."""

    def __init__(self, source: BinaryIO, size: int, address: str, stopped: Event) -> None:
        self._source = source
        self._left = size
        self._address = address
        self._stopped = stopped
        self._digest = sha256()

    def read(self, size: int = -1) -> bytes:
        if self._stopped.is_set():
            raise StoppedError
        data = self._source.read(size)
        self._digest.update(data)
        self._left -= len(data)
        ended = self._left <= 0 or not data
        if ended and f"sha256:{self._digest.hexdigest()}" != self._address:
            raise Busy("the file changed while it was being stored", remedy="Store it when nobody writes to it.")
        return data


def part_size(size: int) -> int:
    """Bytes in a part so that an object of `size` bytes has at most 10,000 parts: 8 MiB, above 80 GB more."""
    return max(_PART, math.ceil(size / _MAX_PARTS / CHUNK) * CHUNK)


def read_object(client: Minio, bucket: str, key: str, stopped: Event) -> Iterator[bytes]:
    """The object in chunks; a download that breaks off goes on where it was. The caller verifies what it gets.

    Raises `NotFound`, `Busy`, `Fatal` like the store, and `StoppedError` when told to stop.
    """
    received, total, breaks = 0, -1, 0
    with problems(f"s3://{bucket}/{key}"):
        while received != total:
            response = client.get_object(bucket, key, offset=received)
            try:
                if total < 0:
                    total = int(response.headers["Content-Length"])
                elif response.status != 206:
                    raise Busy(f"s3://{bucket}/{key} broke off and can't be resumed", remedy="Try again.")
                for chunk in response.stream(CHUNK, decode_content=False):
                    if stopped.is_set():
                        raise StoppedError
                    received += len(chunk)
                    yield chunk
            except HTTPError:
                breaks += 1
                if breaks > _RESUMES:
                    raise
            finally:
                response.close()
                response.release_conn()


def _http() -> urllib3.PoolManager:
    """Connections that outlive a server's restart (6 s of retries) and give up on one that hangs."""
    retries = urllib3.Retry(total=5, read=1, other=0, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504))
    return urllib3.PoolManager(
        maxsize=_WORKERS * (_PARALLEL_PARTS + 1),
        timeout=urllib3.Timeout(connect=5.0, read=30.0),
        retries=retries,
        cert_reqs="CERT_REQUIRED",
        ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
    )


@contextmanager
def problems(place: str) -> Iterator[None]:
    """Turn what minio and urllib3 raise into the errors of llmos."""
    try:
        yield
    except S3Error as error:
        raise _translate(error, place) from error
    except InvalidResponseError as error:
        raise Fatal(f"what answers for {place} is no S3 server: {error}", remedy="Look at LLMOS_S3_URL.") from error
    except (MinioException, HTTPError) as error:
        raise Busy(f"{place} can't be reached: {error}", remedy="Look at LLMOS_S3_URL and its server.") from error


def _translate(error: S3Error, place: str) -> LlmosError:
    said = f"{place}: the server says {error.code}: {error.message}"
    if error.code in _MISSING:
        return NotFound(f"there is no object {place}", remedy="Look at LLMOS_ARTIFACTS, or store it again.")
    if error.code in _FORBIDDEN:
        return Fatal(said, remedy="Look at LLMOS_S3_ACCESS_KEY, LLMOS_S3_SECRET_KEY and what they are allowed to do.")
    if error.code in _WRONG:
        return Fatal(said, remedy="Look at the bucket's name, LLMOS_S3_URL and LLMOS_S3_REGION.")
    return Busy(said, remedy="Try again; if it stays, look at the server.")
