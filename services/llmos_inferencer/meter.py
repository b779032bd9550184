"""Sums of what one version served, for the history: it holds these instead of every request."""

from llmos.contracts.inference import InferenceMetered
from llmos.contracts.models import ModelVersion

KEPT = 8192  # latencies a period; from then on every second, fourth, … is kept


class Meter:
    """Counts from one `close_period` to the next."""

    def __init__(self, deployment: str, tenant: str, node: str, version: ModelVersion, now: float) -> None:
        self._deployment = deployment
        self._tenant = tenant
        self._node = node
        self._version = version
        self._since = now
        self._requests = self._inputs = self._failures = 0
        self._seconds: list[float] = []
        self._every = 1

    def count(self, *, inputs: int, seconds: float, failed: bool) -> None:
        """One request was answered, `seconds` after the bus had stored it."""
        self._requests += 1
        self._inputs += inputs
        self._failures += failed
        if self._requests % self._every == 0:
            self._seconds.append(seconds)
            if len(self._seconds) >= KEPT:
                self._seconds = self._seconds[1::2]
                self._every *= 2

    def close_period(self, now: float) -> InferenceMetered | None:
        """The sums since the last call, `None` if there was no request; then counting starts anew."""
        if not self._requests:
            self._since = now
            return None
        ordered = sorted(self._seconds) or [0.0]
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
            p50_ms=_quantile(ordered, 0.50),
            p99_ms=_quantile(ordered, 0.99),
        )
        self._since = now
        self._requests = self._inputs = self._failures = 0
        self._seconds, self._every = [], 1
        return metered


def _quantile(ordered: list[float], share: float) -> float:
    """Nearest rank, in milliseconds."""
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 3)
