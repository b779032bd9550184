"""What an edge box pays for the inferencer: disk, memory, time to ready. `python tests/bench/inferencer_footprint.py`.

Makes an empty virtual environment, installs `.[inferencer]` into it and nothing else, and runs the service from there with
a MiniLM-size model against a real nats-server. Exit status 1 when a limit is passed. `--venv DIR` keeps the environment.
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
DISK_MB, RESIDENT_MB, READY_S = 300, 150, 2.0
REQUESTS = 200


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path)
    parser.add_argument("--precision", choices=["fp32", "int8"], default="fp32")
    parser.add_argument("--inside", action="store_true", help="weights inside model.onnx instead of beside it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = given.venv or Path(folder) / "venv"
        install(home)
        disk = report_disk(home)
        artifact = Path(folder) / "exported"
        # In a process of its own: torch must not be what the measured process shares pages with.
        made = [sys.executable, inferencer_model.__file__, str(artifact), given.precision, "inside" if given.inside else "beside"]
        subprocess.run(made, check=True, stderr=subprocess.DEVNULL)
        stand = Stand(Path(folder))
        try:
            await stand.prepare(artifact)
            passed = await report_service(stand, str(home / "bin" / "python"))
        finally:
            await stand.close()
    print("all limits hold" if disk and passed else "A LIMIT IS PASSED")
    return int(not (disk and passed))


def install(home: Path) -> None:
    if not (home / "bin" / "llmos").exists():
        venv.create(home, with_pip=False, clear=True)
        pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "-q", "--compile"]
        subprocess.run([*pip, f"{REPOSITORY}[inferencer]"], check=True)
    foreign = [name for name in ("torch", "transformers") if list(home.glob(f"lib/*/site-packages/{name}"))]
    assert not foreign, foreign


def report_disk(home: Path) -> bool:
    packages = next(home.glob("lib/*/site-packages"))
    sizes = sorted(((size(path), path.name) for path in packages.iterdir()), reverse=True)
    total = size(home) / 1e6
    print(f"disk        {total:6.0f} MB  (limit {DISK_MB})  " + ", ".join(f"{n} {s / 1e6:.0f}" for s, n in sizes[:12]))
    return total <= DISK_MB


async def report_service(stand: Stand, python: str) -> bool:
    await stand.start(python)  # the first start writes the bytecode and stages the model
    await stand.stop()
    ready = await stand.start(python)
    assert stand.process is not None
    loaded = status(stand.process.pid)
    for at in range(REQUESTS):
        await stand.ask(f"{inferencer_model.SENTENCE} {at}")
    after = status(stand.process.pid)
    await asyncio.gather(*(stand.ask(*[inferencer_model.SENTENCE] * 8) for _ in range(16)))
    busy = status(stand.process.pid)
    print(f"ready       {ready:6.2f} s   (limit {READY_S}), from the process's start to ReplicaReady")
    for when, found in (("loaded", loaded), (f"{REQUESTS} asked", after), ("32 a batch", busy)):
        print(f"{when:11s} {found['VmRSS']:6.0f} MB  " + ("(limit 150)  " if when != "32 a batch" else "") + f"{found}")
    return ready <= READY_S and after["VmRSS"] <= RESIDENT_MB


def size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_blocks * 512 for file in files)


def status(pid: int) -> dict[str, float]:
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    wanted = ("VmRSS", "RssAnon", "RssFile", "VmHWM", "Threads")
    found = {parts[0][:-1]: int(parts[1]) for parts in lines if parts and parts[0][:-1] in wanted}
    return {name: value if name == "Threads" else round(value * 1024 / 1e6) for name, value in found.items()}


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
