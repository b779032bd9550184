"""Gradients summed over a gang while the backward pass still runs, in an order that never changes.

Like PyTorch's DistributedDataParallel (Li et al. 2020): buckets of gradients, filled from the last layer to the first,
are summed as soon as they are full. Unlike there the buckets are never laid out anew after the first step: a sum of
three or more floats depends on where in a bucket it lies, and a resumed run must end with the bytes of any other.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from llmos_trainer.gang import Gang

BUCKET_BYTES = 25 << 20


class _Bucket:
    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        first = parameters[0]
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        pieces = torch.split(self.flat, sizes)
        self.gradients = [piece.view_as(of) for piece, of in zip(pieces, parameters, strict=True)]
        self.parameters = parameters
        self.missing: set[torch.Tensor] = set()
        self.work: dist.Work | None = None


class GradientSum:
    """The gradients of `parameters`; each member calls `begin`, backward and `finish` in every step."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], gang: Gang) -> None:
        self._gang = gang
        self._buckets = [_Bucket(part) for part in _parts(list(parameters)[::-1])]
        self._next = 0
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._hook(bucket))  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Before the backward pass: gradients are zero, and lie in the buckets."""
        self._next = 0
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.missing = set(bucket.parameters)
            bucket.work = None
            for parameter, gradient in zip(bucket.parameters, bucket.gradients, strict=True):
                parameter.grad = gradient

    def finish(self, extra: torch.Tensor) -> None:
        """After it: every gradient is the sum over the gang, and so is `extra`; one that took no part is `None`.

        Raises `GangBroken`; parameters are untouched then.
        """
        self._launch(all=True)
        extra_work = self._gang.begin_sum(extra)
        for bucket in self._buckets:
            assert bucket.work is not None
            self._gang.end_sum(bucket.work)
            for parameter in bucket.missing:
                parameter.grad = None
        self._gang.end_sum(extra_work)

    def _hook(self, bucket: _Bucket) -> Callable[[torch.Tensor], None]:
        def done(parameter: torch.Tensor) -> None:
            bucket.missing.discard(parameter)
            self._launch()

        return done

    def _launch(self, *, all: bool = False) -> None:
        """Sum what is full, in the order of the buckets: the members must begin alike."""
        while self._next < len(self._buckets) and (all or not self._buckets[self._next].missing):
            bucket = self._buckets[self._next]
            bucket.work = self._gang.begin_sum(bucket.flat)
            self._next += 1


def _parts(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Runs of parameters of one type, at most a bucket each (or one large parameter)."""
    part: list[torch.nn.Parameter] = []
    size = 0
    for parameter in parameters:
        more = parameter.numel() * parameter.element_size()
        if part and (size + more > BUCKET_BYTES or parameter.dtype != part[0].dtype):
            yield part
            part, size = [], 0
        part.append(parameter)
        size += more
    if part:
        yield part
