"""A gang seen from one of its processes: how they meet, agree, and sum what each has; how a lost member shows.

Two groups of torch.distributed: gloo for what the processors agree on (it tells a dead peer at once), and NCCL for
gradients on CUDA devices (on the CPU the same gloo group). As in torch elastic (torch.distributed.elastic.rendezvous)
members meet at a store that the first one serves; unlike there nobody comes later or again: a new lease, a new gang.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # exported all the same

from llmos.errors import LlmosError
from llmos_trainer.core import GangBroken
from llmos_trainer.orders import GangOrder

MEET_S = 600.0  # some have to fetch more than others
REACH_S = 5.0  # the first member listens before it says where
COLLECTIVE_S = 600.0  # a dead member is seen at once: this is only for a network that swallows everything
_POLL_S = 0.1


class Gang:
    """The processes that train together. Every call is made by all of them, in the same order, or fails in all."""

    def __init__(self, order: GangOrder, device: torch.device, opened: Callable[[int], None]) -> None:
        """Open the meeting point (the first process; `opened` hears its port), or connect to it.

        Raises `GangBroken` when this process came before: a restarted one can't join those that know the old one.
        """
        self.rank = order.rank
        self.world = order.world
        self._device = device
        limit = timedelta(seconds=COLLECTIVE_S)
        with broken():
            if order.rank == 0:
                door = _listen(order.address)
                port = int(door.getsockname()[1])
                self._store = TCPStore(
                    order.address, port, is_master=True, wait_for_workers=False, timeout=limit,
                    master_listen_fd=door.detach(),
                )  # fmt: skip
                self._store.set(order.token, "")
                opened(port)
            else:
                reach = timedelta(seconds=REACH_S)
                self._store = TCPStore(order.address, order.port, wait_for_workers=False, timeout=reach)
                self._store.set_timeout(limit)
            if not self._store.check([order.token]):
                raise GangBroken("another gang meets at the address of this one")
            if self._store.add(f"joined/{order.rank}", 1) > 1:
                raise GangBroken(f"rank {order.rank} came a second time under one lease")

    def meet(self, tick: Callable[[], None]) -> None:
        """Wait for all members and connect them. `tick` is called again and again; what it raises ends the waiting.

        Raises `GangBroken` that names who did not come in time.
        """
        deadline = time.monotonic() + MEET_S
        with broken():
            while missing := [rank for rank in range(self.world) if not self._store.check([f"joined/{rank}"])]:
                if time.monotonic() > deadline:
                    raise GangBroken(f"{_ranks(missing)} of {self.world} did not come within {MEET_S:g} s")
                tick()
                time.sleep(_POLL_S)
            limit = timedelta(seconds=COLLECTIVE_S)
            dist.init_process_group("gloo", store=self._store, rank=self.rank, world_size=self.world, timeout=limit)
            self._sums = dist.group.WORLD
            if self._device.type == "cuda":
                self._sums = dist.new_group(backend="nccl", timeout=limit, device_id=self._device)

    @property
    def first(self) -> bool:
        """Whether this process reports, checkpoints and saves for all."""
        return self.rank == 0

    def agree(self, vote: int) -> int:
        """The greatest vote of all members."""
        votes = torch.tensor(vote, dtype=torch.int32)
        with broken():
            dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return int(votes)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """`values` (on the CPU) summed over all members, in place."""
        with broken():
            dist.all_reduce(values)
        return values

    def share(self, tensors: list[torch.Tensor]) -> None:
        """Overwrite the tensors (on the device) with the first member's."""
        with broken():
            for tensor in tensors:
                dist.broadcast(tensor, 0, group=self._sums)

    def begin_sum(self, values: torch.Tensor) -> dist.Work:
        """Begin to sum `values` (on the device) in place; `end_sum` waits for it."""
        with broken():
            work: dist.Work = dist.all_reduce(values, group=self._sums, async_op=True)
        return work

    def end_sum(self, work: dist.Work) -> None:
        """Wait for a sum; on CUDA only the device's stream waits."""
        with broken():
            work.wait()


@contextlib.contextmanager
def broken() -> Iterator[None]:
    """Whatever the network under a collective says means one thing."""
    try:
        yield
    except RuntimeError as error:  # gloo and the store raise it, and subclasses of it, for every kind of failure
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise GangBroken(
            f"a member of the gang is gone: {first}", remedy="The task goes on from its newest checkpoint."
        ) from error


def _listen(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, 0), family=family, backlog=1024)
    except OSError as error:
        raise LlmosError(
            f"a gang can't meet at {address}: {error.strerror}",
            remedy="Set LLMOS_ADDRESS to an address of this node that the others reach.",
        ) from error


def _ranks(missing: list[int]) -> str:
    names = ", ".join(str(rank) for rank in missing[:8])
    return f"rank{'s' * (len(missing) > 1)} {names}{', …' * (len(missing) > 8)}"
