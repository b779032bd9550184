"""Which torch and onnxruntime a node has, found out in a short-lived child: neither is ever loaded by the agent."""

import asyncio
import importlib
import os
import sys
from collections.abc import Callable
from importlib import metadata

import msgspec
from msgspec import Struct

TIMEOUT_S = 30.0
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-rocm")


class Software(Struct, frozen=True):
    """Versions (empty: not installed) and the execution providers that onnxruntime was built with."""

    torch: str = ""
    onnxruntime: str = ""
    providers: list[str] = []


def probe() -> Software:
    """Look: torch by its package's metadata, onnxruntime by importing it (0.2 s, 40 MB: not in the agent)."""
    version = next((found for name in RUNTIMES if (found := _version(name))), "")
    providers: list[str] = []
    if version:
        try:
            providers = list(importlib.import_module("onnxruntime").get_available_providers())
        except (ImportError, OSError):
            pass  # installed, and can't be loaded here (a CUDA library is missing): it has no provider
    return Software(_version("torch"), version, providers)


async def read_software(warn: Callable[[str], None], *, timeout: float = TIMEOUT_S) -> Software:
    """`probe` in a child process; nothing known, and a warning, when that fails or takes over `timeout` seconds."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__,
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout):
            output, _ = await child.communicate()
        return msgspec.json.decode(output, type=Software)
    except (TimeoutError, msgspec.DecodeError, UnicodeDecodeError):
        warn("can't tell which torch and onnxruntime are installed")
        return Software()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(probe()))
