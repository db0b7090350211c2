"""A change of a linear map by ridge regression, its penalty chosen on rows that are held out.

Example::

    fitted, held = RidgeMoments(), RidgeMoments()
    fitted.add(inputs, error, weights)
    change = best_change(fitted, held)      # [I, D], or None if none helps

Notation: I inputs of a map, D outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamline.methods.linear_algebra import solve

__all__ = ["RIDGES", "RidgeMoments", "best_change"]

#: Penalties as fractions of the mean square of a projection's inputs, tried until one does worse
#: than the one before.
RIDGES = (10.0, 1.0, 1e-1, 1e-2, 1e-3)


class RidgeMoments:
    """Weighted sums over tokens, float64, that a change of a projection is solved from."""

    def __init__(self) -> None:
        self.gram = self.right = self.error = torch.zeros(())
        self.scale = 0

    def add(self, inputs: Tensor, error: Tensor, weights: Tensor) -> None:
        """Add tokens.

        Args:
            inputs: What the projection reads, [..., I].
            error: What is missing after it, [..., D].
            weights: What each token counts, [..., 1].
        """
        inputs, error = inputs.flatten(0, -2), error.flatten(0, -2)
        weights = weights.flatten(0, -2)
        counted = weights * inputs
        self.gram = self.gram.to(inputs) + counted.T @ inputs  # [I, I]
        self.right = self.right.to(inputs) + counted.T @ error  # [I, D]
        self.error = self.error.to(error) + (weights * error.square()).sum()
        self.scale += error.numel()

    def joined(self, other: RidgeMoments) -> RidgeMoments:
        """The sums over the tokens of both."""
        both = RidgeMoments()
        both.gram, both.right = self.gram + other.gram, self.right + other.right
        both.error, both.scale = self.error + other.error, self.scale + other.scale
        return both

    def change(self, ridge: float) -> Tensor:
        """What is to be added to the projection, [I, D], at a penalty."""
        penalty = ridge * self.gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        return solve(self.gram + penalty * torch.eye(len(self.gram)).to(self.gram), self.right)

    def left(self, change: Tensor | None) -> float:
        """The summed error that is left after a change; None for no change."""
        if change is None:
            return float(self.error)
        explained = 2 * (change * self.right).sum() - (change * (self.gram @ change)).sum()
        return max(0.0, float(self.error - explained))


def best_change(fitted: RidgeMoments, held: RidgeMoments) -> Tensor | None:
    """The change that is best on what was held out, made of all tokens; None if none helps."""
    best, least = None, held.left(None)
    for ridge in RIDGES:
        error = held.left(fitted.change(ridge))
        if error >= least:
            break
        best, least = ridge, error
    return None if best is None else fitted.joined(held).change(best)
