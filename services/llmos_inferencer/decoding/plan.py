"""Who gets slots, and what the next step computes: decided without computing it. Time comes in as an argument;
nothing here waits, reads or writes.

Fairness among tenants is by virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI
2024): the tenant that was served the fewest tokens goes first, and one that comes back from idling is lifted to the
least of those that waited, so that nobody saves up.
"""

from collections import deque
from collections.abc import Iterable

from msgspec import Struct

from llmos.errors import Rejected

SHORTEST_CHUNK = 16
LONGEST_CHUNK = 512
PATIENCE = 4  # steps that a hole among the decoding rows is computed along before a row is moved into it


class Limits(Struct, frozen=True):
    """What the engine can hold: `rows` outputs at once, of `context` tokens each, `tokens` of all rows together."""

    rows: int
    context: int
    tokens: int


class Want(Struct, frozen=True):
    """A request in line: it needs `rows` slots of at most `tokens` each. `number` counts arrivals."""

    id: str
    number: int
    rows: int
    tokens: int
    tenant: str = "default"
    rank: int = 0
    priority: int = 0
    deadline: float | None = None


def refuse_unless_fits(prompt: int, max_tokens: int, n: int, limits: Limits) -> None:
    """Raise `Rejected`, with the numbers, for a request that could never be served. Nothing is ever truncated."""
    if prompt < 1:
        raise Rejected("the prompt is empty", remedy="Send at least one token.", code="too_short", param="inputs")
    if max_tokens < 1 or prompt + max_tokens > limits.context:
        raise Rejected(
            f"the prompt has {prompt} tokens and up to {max_tokens} are asked for; "
            f"the model's context holds {limits.context}",
            remedy=f"Shorten the prompt, or ask for at most {max(0, limits.context - prompt)} tokens."
            if prompt < limits.context
            else f"Shorten the prompt to fewer than {limits.context} tokens.",
            code="too_long",
            param="inputs",
        )
    if n > limits.rows:
        raise Rejected(f"{n} outputs are asked for, this replica has {limits.rows} slots", code="too_many", param="n")
    if n * (prompt + max_tokens) > limits.tokens:
        raise Rejected(
            f"{n} x ({prompt} + {max_tokens}) tokens don't fit into the cache of {limits.tokens} tokens",
            remedy="Ask for fewer tokens or outputs, or give the inferencer more memory.",
            code="too_long",
            param="inputs",
        )


class Line:
    """The requests that wait, in the order: rank, priority, the tenant served least, arrival."""

    def __init__(self) -> None:
        self._queues: dict[tuple[int, int], dict[str, deque[Want]]] = {}
        self._served: dict[str, int] = {}
        self._waiting: dict[str, int] = {}  # requests of each tenant
        self._gone: set[str] = set()
        self._ids: dict[str, Want] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id: str) -> bool:
        return id in self._ids

    def add(self, want: Want, *, active: Iterable[str] = ()) -> None:
        """One more waits; `active` names the tenants that hold slots now."""
        if not self._waiting.get(want.tenant) and want.tenant not in (others := set(active)):
            others |= {tenant for tenant, waiting in self._waiting.items() if waiting}
            least = min((self._served.get(tenant, 0) for tenant in others), default=0)
            self._served[want.tenant] = max(self._served.get(want.tenant, 0), least)
        self._waiting[want.tenant] = self._waiting.get(want.tenant, 0) + 1
        self._ids[want.id] = want
        tenants = self._queues.setdefault((want.rank, -want.priority), {})
        tenants.setdefault(want.tenant, deque()).append(want)

    def remove(self, id: str) -> None:
        """It does not wait any more; unknown ids are ignored."""
        want = self._ids.pop(id, None)
        if want is None:
            return
        self._waiting[want.tenant] -= 1
        queues = self._queues[want.rank, -want.priority]
        queues[want.tenant].remove(want)
        if not queues[want.tenant]:
            del queues[want.tenant]
            if not queues:
                del self._queues[want.rank, -want.priority]

    def head(self) -> Want | None:
        """Who is next. It is never passed by one behind it that would fit, so everybody's turn comes."""
        if not self._queues:
            return None
        tenants = self._queues[min(self._queues)]
        first = min(tenants, key=lambda tenant: (self._served.get(tenant, 0), tenants[tenant][0].number))
        return tenants[first][0]

    def charge(self, tenant: str, tokens: int) -> None:
        """The tenant was served so many tokens."""
        self._served[tenant] = self._served.get(tenant, 0) + tokens

    def expired(self, now: float) -> list[str]:
        """Those whose deadline passed, in order of arrival."""
        late = [want for want in self._ids.values() if want.deadline is not None and want.deadline <= now]
        return [want.id for want in sorted(late, key=lambda want: want.number)]


