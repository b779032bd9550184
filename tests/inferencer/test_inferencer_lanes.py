"""The lanes: order, deadlines, and inputs that a model can't compute."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from llmos.clock import SystemClock
from llmos.contracts.inference import InferenceRequested, Input, Output
from llmos.errors import LlmosError
from llmos_inferencer.core import Limits
from llmos_inferencer.encoding.labels import Classifier
from llmos_inferencer.engine import Late, Means, load
from llmos_inferencer.lanes import Item, Job, Lanes, compute

INTERACTIVE, BATCH = 0, 1


@pytest.fixture
def engine(artifact: Callable[..., Path]) -> Classifier:
    loaded = load(artifact(), Means(1))
    assert isinstance(loaded, Classifier)
    return loaded


class Watched(Lanes):
    """Lanes with a record of every batch: how many inputs it had."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.batches: list[int] = []
        super().__init__(1, SystemClock(), limits=limits, observe=lambda _, inputs, __: self.batches.append(inputs))

    def ask(self, engine: Classifier, *texts: str, rank: int = INTERACTIVE, deadline: float | None = None) -> Job:
        job = make_job(engine, *texts, deadline=deadline)
        self.submit(job, rank)
        return job


@pytest.fixture
async def lanes() -> AsyncIterator[Watched]:
    lanes = Watched()
    yield lanes
    lanes.close()


def make_job(engine: Classifier, *texts: str, deadline: float | None = None) -> Job:
    prepared = engine.prepare([Input(text=text) for text in texts])
    return Job("mood", engine, prepared, InferenceRequested("c", list(texts), deadline=deadline))


def batch(engine: Classifier, *texts: str) -> list[Item]:
    job = make_job(engine, *texts)
    return [
        Item(1, 0, at, each.rows[0].length, job=job, index=at, place=0, row=each.rows[0])
        for at, each in enumerate(job.prepared)
    ]


async def test_one_input_that_fails_its_batch_costs_its_neighbours_nothing(engine: Classifier) -> None:
    texts = ["good", "bad", "poison", "great", "awful", "poison"]
    items = batch(engine, *texts)
    for text, item, found in zip(texts, items, compute(items), strict=True):
        if text == "poison":
            assert isinstance(found, LlmosError)
            assert found.problem.code == "unanswerable"
        else:
            item.job.take(item.index, 0, found)
            assert item.job.outputs[item.index] == engine.answer([text])[0]


async def test_an_input_for_which_the_model_gives_no_number_fails_its_request_alone(
    engine: Classifier, lanes: Watched
) -> None:
    first = lanes.ask(engine, "good")
    strange, clean = lanes.ask(engine, "fine", "nan"), lanes.ask(engine, "awful")
    await asyncio.gather(first.done, clean.done)
    with pytest.raises(LlmosError, match="no finite number") as error:
        await strange.done
    assert (error.value.problem.code, error.value.problem.param) == ("unanswerable", "inputs[1]")


async def test_the_input_at_fault_is_named(engine: Classifier) -> None:
    _, at_fault = compute(batch(engine, "good", "poison"))
    assert isinstance(at_fault, LlmosError)
    assert at_fault.problem.param == "inputs[1]"


async def test_a_poison_request_does_not_touch_the_request_that_shares_its_batch(
    engine: Classifier, lanes: Watched
) -> None:
    first = lanes.ask(engine, "good")  # occupies the lane, so that the next two meet in one batch
    poisoned, clean = lanes.ask(engine, "fine", "poison"), lanes.ask(engine, "fine", "awful")
    await asyncio.gather(first.done, clean.done)
    assert clean.outputs == engine.answer(["fine", "awful"])
    with pytest.raises(LlmosError, match="can't compute"):
        await poisoned.done
    assert lanes.batches == [1, 4]


async def test_what_waits_is_batched_and_nothing_waits_for_company(engine: Classifier, lanes: Watched) -> None:
    jobs = [lanes.ask(engine, "good") for _ in range(9)]
    await asyncio.gather(*(job.done for job in jobs))
    assert lanes.batches == [1, 8]


async def test_interactive_requests_overtake_batch_requests(engine: Classifier) -> None:
    lanes = Watched(Limits(rows=1))
    ended: list[str] = []
    jobs = {"running": lanes.ask(engine, "good", rank=BATCH)}
    jobs["batch"] = lanes.ask(engine, *["fine"] * 4, rank=BATCH)
    jobs["interactive"] = lanes.ask(engine, "bad")
    for name, job in jobs.items():
        job.done.add_done_callback(lambda _, name=name: ended.append(name))
    await asyncio.gather(*(job.done for job in jobs.values()))
    await asyncio.sleep(0)
    lanes.close()
    assert ended == ["running", "interactive", "batch"]


async def test_a_request_whose_deadline_passed_while_it_waited_is_not_computed(
    engine: Classifier, lanes: Watched
) -> None:
    first = lanes.ask(engine, "good")
    late = lanes.ask(engine, "bad", deadline=SystemClock().now() - 1)
    punctual = lanes.ask(engine, "bad", deadline=SystemClock().now() + 60)
    with pytest.raises(Late):
        await late.done
    await asyncio.gather(first.done, punctual.done)
    assert lanes.batches == [1, 1]


async def test_every_output_stands_in_the_place_of_its_input(engine: Classifier, lanes: Watched) -> None:
    texts = [" ".join(["good"] * (1 + at % 7) + ["bad"] * (at % 5)) for at in range(100)]
    job = lanes.ask(engine, *texts)
    await job.done
    assert job.outputs == engine.answer(texts)
    assert all(isinstance(output, Output) for output in job.outputs)


async def test_a_request_that_is_withdrawn_is_not_computed(engine: Classifier, lanes: Watched) -> None:
    first, second = lanes.ask(engine, "good"), lanes.ask(engine, "bad", "fine")
    lanes.withdraw(second)
    await first.done
    third = lanes.ask(engine, "great")
    await third.done
    assert lanes.batches == [1, 1]
