"""What a job is expected to take, from what its like took before."""

from hypothesis import given
from hypothesis import strategies as st

from llmos.contracts.jobs import DataSource, JobSpec, ModelSource, TrainSettings
from llmos_scheduler.predict import KEEP_KEYS, KEEP_RUNS, Durations, quantile


def spec_of(
    name: str = "intents", tenant: str = "a", data: str = "file:///rows", base: str = "hf:a/b", **train: object
) -> JobSpec:
    settings = TrainSettings(**train)  # type: ignore[arg-type]
    return JobSpec(name, ModelSource(base), DataSource(data), tenant=tenant, train=settings)


def learnt(*seconds: float, **spec: object) -> Durations:
    durations = Durations()
    for taken in seconds:
        durations.learn(spec_of(**spec), "train", taken)  # type: ignore[arg-type]
    return durations


def test_one_run_says_nothing_two_do() -> None:
    assert learnt(60.0).expect(spec_of(), "train") is None
    assert learnt(60.0, 60.0).expect(spec_of(), "train") == 60.0


def test_a_job_of_another_name_is_judged_by_the_same_model_data_and_method() -> None:
    durations = learnt(60.0, 80.0)
    assert durations.expect(spec_of("other"), "train") == 75.0
    assert durations.expect(spec_of("other", base="hf:a/c"), "train") is None
    assert durations.expect(spec_of("other", data="file:///else"), "train") is None
    assert durations.expect(spec_of("other", method="lora"), "train") is None


def test_tenants_and_kinds_of_tasks_do_not_mix() -> None:
    durations = learnt(60.0, 60.0)
    assert durations.expect(spec_of(tenant="b"), "train") is None
    assert durations.expect(spec_of(), "export") is None


def test_the_own_name_counts_before_the_likes() -> None:
    durations = learnt(60.0, 60.0)
    for _ in range(2):
        durations.learn(spec_of("own"), "train", 10.0)
    assert durations.expect(spec_of("own"), "train") == 10.0


def test_epochs_scale_on_the_same_data() -> None:
    durations = learnt(60.0, 60.0, epochs=2)
    assert durations.expect(spec_of(epochs=4), "train") == 120.0
    assert durations.expect(spec_of(), "train") == 90.0  # 3 by default
    assert durations.expect(spec_of(epochs=4, data="file:///more"), "train") == 60.0


def test_steps_and_rows_scale_whatever_the_batch_size() -> None:
    durations = Durations()
    for _ in range(2):
        durations.learn(spec_of(steps=100, batch_size=8), "train", 80.0)
    assert durations.expect(spec_of(steps=200, batch_size=8), "train") == 160.0
    assert durations.expect(spec_of(steps=100, batch_size=16), "train") == 160.0
    assert durations.expect(spec_of(epochs=2, data="file:///more"), "train", rows=1600) == 320.0


def test_an_odd_run_says_little() -> None:
    durations = learnt(60.0, 61.0, 62.0, 63.0, 9000.0)
    assert durations.expect(spec_of(), "train") == 63.0


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_lies_among_the_values(values: list[float], part: float) -> None:
    assert min(values) <= quantile(values, part) <= max(values)
    assert (quantile(values, 0), quantile(values, 1)) == (min(values), max(values))


def test_memory_is_bounded_and_the_newest_stay() -> None:
    durations = Durations()
    for number in range(KEEP_KEYS):
        durations.learn(spec_of(f"job-{number}", data=f"file:///{number}"), "train", 1.0)
    assert len(durations.runs) == KEEP_KEYS
    for _ in range(3 * KEEP_RUNS):
        durations.learn(spec_of("last"), "train", 5.0)
    assert max(len(runs) for runs in durations.runs.values()) == KEEP_RUNS
    assert durations.expect(spec_of("last"), "train") == 5.0