class Room:
    """The slots: which rows are taken and how many tokens were promised to them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.promised = 0
        self._free = list(range(limits.rows))
        self._kept = 0  # rows promised to outputs that will fork from a prompt being computed

    @property
    def free(self) -> int:
        """How many rows nobody was promised."""
        return len(self._free) - self._kept

    def fits(self, want: Want) -> bool:
        """Whether a request can be given all its slots now."""
        return want.rows <= self.free and self.promised + want.rows * want.tokens <= self.limits.tokens

    def take(self, want: Want) -> int:
        """The first row of a request, the lowest that is free; the others are kept for it."""
        self.promised += want.rows * want.tokens
        self._kept += want.rows - 1
        return self._lowest()

    def take_kept(self) -> int:
        """One of the rows that were kept."""
        self._kept -= 1
        return self._lowest()

    def give_back(self, row: int, tokens: int) -> None:
        """A row is free again."""
        self._free.append(row)
        self.promised -= tokens

    def give_back_kept(self, rows: int, tokens: int) -> None:
        """Rows that were kept for outputs that never came; `tokens` each."""
        self._kept -= rows
        self.promised -= rows * tokens

    def moved(self, source: int, target: int) -> None:
        """What was in one row is in another that was free."""
        self._free.remove(target)
        self._free.append(source)

    def _lowest(self) -> int:
        row = min(self._free)
        self._free.remove(row)
        return row


class Prompt(Struct):
    """A prompt that is being computed: `done` of its `length` tokens; `chunks` so far; `number` counts arrivals."""

    row: int
    number: int
    rank: int
    length: int
    done: int
    chunks: int = 0


def chunk_tokens(seconds_a_token: float, stall: float) -> int:
    """How many tokens of a prompt to compute in one step, so that those who decode wait about `stall` seconds."""
    if seconds_a_token <= 0:
        return 128
    tokens = int(stall / seconds_a_token) // SHORTEST_CHUNK * SHORTEST_CHUNK
    return min(LONGEST_CHUNK, max(SHORTEST_CHUNK * 2, tokens))


def next_chunk(prompts: Iterable[Prompt], tokens: int, step: int) -> tuple[Prompt, int] | None:
    """Which prompt to go on with, and up to which token; `None` if there is none.

    Those with the fewest chunks so far go first, so that a long prompt holds no short one up; every third step goes to
    the oldest, so that short ones hold no long one up for good. A chunk is never a single token unless the prompt is:
    the attention kernel computes one token another way than several, and results must not depend on where chunks end.
    """
    waiting = list(prompts)
    if not waiting:
        return None
    if step % 3 == 2:
        prompt = min(waiting, key=lambda prompt: (prompt.rank, prompt.number))
    else:
        prompt = min(waiting, key=lambda prompt: (prompt.rank, prompt.chunks, prompt.number))
    end = min(prompt.length, prompt.done + tokens)
    if prompt.length - end == 1:
        end = prompt.length
    return prompt, end


def moves(
    decoding: Iterable[int], busy: Iterable[int], holes_since: dict[int, int], step: int
) -> list[tuple[int, int]]:
    """The rows to move, (from, to), so that the rows that decode lie together at the front.

    A hole is a free row below the highest one that decodes: it costs a row's computing in every step, and a move costs
    copying, so a hole is filled after `PATIENCE` steps; until then a newcomer may take it. `holes_since` is kept by
    the caller between steps and updated here.
    """
    rows, taken = sorted(decoding), set(busy)
    top = rows[-1] if rows else -1
    holes = [row for row in range(top) if row not in taken]
    for row in list(holes_since):
        if row not in holes:
            del holes_since[row]
    plan: list[tuple[int, int]] = []
    for hole in holes:
        if step - holes_since.setdefault(hole, step) < PATIENCE or not rows or rows[-1] < hole:
            continue
        plan.append((rows.pop(), hole))
        del holes_since[hole]
    return plan
