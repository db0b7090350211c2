"""LoRA fine-tuning as it is rehearsed: maps with adapters, a step's two passes, merged weights.

Example::

    rehearsal.peak(lambda few: tune(few, recipe, rehearsal.tokens(8, 512)))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder, submodule
from streamline.engine.head import summed_loss
from streamline.training.lora import target_modules
from streamline.training.lora_recipe import LoraRecipe

__all__ = ["tune"]


class _Adapted(nn.Module):
    """A linear map with an adapter, as peft computes it: the adapter in float32.

    Args:
        base: The map.
        recipe: Rank and dropout.
    """

    def __init__(self, base: nn.Module, recipe: LoraRecipe) -> None:
        super().__init__()
        weight: Tensor = base.weight  # type: ignore[assignment]
        n_in, n_out = _sides(base, weight)
        self.base = base
        self.down = nn.Parameter(torch.empty(recipe.rank, n_in))
        self.up = nn.Parameter(torch.empty(n_out, recipe.rank))
        self.dropout = recipe.dropout

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x)
        kept = nn.functional.dropout(x.float(), self.dropout) if self.dropout else x.float()
        change = nn.functional.linear(nn.functional.linear(kept, self.down), self.up) * 2.0
        return (result + change).to(result.dtype)

    def merged(self) -> Tensor:
        """The map's weight with the adapter added, a new tensor."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        change = (self.up @ self.down).reshape(weight.shape)
        return (weight.float() + change).to(weight.dtype)


def _sides(base: nn.Module, weight: Tensor) -> tuple[int, int]:
    """Numbers that a map takes and gives; a transposed one keeps its weight the other way."""
    n_out, n_in = weight.shape
    return (n_in, n_out) if isinstance(base, nn.Linear) else (n_out, n_in)


def tune(decoder: Decoder, recipe: LoraRecipe, tokens: Tensor) -> None:
    """One step of fine-tuning and the merge at its end.

    Args:
        decoder: A model without data; it is as before afterwards.
        recipe: What is trained.
        tokens: Token ids without values, [B, T]: one forward pass.
    """
    targets = target_modules(decoder, recipe.targets)
    adapted = {name: _Adapted(module, recipe) for name, module in targets.items()}
    trained = [p for one in adapted.values() for p in (one.down, one.up)]
    held = [[torch.empty_like(p) for p in trained] for _ in range(3)]  # moments and the best
    try:
        for name, one in adapted.items():
            _put(decoder, name, one)
        for _ in range(2):  # with the gradients of the first
            with torch.enable_grad():
                entry = decoder.enter(tokens)
                hidden = entry.hidden
                for index, layer in enumerate(decoder.layers):
                    hidden = decoder.run(layer, hidden, entry, index)
                summed_loss(decoder, hidden, tokens).backward()  # type: ignore[no-untyped-call]
            del entry, hidden
        with torch.no_grad():
            held.append([one.merged() for one in adapted.values()])
    finally:
        for name, one in adapted.items():
            _put(decoder, name, one.base)


def _put(decoder: Decoder, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(submodule(decoder.model, parent), leaf, module)
