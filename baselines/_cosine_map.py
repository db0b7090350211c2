"""The linear map of ReplaceMe by its cosine objective: Adam instead of a closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from streamline.training.schedule import data_order


def cosine_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean over rows of ``1 - cos``, a scalar.

    Args:
        found: Vectors, [N, D].
        wanted: Vectors, [N, D].
    """
    return 1.0 - torch.cosine_similarity(found, wanted, dim=-1).mean()


def fit_cosine(
    mlp: Tensor,
    rest: Tensor,
    target: Tensor,
    *,
    epochs: int,
    learning_rate: float,
    batch: int,
    seed: int,
    device: torch.device,
) -> tuple[Tensor, dict[str, Any]]:
    """Minimise the mean cosine distance between ``M T + Y`` and the states after the run.

    ``T`` starts at the identity, which is leaving the run out. The last ``T`` is returned.

    Args:
        mlp: ``M``, the MLP output before the cut, [N, D], float32.
        rest: ``Y``, everything else that reaches the cut, [N, D], float32.
        target: States after the run, [N, D], float32.
        epochs: Passes over the tokens.
        learning_rate: Adam's.
        batch: Tokens of a step.
        seed: Seed of the order.
        device: Where to compute.

    Returns:
        ``T``, [D, D], float64 on the CPU, for row vectors, and the distance with it (``error``) and
        with the run left out (``error_dropped``).
    """
    width = mlp.shape[1]
    transform = nn.Parameter(torch.eye(width, device=device))
    optimiser = torch.optim.Adam([transform], lr=learning_rate)

    def distance(indices: Tensor) -> Tensor:
        found = mlp[indices].to(device) @ transform + rest[indices].to(device)
        return cosine_distance(found, target[indices].to(device))

    @torch.no_grad()
    def total() -> float:
        parts = torch.split(torch.arange(len(mlp)), max(batch, 4096))
        return sum(float(distance(part)) * len(part) for part in parts) / len(mlp)

    dropped = total()
    for epoch in range(epochs):
        for indices in torch.split(data_order(len(mlp), seed, epoch), batch):
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(distance(indices), transform)
            transform.grad = gradient
            optimiser.step()
    return transform.detach().cpu().double(), {"error": total(), "error_dropped": dropped}
