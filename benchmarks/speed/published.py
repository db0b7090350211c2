"""The published procedures of layer scoring, written anew from their descriptions.

They stand here as peers: hidden states of all layers are kept for a sample, similarities are whole
token-by-token matrices, every block size is a run of its own, and every trial of a greedy search is
a whole model.

Reference:
    LLM-Streamline, arXiv:2403.19135 (released ``get_cosine``); ShortGPT, arXiv:2403.03853;
    "The unreasonable ineffectiveness of the deeper layers", arXiv:2403.17887; SLEB,
    arXiv:2402.09025.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

__all__ = ["angular_scores", "block_influence", "cosine_scores", "greedy", "hidden_states"]


@torch.no_grad()
def hidden_states(model: Any, tokens: Tensor) -> list[Tensor]:
    """Hidden states of one sample before every layer and after the final norm, L + 1 of [T, D].

    As released, the whole model is called, its head included.
    """
    out = model(tokens[None], output_hidden_states=True, use_cache=False)
    return [state[0] for state in out.hidden_states]


@torch.no_grad()
def cosine_scores(model: Any, samples: Tensor, length: int) -> list[float]:
    """Mean token cosine, mapped to ``0.5 + 0.5 cos``, over each run of ``length`` layers.

    Args:
        model: The model.
        samples: Token ids, [N, T].
        length: Layers in a run.

    Returns:
        One score per start. The similarity of all tokens with all tokens is built and its trace
        taken.
    """
    total: Tensor | None = None
    for tokens in samples:
        states = hidden_states(model, tokens)
        scores = []
        for start in range(len(states) - length):
            before = normalize(states[start].float(), dim=-1)
            after = normalize(states[start + length].float(), dim=-1)
            similarity = 0.5 + 0.5 * (before @ after.T)  # [T, T]
            scores.append(similarity.trace() / len(tokens))
        stacked = torch.stack(scores)
        total = stacked if total is None else total + stacked
    assert total is not None
    return (total / len(samples)).tolist()


@torch.no_grad()
def angular_scores(model: Any, samples: Tensor, length: int) -> list[float]:
    """Mean angle over pi at the last token over each run of ``length`` layers."""
    total: Tensor | None = None
    for tokens in samples:
        states = [normalize(s[-1].double(), dim=-1) for s in hidden_states(model, tokens)]
        cosines = [states[i] @ states[i + length] for i in range(len(states) - length)]
        angles = torch.stack(cosines).clamp(-1, 1).arccos() / torch.pi
        total = angles if total is None else total + angles
    assert total is not None
    return (total / len(samples)).tolist()


@torch.no_grad()
def block_influence(model: Any, samples: Tensor) -> list[float]:
    """``1 - cos`` of each layer's input and output, mean over tokens; serves every sparsity."""
    total: Tensor | None = None
    for tokens in samples:
        states = [normalize(s.float(), dim=-1) for s in hidden_states(model, tokens)]
        pairs = zip(states, states[1:], strict=False)
        scores = torch.stack([1 - (a * b).sum(-1).mean() for a, b in pairs])
        total = scores if total is None else total + scores
    assert total is not None
    return (total / len(samples)).tolist()


@torch.no_grad()
def greedy(
    model: Any, tokens: Tensor, n_remove: int, keep_first: int = 1, keep_last: int = 1
) -> tuple[list[int], list[float]]:
    """The greedy search, one whole model per trial.

    Args:
        model: A model with its layers in ``model.model.layers``; restored afterwards.
        tokens: Token ids of every trial, [N, T].
        n_remove: Layers to remove.
        keep_first: First layers that stay.
        keep_last: Last layers that stay.

    Returns:
        Layers in the order of their removal, and the loss without each.
    """
    body = model.model
    whole = body.layers
    alive = list(range(len(whole)))
    order: list[int] = []
    losses: list[float] = []
    try:
        for _ in range(n_remove):
            trials = {}
            for layer in alive[keep_first : len(alive) - keep_last]:
                body.layers = nn.ModuleList([whole[i] for i in alive if i != layer])
                trials[layer] = float(model(tokens, labels=tokens, use_cache=False).loss)
            best = min(trials, key=trials.__getitem__)
            order.append(best)
            losses.append(trials[best])
            alive.remove(best)
    finally:
        body.layers = whole
    return order, losses
