"""The faults of a job's data and base model, as they are told to its sender."""

from collections.abc import Iterable

from llmos.contracts.jobs import Fault

LISTED = 100


class Faults:
    """The first 100 faults, and how many more there are."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._listed = [*faults]
        self._more = 0

    def __len__(self) -> int:
        return len(self._listed) + self._more

    def add(self, path: str, message: str, line: int | None = None) -> None:
        """Note a fault."""
        if len(self._listed) < LISTED:
            self._listed.append(Fault(path, message, line))
        else:
            self._more += 1

    def listed(self) -> list[Fault]:
        """What to tell the sender."""
        more = [Fault("data", f"{self._more} more faults are not listed")] if self._more else []
        return self._listed + more
