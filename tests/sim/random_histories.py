"""Any number of random histories of the scheduler: `python tests/sim/random_histories.py COUNT [FIRST_SEED] [digest]`.

Jobs of every kind, workers that fail, lie and come late, lost nodes, drains, reservations, queues that change, crashes
in the middle of a decision. After each action every promise is checked (nothing over-committed, gangs whole, everything
that waits explained), and every other history compares each decision with that of a brain made from the state alone.
The first failure is raised with its seed. With `digest`, the hash of all that was said is printed: the same everywhere.
"""

import hashlib
import random
import sys
import time
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1] / "scheduler"))

from test_scheduler_histories import play

from conftest import World


def main(count: int, first: int = 0, report: str = "") -> None:
    """Play them; prints how far it is every thousand."""
    start, digest = time.monotonic(), hashlib.sha256()
    for seed in range(first, first + count):
        world = World(compare=seed % 2 == 0 and not report)
        try:
            play(world, random.Random(seed).randrange, length=60)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        for event, at, id in world.log:
            digest.update(msgspec.json.encode((type(event).__name__, event, at, id)))
        if not report and ((seed + 1 - first) % 1000 == 0 or seed + 1 - first == count):
            print(f"{seed + 1 - first} histories kept every promise, {time.monotonic() - start:.0f} s", flush=True)
    if report:
        print(digest.hexdigest())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
