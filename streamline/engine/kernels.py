"""Faster kernels for a while: weights laid out once on a CPU; norms fused, layers compiled on GPUs.

A plain matrix product reorders the weights on every call or does without; oneDNN can keep them in
its own blocked layout. Scoring calls each weight hundreds of times, so they are laid out once per
call of the scorer and dropped afterwards; measured, the products run 1.1 to 1.8 times as fast, the
more so the larger the output (the head). Sums are the same up to their order.

:class:`FusedNorms` makes one kernel of each RMS norm of a GPU, which transformers writes as six or
more; in bfloat16 its result is rounded once where theirs is twice.

:class:`CompiledLayers` is meant for GPUs, where a layer's many small kernels become few. On a CPU
it does not pay: with a model of 135M parameters on two cores, scoring was 1.4 times as long as
with weights laid out once, and compiling half a minute. So it is off by default.

Example::

    with fast(modules, model).active():
        trie.forward(entry, at_end)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

__all__ = ["CompiledLayers", "FastLinears", "FusedNorms", "fast"]

LARGEST_COPY = 4 << 30  # bytes of the largest model whose weights are held a second time
_ROWS = 1024  # rows of the inputs that the layout is chosen for
_DTYPES = (torch.float32, torch.bfloat16)


def fast(modules: Iterable[nn.Module], model: nn.Module) -> FastLinears | FusedNorms:
    """What makes some modules of a model faster on its device, with the same results to rounding.

    Args:
        modules: What is run.
        model: The model they belong to.
    """
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device.type == "cuda":
        return FusedNorms(modules)
    return FastLinears(modules, model)


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

    def active(self) -> AbstractContextManager[None]:
        """Within it the layers compute from the second copies."""
        return _replaced(list(self._forwards.values()))


class FusedNorms:
    """One kernel for each RMS norm that is just that, and the way to use them.

    Norms that are hooked, of other packages, or that do more than scale by the root mean square and
    a weight (Gemma's) stay as they are.

    Args:
        modules: Where to look for norms.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        parts = {id(part): part for module in modules for part in module.modules()}
        self._forwards = [(part, _fused(part)) for part in parts.values() if _is_rms_norm(part)]

    def active(self) -> AbstractContextManager[None]:
        """Within it the norms are computed by one kernel each."""
        return _replaced(self._forwards)


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

    def active(self) -> AbstractContextManager[None]:
        """Within it the modules run compiled; undone on leaving."""
        return _replaced(self._forwards)


@contextmanager
def _replaced(forwards: list[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Within it some modules have other forwards of their own."""
    try:
        for module, forward in forwards:
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, _ in forwards:
            module.__dict__.pop("forward", None)


def _fused(norm: Any) -> Callable[[Tensor], Tensor]:
    weight, eps = norm.weight.detach(), float(norm.variance_epsilon)

    def forward(hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype != weight.dtype:
            found: Tensor = type(norm).forward(norm, hidden_states)
            return found
        return rms_norm(hidden_states, weight.shape, weight, eps)

    return forward


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether a module is an RMS norm of transformers that nothing else has a hand in."""
    kind: Any = type(module)
    if not (kind.__name__.endswith("RMSNorm") and kind.__module__.startswith("transformers.")):
        return False
    if "forward" in module.__dict__ or hasattr(module, "_hf_hook"):
        return False
    try:
        return _is_plain(kind)
    except Exception:  # one that is made in another way, or where no values are
        return False


@lru_cache
def _is_plain(kind: Any) -> bool:
    """Whether a class gives what the one kernel does, tried on a few numbers."""
    with torch.device("cpu"), torch.no_grad():
        norm, given = kind(8, eps=0.25), torch.linspace(-3.0, 2.0, 16).view(2, 8)
        norm.weight.copy_(torch.linspace(-1.0, 2.0, 8))
        wanted = rms_norm(given, (8,), norm.weight, float(norm.variance_epsilon))
        return torch.allclose(norm(given), wanted, rtol=1e-5)


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
