"""The head, in chunks: log-probabilities at chosen positions, summed losses, likeliest tokens.

A vocabulary is wide, so logits exist for a few positions at a time: on a CPU they then stay in its
cache between the product and the softmax. Softmax and losses are computed in float32.

Example::

    values, best = token_logprobs(decoder, hidden, where, picks, targets)
    summed_loss(decoder, hidden, ids)               # a scalar tensor; gradients flow if enabled

Notation: B batch, T tokens, D hidden size, P positions, S scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from streamline.engine.decoder import Decoder

__all__ = ["chunk_rows", "likeliest", "predicting", "summed_loss", "token_logprobs"]

_LOGITS_ON_CPU, _LOGITS = 1 << 22, 1 << 26  # logits that exist at once
_LEAST_ROWS = 64  # of a chunk: fewer would read the head's weights too often
_TRAINING_ROWS = 1024  # chunks are made again on the way back


def chunk_rows(decoder: Decoder, device: torch.device, *, training: bool = False) -> int:
    """Positions whose logits exist at once.

    Args:
        decoder: Whose vocabulary it is.
        device: Where the logits are made.
        training: Whether gradients flow; a chunk is then large, since all but a single one are
            computed twice.
    """
    if training:
        return _TRAINING_ROWS
    most = _LOGITS_ON_CPU if device.type == "cpu" else _LOGITS
    return max(_LEAST_ROWS, most // int(decoder.config.vocab_size))


def token_logprobs(
    decoder: Decoder,
    hidden: Tensor,
    where: Tensor,
    picks: Tensor,
    targets: Tensor,
    *,
    greedy: bool = True,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Log-probabilities of single tokens, the head run once for each distinct position.

    Args:
        decoder: Gives the final norm and the head.
        hidden: Hidden states after the last layer, [positions, D].
        where: Distinct rows of ``hidden`` that are needed, [P], rising.
        picks: For each scored token its index into ``where``, [S].
        targets: The scored tokens, [S].
        greedy: Whether to look for the likeliest tokens.

    Returns:
        Log-softmax in float32 at the targets, [S], and whether each is the likeliest token, [S];
        all False without ``greedy``.
    """
    device = hidden.device
    by_place = torch.argsort(picks, stable=True)
    ordered = picks[by_place]
    step = chunk_rows(decoder, device)
    values, tops = [], []
    for low in range(0, len(where), step):
        logits = decoder.leave(hidden[where[low : low + step].to(device)])  # [chunk, V]
        logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        begin, end = torch.searchsorted(ordered, torch.tensor([low, low + step])).tolist()
        rows = (ordered[begin:end] - low).to(logits.device)  # the head may be on another device
        wanted = targets[by_place[begin:end]].to(logits.device)
        chosen = logprobs[rows, wanted]
        best = torch.zeros_like(wanted, dtype=torch.bool)
        if greedy:
            best = chosen == logprobs.amax(dim=-1)[rows]
            # Looking for the place of the maximum is slow; it only matters where values are equal.
            best[best.clone()] = logprobs[rows[best]].argmax(dim=-1) == wanted[best]
        values.append(chosen.cpu())
        tops.append(best.cpu())
    order = torch.empty_like(by_place)
    order[by_place] = torch.arange(len(by_place))
    return torch.cat(values)[order].numpy(), torch.cat(tops)[order].numpy()


def predicting(
    decoder: Decoder, hidden: Tensor, ids: Tensor, scored: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The states that predict a token, and those tokens, a chunk at a time.

    Args:
        decoder: Whose vocabulary decides the size of a chunk.
        hidden: Hidden states after the last layer, [B, T, D].
        ids: The tokens, [B, T].
        scored: Which tokens count, [B, T], bool; the first of a row never does. None for all.

    Yields:
        States, [P, D], and token ids, [P].
    """
    states = hidden[:, :-1].flatten(0, 1)  # [B * (T - 1), D]
    targets = ids[:, 1:].flatten().to(hidden.device)  # [B * (T - 1)]
    if scored is not None:
        chosen = scored[:, 1:].flatten().to(hidden.device)
        states, targets = states[chosen], targets[chosen]
    step = chunk_rows(decoder, hidden.device, training=torch.is_grad_enabled())
    yield from zip(torch.split(states, step), torch.split(targets, step), strict=True)


def summed_loss(
    decoder: Decoder, hidden: Tensor, ids: Tensor, scored: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood of the predicted tokens, summed, in nats.

    Where gradients are enabled, the logits of each chunk are made again on the way back.

    Args:
        decoder: Whose final norm and head are used.
        hidden: Hidden states after the last layer, [B, T, D].
        ids: The tokens, [B, T].
        scored: Which tokens count, [B, T], bool; the first of a row never does. None for all.

    Returns:
        A scalar, float32 in each chunk; chunks are added in float32 where gradients are enabled,
        else in float64.
    """
    training = torch.is_grad_enabled()

    def piece(states: Tensor, targets: Tensor) -> Tensor:
        logits = decoder.leave(states).float()  # [P, V]
        return cross_entropy(logits, targets.to(logits.device), reduction="sum")

    chunks = list(predicting(decoder, hidden, ids, scored))
    total: Tensor | None = None
    for states, targets in chunks:
        if training and len(chunks) > 1:
            loss = checkpoint(piece, states, targets, use_reentrant=False)
        else:
            loss = piece(states, targets)
        if not training:
            loss = (loss.cpu() if loss.device.type == "mps" else loss).double()
        total = loss if total is None else total + loss.to(total.device)
    assert total is not None
    return total


def likeliest(decoder: Decoder, hidden: Tensor) -> Tensor:
    """The likeliest next token after each hidden state [N, D], [N], on the model's device.

    Minus one where its logit is not finite (NaN counts as the largest): no token can be chosen.
    """
    parts = []
    for states in torch.split(hidden, chunk_rows(decoder, hidden.device)):
        logits = decoder.leave(states).float()
        best = logits.argmax(dim=-1)
        chosen = logits.gather(-1, best[:, None])[:, 0]
        parts.append(best.where(chosen.isfinite(), -1))
    return torch.cat(parts).to(decoder.device)
