"""Decoder layers compiled by ``torch.compile`` for the time of a scoring call.

One graph serves all layers of a kind, since weights are its inputs, and all batch shapes, since
sizes are symbols in it. Layers that accelerate's hooks move, and modules whose ``forward`` is
replaced already, stay as they are. Sums differ by rounding.

It is meant for GPUs, where a layer's many small kernels become few; what it gains there has not
been measured. On a CPU it does not pay: with a model of 135M parameters on two cores, scoring took
1.4 times as long as with weights laid out once (:mod:`streamline.engine.kernels`), and compiling
half a minute. So it is off unless asked for.

Example::

    layers = CompiledLayers(modules)
    with layers.active():
        trie.walk(entry, at_end)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["CompiledLayers"]


class CompiledLayers:
    """Compiled forwards of some modules, and the way to use them.

    Args:
        modules: Layers, and what stands in their place.
        backend: Of ``torch.compile``.
    """

    def __init__(self, modules: Iterable[nn.Module], backend: str = "inductor") -> None:
        self._forwards: list[tuple[nn.Module, Callable[..., Any]]] = [
            (module, torch.compile(module.forward, backend=backend, dynamic=True))
            for module in modules
            if "forward" not in module.__dict__ and not hasattr(module, "_hf_hook")
        ]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it the modules run compiled; undone on leaving."""
        try:
            for module, forward in self._forwards:
                module.__dict__["forward"] = forward
            yield
        finally:
            for module, _ in self._forwards:
                module.__dict__.pop("forward", None)
