"""LoRA fine-tuning, or distillation, as it is rehearsed: adapters, a step's passes, merged weights.

Example::

    rehearsal.peak(lambda few: tune(few, recipe, rehearsal.tokens(8, 512)))
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from streamline.engine.decoder import Decoder, submodule
from streamline.engine.head import summed_divergence, summed_loss
from streamline.training.distillation.settings import DistillationSettings
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


def tune(
    decoder: Decoder,
    recipe: LoraRecipe,
    tokens: Tensor,
    kd: DistillationSettings | None = None,
    *,
    parts: bool = False,
) -> None:
    """One step of fine-tuning and the merge at its end.

    Args:
        decoder: A model without data; it is as before afterwards.
        recipe: What is trained.
        tokens: Token ids without values, [B, T]: one forward pass.
        kd: How it learns from the dense model; None for the next-token loss.
        parts: Whether layers are in parts: each runs once more for its gradients, and nothing is
            merged while they are.
    """
    targets = target_modules(decoder, recipe.targets)
    adapted = {name: _Adapted(module, recipe) for name, module in targets.items()}
    trained = [p for one in adapted.values() for p in (one.down, one.up)]
    held = [[torch.empty_like(p) for p in trained] for _ in range(3)]  # moments and the best
    try:
        for name, one in adapted.items():
            _put(decoder, name, one)
        for _ in range(2):  # with the gradients of the first
            with torch.no_grad():
                wanted = None if kd is None else _states(decoder, tokens)
            with torch.enable_grad():
                hidden = _states(decoder, tokens, again=parts)
                if kd is None or wanted is None:
                    loss = summed_loss(decoder, hidden, tokens)
                else:
                    both, how = ((decoder, wanted), (decoder, hidden)), (kd.temperature, kd.top_k)
                    loss = summed_divergence(*both, tokens, temperature=how[0], top_k=how[1])
                loss.backward()  # type: ignore[no-untyped-call]
            del wanted, hidden, loss
        with torch.no_grad():
            held.append([one.merged() for one in adapted.values() if not parts])
    finally:
        for name, one in adapted.items():
            _put(decoder, name, one.base)


def _states(decoder: Decoder, tokens: Tensor, *, again: bool = False) -> Tensor:
    """Hidden states after the last layer, [B, T, D]; layers may run again for their gradients."""
    entry = decoder.enter(tokens)
    hidden = entry.hidden
    for index, layer in enumerate(decoder.layers):
        run = partial(decoder.run, layer, entry=entry, layer=index)
        hidden = checkpoint(run, hidden, use_reentrant=False) if again else run(hidden)
    return hidden


def _put(decoder: Decoder, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(submodule(decoder.model, parent), leaf, module)
