"""Rules of the stepper over real graphs: every request's tokens are the same alone and in company."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from decoders import EOS, build_graph, write_llama
from llmos.contracts.models import Cache as Layout
from llmos_inferencer.decoding.graph import AttentionGraph
from llmos_inferencer.decoding.plan import Limits
from llmos_inferencer.decoding.request import Delta, Request, Sampling
from llmos_inferencer.decoding.stepper import Stepper, Vocabulary

CONTEXT = 320
LAYOUT = Layout(layers=2, heads=2, size=16)


@pytest.fixture(scope="session", params=["fp32", "int4"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = write_llama(tmp_path_factory.mktemp("llama"))
    return build_graph(source, tmp_path_factory.mktemp(f"llama-{request.param}"), request.param)


class Bench:
    """A stepper and what it said."""

    def __init__(self, session: Any, tokenizer: Tokenizer, *, rows: int = 4, prefixes: int = 0, **more: Any) -> None:
        self.graph = AttentionGraph(session, LAYOUT, rows=rows, context=CONTEXT, budget=1 << 20)
        self.said: dict[str, list[Delta]] = defaultdict(list)
        limits = Limits(rows, CONTEXT, more.pop("tokens", rows * CONTEXT))
        self.stepper = Stepper(
            self.graph,
            tokenizer,
            more.pop("vocabulary", Vocabulary(frozenset([EOS]))),
            limits=limits,
            prefix_budget=prefixes,
            stall=0.05,
            say=lambda id, delta: self.said[id].append(delta),
            monotonic=lambda: 0.0,
        )

    def drain(self) -> None:
        for _ in range(10_000):
            if not self.stepper.busy:
                return
            self.stepper.step()
        raise AssertionError("it never ends")

    def ids(self, id: str, output: int = 0) -> list[int]:
        return [token for delta in self.said[id] if delta.output == output for token in delta.token_ids]

    def text(self, id: str, output: int = 0) -> str:
        return "".join(delta.text for delta in self.said[id] if delta.output == output)

    def finish(self, id: str, output: int = 0) -> str:
        return next(delta.finish for delta in self.said[id] if delta.output == output and delta.finish)


@pytest.fixture(scope="session")
def parts(folder: Path) -> Iterator[tuple[Any, Tokenizer]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    yield ort.InferenceSession(str(folder / "model.onnx"), options), Tokenizer.from_file(str(folder / "tokenizer.json"))


def ask(id: str, prompt: list[int], max_tokens: int = 12, **more: Any) -> Request:
    sampling = more.pop("sampling", Sampling())
    return Request(id=id, prompt=prompt, max_tokens=max_tokens, sampling=sampling, **more)


def words(seed: int, length: int) -> list[int]:
    return [int(number) for number in np.random.default_rng(seed).integers(6, 300, length)]


requests = st.builds(
    lambda seed, length, shared, tokens, heat, n: (([7] * shared + words(seed, length)), tokens, heat, seed, n),
    st.integers(0, 10_000),
    st.integers(1, 150),
    st.sampled_from([0, 0, 33, 64]),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.0, 0.9]),
    st.sampled_from([1, 1, 1, 3]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    arrivals=st.lists(st.tuples(requests, st.integers(0, 6)), min_size=2, max_size=9),
    rate=st.sampled_from([0, 1e-3, 4e-4]),
)
def test_tokens_are_the_same_alone_and_in_company(
    parts: tuple[Any, Tokenizer], arrivals: list[Any], rate: float
) -> None:
    wanted = [
        ask(f"r{number}", prompt, tokens, sampling=Sampling(temperature=heat, seed=seed, top_p=0.9), n=n)
        for number, ((prompt, tokens, heat, seed, n), _) in enumerate(arrivals)
    ]
    company = Bench(*parts, prefixes=1 << 20)
    company.stepper.seconds_a_token = rate
    for request, (_, pause) in zip(wanted, arrivals, strict=True):
        company.stepper.add(request)
        for _ in range(pause):
            company.stepper.step()
    company.drain()
    for request in wanted:
        alone = Bench(*parts, rows=3)
        alone.stepper.add(request)
        alone.drain()
        for output in range(request.n):
            assert company.ids(request.id, output) == alone.ids(request.id, output)
            assert company.text(request.id, output) == alone.text(request.id, output)
            assert company.finish(request.id, output) == alone.finish(request.id, output)


def test_greedy_tokens_are_those_of_one_run_over_the_whole_text(parts: tuple[Any, Tokenizer]) -> None:
    bench = Bench(*parts)
    bench.stepper.add(ask("a", prompt := words(1, 40), 10))
    bench.drain()
    known = list(prompt)
    for token in bench.ids("a"):
        assert int(bench.graph.prefill(0, known, 0).argmax()) == token
        known.append(token)


def test_a_shared_beginning_is_not_computed_again(parts: tuple[Any, Tokenizer]) -> None:
    bench = Bench(*parts, prefixes=1 << 22)
    system = words(5, 100)
    for id in ("a", "b"):
        bench.stepper.add(ask(id, [*system, *words(ord(id), 20)]))
        bench.drain()
    assert (bench.said["a"][0].cached, bench.said["b"][0].cached) == (0, 100)


def test_a_cancelled_request_frees_its_slots_at_once_and_its_neighbours_go_on(parts: tuple[Any, Tokenizer]) -> None:
    bench = Bench(*parts, rows=3)
    bench.stepper.add(ask("a", words(1, 10), 50, n=2))
    bench.stepper.add(ask("b", words(2, 10), 50))
    bench.stepper.add(ask("waits", words(3, 10), 3))
    for _ in range(6):
        bench.stepper.step()
    assert not bench.said["waits"]
    bench.stepper.cancel("a")
    assert bench.finish("a") == bench.finish("a", 1) == "cancelled"
    bench.stepper.step()
    assert bench.said["waits"]
    bench.drain()
    assert len(bench.ids("b")) == 50 or bench.finish("b") == "stop"


def test_a_row_that_fails_hurts_no_neighbour(parts: tuple[Any, Tokenizer]) -> None:
    bench = Bench(*parts)
    alone = Bench(*parts)
    alone.stepper.add(ask("good", words(2, 10), 20))
    alone.drain()
    bench.stepper.add(ask("bad", [9_999_999, *words(1, 10)], 20))
    bench.stepper.add(ask("good", words(2, 10), 20))
    bench.drain()
    assert [delta.problem.code for delta in bench.said["bad"] if delta.problem] == ["unanswerable"]
    assert bench.ids("good") == alone.ids("good")


def test_a_request_that_waits_past_its_deadline_is_never_begun(parts: tuple[Any, Tokenizer]) -> None:
    from llmos.errors import Problem

    bench = Bench(*parts, rows=1)
    bench.stepper.add(ask("a", words(1, 10), 5))
    bench.stepper.add(ask("late", words(1, 10), 5, deadline=100.0))
    bench.stepper.step()
    bench.stepper.expire(101.0, Problem("deadline", "too late"))
    bench.drain()
    assert [delta.problem and delta.problem.code for delta in bench.said["late"]] == ["deadline"]


def test_a_long_prompt_does_not_hold_others_up(parts: tuple[Any, Tokenizer]) -> None:
    bench = Bench(*parts)
    bench.stepper.seconds_a_token = 0.05 / 40  # chunks of 32 tokens
    bench.stepper.add(ask("old", words(1, 5), 30))
    bench.stepper.step()
    bench.stepper.add(ask("long", words(2, 280), 5))
    bench.stepper.step()
    bench.stepper.add(ask("short", words(3, 20), 5))
    for _ in range(3):
        bench.stepper.step()
    assert bench.ids("short") and not bench.ids("long")
    assert len(bench.ids("old")) >= 4


def test_a_stop_text_across_tokens_ends_the_output_before_it(parts: tuple[Any, Tokenizer]) -> None:
    free = Bench(*parts)
    free.stepper.add(ask("a", words(4, 10), 40))
    free.drain()
    text = free.text("a")
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    bench = Bench(*parts)
    bench.stepper.add(ask("a", words(4, 10), 40, stop=(stop,)))
    bench.drain()
    assert bench.text("a") == text[: text.index(stop)]
    assert bench.finish("a") == "stop"


def test_suppressed_tokens_never_come(parts: tuple[Any, Tokenizer]) -> None:
    free = Bench(*parts)
    free.stepper.add(ask("a", words(4, 10), 5))
    free.drain()
    banned = free.ids("a")[0]
    bench = Bench(*parts, vocabulary=Vocabulary(frozenset([EOS]), (), (banned,)))
    bench.stepper.add(ask("a", words(4, 10), 5))
    bench.drain()
    assert bench.ids("a")[0] != banned
