"""What is known of those who ask: which requests they take back, and whether they are still there."""

from collections import OrderedDict

RECALLED_KEPT = 4096
PATIENCE = 3.0  # times `keep`


class Askers:
    """Recalls and signs of life, as they were heard. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._recalled: OrderedDict[str, None] = OrderedDict()
        self._seen: dict[str, float] = {}

    def recall(self, request: str) -> None:
        """Nobody wants the answer to this request. It may be one that has not come here yet."""
        self._recalled[request] = None
        if len(self._recalled) > RECALLED_KEPT:
            self._recalled.popitem(last=False)

    def see(self, client: str, now: float) -> None:
        """A client said that it is there."""
        self._seen.pop(client, None)
        self._seen[client] = now
        while len(self._seen) > RECALLED_KEPT:
            del self._seen[next(iter(self._seen))]

    def recalled(self, request: str) -> bool:
        """Whether a request was taken back."""
        return request in self._recalled

    def gone(self, client: str, keep: float, since: float, now: float) -> bool:
        """Whether a client that should be heard every `keep` seconds (0: never) has been silent for too long."""
        return keep > 0 and now - max(self._seen.get(client, since), since) > PATIENCE * keep
