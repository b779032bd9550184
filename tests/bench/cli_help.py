"""How long `llmos --help` takes, from exec to exit: `python tests/bench/cli_help.py [RUNS]`.

Goal: at most 250 ms. On a busy machine look at the CPU time: the wall clock then measures the others.
"""

import resource
import statistics
import subprocess
import sys
import time

PROGRAMS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "llmos --version": [sys.executable, "-m", "llmos_cli", "--version"],
    "llmos --help": [sys.executable, "-m", "llmos_cli", "--help"],
    "llmos get --help": [sys.executable, "-m", "llmos_cli", "get", "--help"],
}


def measure(command: list[str], runs: int) -> tuple[list[float], list[float]]:
    """Wall-clock and CPU seconds of each run, sorted, after one run that warms the disk cache."""
    wall, cpu = [], []
    for _ in range(runs + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return sorted(wall[1:]), sorted(cpu[1:])


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    for name, command in PROGRAMS.items():
        wall, cpu = measure(command, runs)
        p50, best, busy = (1000 * value for value in (statistics.median(wall), wall[0], statistics.median(cpu)))
        print(f"{name:<18} p50 {p50:5.0f} ms   best {best:5.0f} ms   cpu {busy:5.0f} ms   ({runs} runs)")


if __name__ == "__main__":
    main()
