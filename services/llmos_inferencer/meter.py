"""Sums of what one version served, for the history: it holds these instead of every request."""

from llmos.contracts.inference import InferenceAnswered, InferenceMetered
from llmos.contracts.models import ModelVersion
from llmos_inferencer.engine import Late

KEPT = 8192  # latencies a period; from then on every second, fourth, … is kept


class Times:
    """Some numbers of a period, of which quantiles are wanted."""

    def __init__(self) -> None:
        self._kept: list[float] = []
        self._every = 1
        self._seen = 0

    def add(self, value: float) -> None:
        """One more."""
        self._seen += 1
        if self._seen % self._every == 0:
            self._kept.append(value)
            if len(self._kept) >= KEPT:
                self._kept = self._kept[1::2]
                self._every *= 2

    def quantiles(self, *shares: float) -> list[float]:
        """By nearest rank, 3 decimals; 0 when there is nothing."""
        ordered = sorted(self._kept) or [0.0]
        return [round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) for share in shares]


class Meter:
    """Counts from one `close_period` to the next."""

    def __init__(self, deployment: str, tenant: str, node: str, version: ModelVersion, now: float) -> None:
        self._deployment = deployment
        self._tenant = tenant
        self._node = node
        self._version = version
        self._took, self._first, self._each = Times(), Times(), Times()
        self._tokens = [0, 0, 0]
        self._begin(now)

    def count(self, answer: InferenceAnswered, *, inputs: int, seconds: float) -> None:
        """One request was answered, `seconds` after the bus had stored it."""
        self._requests += 1
        self._inputs += inputs
        self._took.add(seconds * 1000)
        usage = answer.usage
        self._tokens = [
            sum(pair)
            for pair in zip(
                self._tokens, (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens), strict=True
            )
        ]
        if answer.problem is not None:
            self._failures += 1
            self._expired += answer.problem.code == Late.code
        elif answer.ttft_ms:
            self._first.add(answer.ttft_ms)
            if usage.completion_tokens > 1:
                rest = answer.queue_ms + answer.compute_ms - answer.ttft_ms
                self._each.add(max(0.0, rest) * len(answer.outputs) / (usage.completion_tokens - 1))

    def close_period(self, now: float) -> InferenceMetered | None:
        """The sums since the last call, `None` if there was no request; then counting starts anew."""
        metered = None
        if self._requests:
            p50, p99 = self._took.quantiles(0.50, 0.99)
            first_p50, first_p99 = self._first.quantiles(0.50, 0.99)
            metered = InferenceMetered(
                deployment=self._deployment,
                tenant=self._tenant,
                node=self._node,
                model=self._version.model,
                version=self._version.version,
                since=self._since,
                until=now,
                requests=self._requests,
                inputs=self._inputs,
                failures=self._failures,
                p50_ms=p50,
                p99_ms=p99,
                expired=self._expired,
                prompt_tokens=self._tokens[0],
                cached_tokens=self._tokens[1],
                completion_tokens=self._tokens[2],
                ttft_p50_ms=first_p50,
                ttft_p99_ms=first_p99,
                tpot_p50_ms=self._each.quantiles(0.50)[0],
            )
        self._begin(now)
        return metered

    def _begin(self, now: float) -> None:
        self._since = now
        self._requests = self._inputs = self._failures = self._expired = 0
        self._tokens = [0, 0, 0]
        self._took, self._first, self._each = Times(), Times(), Times()
