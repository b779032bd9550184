"""What expecting durations is worth: Muri's trace1 on 8 x 8 GPUs, where jobs name their model and count their steps.

    python tests/bench/predict_muri.py DATA_DIR

A job's like are jobs of the same model on as many GPUs that ended before it came. Times what they took vary by a factor
that is drawn for each job (log-normal, sigma 0.3, seeded), since the trace's own are exact multiples of the steps.
"""

import csv
import random
import sys
from pathlib import Path
from statistics import median

from llmos.contracts.jobs import DataSource, JobSpec, ModelSource, TrainSettings
from llmos_scheduler.predict import Durations
from llmos_scheduler.replay import Arrival, Event, Replay, Setting
from llmos_scheduler.replay_summary import Tally
from llmos_scheduler.replay_trace import read_cluster
from llmos_scheduler.work import Work

KNOWN, EXPECTED, BLIND = "known", "expected", "unknown"


class Expecting(Replay):
    """A replay whose scheduler knows of durations only what the jobs' like took."""

    def __init__(self, arrivals: list[Arrival], specs: dict[str, JobSpec]) -> None:
        super().__init__(read_cluster("8x8"), arrivals, Setting(order="srsf"))
        self.specs, self.durations = specs, Durations()
        self.factors: list[float] = []

    def _arrive(self, arrival: Arrival, number: int) -> None:
        super()._arrive(arrival, number)
        expected = self.durations.expect(self.specs[arrival.id], "train")
        if expected is not None:
            factor = expected * 1000 / arrival.duration
            self.factors.append(max(factor, 1 / factor))
        job = self.jobs[arrival.id]
        job.duration = None if expected is None else round(expected * 1000)
        self.planner.wait(job)

    def _end(self, job: Work, now: int) -> Event:  # type: ignore[override]
        event = super()._end(job, now)  # type: ignore[arg-type]
        self.durations.learn(self.specs[job.id], "train", event.job.duration / 1000)
        return event


def main(folder: Path) -> None:
    rng = random.Random(7)
    arrivals, specs = [], {}
    for row in csv.DictReader((folder / "muri" / "trace1.csv").open()):
        took = round(int(row["duration"]) * rng.lognormvariate(0, 0.3))
        arrivals.append(Arrival(row["job_id"], int(row["submit_time"]), took, int(row["num_gpu"])))
        settings = TrainSettings(steps=int(row["iterations"]), batch_size=int(row["batch_size"]))
        name = f"{row['model_name']}-{row['num_gpu']}"
        base = ModelSource(f"hf:muri/{row['model_name']}")
        specs[row["job_id"]] = JobSpec(name, base, DataSource("file:///d"), train=settings)
    expecting = Expecting(arrivals, specs)
    replays = {
        KNOWN: Replay(read_cluster("8x8"), arrivals, Setting(order="srsf")),
        EXPECTED: expecting,
        BLIND: Replay(read_cluster("8x8"), arrivals, Setting(order="las", blind=True)),
    }
    for name, replay in replays.items():
        tally = Tally(64)
        for event in replay.events():
            tally.add(event)
        print(f"durations {name:<9} average JCT {tally.summary(name, False).average_jct_s:12,.0f} s")
    factors = sorted(expecting.factors)
    print(
        f"expected for {len(factors)} of {len(arrivals)} jobs; off by a factor of {median(factors):.2f} in the median, "
        f"{factors[len(factors) * 9 // 10]:.2f} at the 90th percentile"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
