"""Faster kernels for a while: weights laid out once on a CPU, layers compiled on an accelerator.

A plain matrix product reorders the weights on every call or does without; oneDNN can keep them in
its own blocked layout. Scoring calls each weight hundreds of times, so they are laid out once per
call of the scorer and dropped afterwards; measured, the products run 1.1 to 1.8 times as fast, the
more so the larger the output (the head). Sums are the same up to their order.

:class:`CompiledLayers` is meant for GPUs, where a layer's many small kernels become few. On a CPU
it does not pay: with a model of 135M parameters on two cores, scoring was 1.4 times as long as
with weights laid out once, and compiling half a minute. So it is off by default.

Example::

    fast = FastLinears(modules, model)
    with fast.active():
        trie.forward(entry, at_end)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CompiledLayers", "FastLinears"]

LARGEST_COPY = 4 << 30  # bytes of the largest model whose weights are held a second time
_ROWS = 1024  # rows of the inputs that the layout is chosen for
_DTYPES = (torch.float32, torch.bfloat16)


class FastLinears:
    """Second copies of some modules' linear weights, and the way to use them.

    Weights that do not lie on the CPU, and layers that are hooked or subclassed, stay as they are;
    so does everything of a model of more than 4 GiB, whichever of its paths are run: an answer
    must not depend on what else is computed. Weights must not change meanwhile.

    Args:
        modules: Where to look for linear layers.
        model: The model they belong to.
    """

    def __init__(self, modules: Iterable[nn.Module], model: nn.Module) -> None:
        self._forwards: dict[int, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {}
        modules = list(modules)
        if not modules:
            return
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        if size > LARGEST_COPY or not _supported():
            return
        packed: dict[int, Tensor] = {}
        for part in (part for module in modules for part in module.modules()):
            if id(part) in self._forwards or not _plain(part):
                continue
            assert isinstance(part, nn.Linear)
            key = part.weight.data_ptr()
            if key not in packed:
                packed[key] = torch.ops.mkldnn._reorder_linear_weight(part.weight.detach(), _ROWS)
            bias = None if part.bias is None else part.bias.detach()
            self._forwards[id(part)] = (part, _forward(packed[key], bias))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it the layers compute from the second copies."""
        try:
            for module, forward in self._forwards.values():
                module.__dict__["forward"] = forward
            yield
        finally:
            for module, _ in self._forwards.values():
                module.__dict__.pop("forward", None)


class CompiledLayers:
    """Compiled forwards of some modules, and the way to use them.

    One graph serves all layers of a kind, since weights are its inputs, and all batch shapes, since
    sizes are symbols in it. Layers that accelerate's hooks move, and modules whose ``forward`` is
    replaced already, stay as they are. Results differ by rounding.

    Args:
        modules: Layers, and what replaces them.
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


def _supported() -> bool:
    """Whether this build of torch has the operators; they are not part of its stable interface."""
    return torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


def _plain(module: nn.Module) -> bool:
    """Whether a module is a linear layer that nothing else has a hand in."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.device.type == "cpu"
        and module.weight.dtype in _DTYPES
        and module.weight.is_contiguous()
        and "forward" not in module.__dict__
        and not hasattr(module, "_hf_hook")
    )


def _forward(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    def forward(input: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
        return result

    return forward
