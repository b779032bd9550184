"""Random histories of a cluster through the planner, with all its rules checked at each plan (tests/planner_world.py).

python tests/bench/planner_histories.py [histories [first seed]]

10,000 take about 20 minutes on one core. Ends with 1, and names the seeds, if a rule was broken.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from planner_world import history


def main() -> int:
    count, first = (int(text) for text in (sys.argv[1:] + ["10000", "0"][len(sys.argv) - 1 :]))
    broken: list[int] = []
    begun = time.process_time()
    for seed in range(first, first + count):
        try:
            history(seed)
        except Exception as error:  # noqa: BLE001 - whatever a seed breaks, the others are still worth running
            broken.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
    print(f"{count} histories, {len(broken)} broken, {time.process_time() - begun:.0f} s of one core")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
