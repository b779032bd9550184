"""What an edge box pays for the inferencer: disk, memory, time to ready. `python tests/bench/inferencer_footprint.py`.

Makes an empty virtual environment, installs `.[inferencer]` into it and nothing else, and runs the service from
there with a MiniLM-size model against a real nats-server, in fp32 and in int8. Exit status 1 when a limit is
passed. `--venv DIR` keeps the environment. MiB as `du` and `ps` print them.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import inferencer_model
from inferencer_stand import Stand

REPOSITORY = Path(__file__).resolve().parents[2]
DISK_MIB, RESIDENT_MIB, READY_S = 300, 150, 2.0
REQUESTS = 200


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path)
    parser.add_argument("--inside", action="store_true", help="weights inside model.onnx instead of beside it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = given.venv or Path(folder) / "venv"
        install(home)
        held = [report_disk(home)]
        services = ("int8", "fp32")
        held += [await report_service(Path(folder) / name, name, home, inside=given.inside) for name in services]
    print("all limits hold" if all(held) else "A LIMIT IS PASSED")
    return int(not all(held))


def install(home: Path) -> None:
    if not (home / "bin" / "llmos").exists():
        venv.create(home, with_pip=True, clear=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--compile", f"{REPOSITORY}[inferencer]"]
        subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
    foreign = [name for name in ("torch", "transformers") if list(home.glob(f"lib/*/site-packages/{name}"))]
    assert not foreign, foreign


def report_disk(home: Path) -> bool:
    packages = next(home.glob("lib/*/site-packages"))
    sizes = sorted(((size(path), path.name) for path in packages.iterdir()), reverse=True)
    tools = sum(
        mib for mib, name in sizes if name.startswith(("pip", "setuptools", "pkg_resources", "_distutils_hack"))
    )
    total = size(home) - tools
    print(
        f"on disk {total:.0f} MiB (limit {DISK_MIB}), and {tools:.0f} of pip and setuptools: "
        + ", ".join(f"{name} {mib:.0f}" for mib, name in sizes[:12])
    )
    return total <= DISK_MIB


async def report_service(folder: Path, precision: str, home: Path, *, inside: bool) -> bool:
    stand, python = Stand(folder), str(home / "bin" / "python")
    try:
        await stand.prepare(precision, "inside" if inside else "beside")
        first = await stand.start(python)  # stages the model
        await stand.stop()
        again = await stand.start(python)
        assert stand.process is not None
        pid = stand.process.pid
        print(f"{precision}: ready in {first:.2f} s, again in {again:.2f} s (limit {READY_S:.1f}); resident, MiB:")
        loaded = report_memory("loaded and warm", pid)
        for at in range(REQUESTS):
            await stand.ask(f"{inferencer_model.SENTENCE} {at}")
        report_memory(f"{REQUESTS} requests later", pid)
        await asyncio.gather(*(stand.ask(*[inferencer_model.SENTENCE] * 8) for _ in range(16)))
        report_memory("after batches of 32", pid)
    finally:
        await stand.close()
    return max(first, again) <= READY_S and loaded <= RESIDENT_MIB


def size(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_blocks * 512 for file in files) / 2**20


def report_memory(when: str, pid: int) -> float:
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    kib = {parts[0]: int(parts[1]) for parts in lines if parts and parts[0] in ("VmRSS:", "RssAnon:", "RssFile:")}
    total, own, mapped = (kib[name] / 1024 for name in ("VmRSS:", "RssAnon:", "RssFile:"))
    print(f"  {when:22s} {total:4.0f}  (its own {own:.0f}, mapped files {mapped:.0f})")
    return total


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
