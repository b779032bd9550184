"""Models whose artifact is one graph, from a padded batch of rows to a row of numbers for each."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from llmos_exporter import graphs
from llmos_exporter.graphs import Feeds, Interface, Module
from llmos_exporter.sources import Files, Numbers, session

GRAPH = "model.onnx"


class Single(ABC):
    """What such sources share. A task says how rows become feeds, what its head gives, and what part is an answer."""

    decoder = False
    model: Any
    interface: Interface

    @abstractmethod
    def feeds(self, rows: Sequence[Any]) -> Feeds:
        """A padded batch."""

    @abstractmethod
    def head(self, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The graph's output, float32, by the model."""

    def read(self, found: NDArray[Any], rows: Sequence[Any]) -> list[Numbers]:
        """Each row's answer in a batch's output, without padding."""
        return list(found)

    @abstractmethod
    def sample(self) -> Feeds:
        """What a graph is traced with: two rows, padded."""

    def trained(self, rows: Sequence[Any]) -> list[Numbers]:
        feeds = self.feeds(rows)
        with torch.inference_mode():
            found = self.head({name: torch.from_numpy(feeds[name]) for name in self.interface.takes})
        return self.read(found.numpy(), rows)

    def exported(self, files: Files, threads: int) -> Callable[[Sequence[Any]], list[Numbers]]:
        graph = session(files["model"], threads)
        names = list(self.interface.gives)

        def answers(rows: Sequence[Any]) -> list[Numbers]:
            feeds = self.feeds(rows)
            return self.read(graph.run(names, {name: feeds[name] for name in self.interface.takes})[0], rows)

        return answers

    def routes(self) -> Mapping[str, Callable[[Path], Files]]:
        def by(route: graphs.Route) -> Callable[[Path], Files]:
            def make(folder: Path) -> Files:
                with eager(self.model):
                    module = Module(self.model, lambda **given: self.head(given), self.interface)
                    return {"model": graphs.export(route, module, self.sample(), self.interface, folder / GRAPH)}

            return make

        return {name: by(route) for name, route in graphs.ROUTES.items()}

    def beyond(self, exported: Callable[[Sequence[Any]], list[Numbers]], rows: Sequence[Any]) -> dict[str, float]:
        return {}


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Attention as plain matrix products: fewer nodes, and onnxruntime knows how to fuse them."""
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
