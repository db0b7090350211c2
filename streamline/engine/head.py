"""The head, in chunks: log-probabilities at chosen positions, summed losses, next tokens.

Also how far the next-token distributions of one model are from another's.

A vocabulary is wide, so logits exist for a few positions at a time: on a CPU they then stay in its
cache between the product and the softmax. Softmax and losses are computed in float32.

Example::

    values, best = token_logprobs(decoder, hidden, picks, targets)
    summed_loss(decoder, hidden, ids)               # a scalar tensor; gradients flow if enabled

Notation: B batch, T tokens, D hidden size, P positions, S scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from streamline.engine.decoder import Decoder
from streamline.engine.transfer import onto

__all__ = [
    "chunk_rows", "divergence", "drawn", "likeliest", "predicting", "summed_divergence",
    "summed_loss", "token_logprobs",
]  # fmt: skip

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
    decoder: Decoder, hidden: Tensor, picks: Tensor, targets: Tensor, *, greedy: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of single tokens, the head run once for each distinct position.

    Nothing here waits for an accelerator.

    Args:
        decoder: Gives the final norm and the head.
        hidden: Hidden states after the last layer at the positions that are needed, [P, D].
        picks: For each scored token its index into ``hidden``, [S], on the CPU.
        targets: The scored tokens, [S], on the CPU.
        greedy: Whether to look for the likeliest tokens.

    Returns:
        Log-softmax in float32 at the targets, [S], and whether each is the likeliest token, [S],
        bool; all False without ``greedy``. Both where the head is.
    """
    by_place = torch.argsort(picks, stable=True)
    step = chunk_rows(decoder, hidden.device)
    ordered = picks[by_place]
    values, tops = [], []
    for number, states in enumerate(torch.split(hidden, step)):
        logits = decoder.leave(states)  # [chunk, V]
        logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        # Not before the first chunk: a rehearsal ends where a value is asked for.
        bounds = torch.tensor([number, number + 1]) * step
        begin, end = torch.searchsorted(ordered, bounds).tolist()
        mine = by_place[begin:end]
        rows = onto(picks[mine] - number * step, logits.device)
        wanted = onto(targets[mine], logits.device)
        chosen = logprobs[rows, wanted]
        values.append(chosen)
        tops.append(
            _is_likeliest(logprobs, rows, wanted, chosen)
            if greedy
            else torch.zeros_like(wanted, dtype=torch.bool)
        )
        del logits, logprobs  # before the next ones are made
    order = torch.empty_like(by_place)
    order[by_place] = torch.arange(len(by_place))
    order = onto(order, values[0].device)
    return torch.cat(values)[order], torch.cat(tops)[order]


def _is_likeliest(logprobs: Tensor, rows: Tensor, wanted: Tensor, chosen: Tensor) -> Tensor:
    """Whether tokens are the likeliest of their rows, [S]; of equal ones the first is."""
    if logprobs.device.type != "cpu":
        return logprobs.argmax(dim=-1)[rows] == wanted
    best = chosen == logprobs.amax(dim=-1)[rows]
    # Looking for the place of the maximum is slow here; it only matters where values are equal.
    best[best.clone()] = logprobs[rows[best]].argmax(dim=-1) == wanted[best]
    return best


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
    targets = onto(ids[:, 1:].flatten(), hidden.device)  # [B * (T - 1)]
    if scored is not None:
        # Places that are found on the host: by a mask the device would be asked how many they are.
        chosen = onto(scored[:, 1:].flatten().nonzero()[:, 0], hidden.device)
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

    def piece(states: Tensor, targets: Tensor) -> Tensor:
        logits = decoder.leave(states).float()  # [P, V]
        return cross_entropy(logits, targets.to(logits.device), reduction="sum")

    return _added(piece, list(predicting(decoder, hidden, ids, scored)))


def summed_divergence(
    teacher: tuple[Decoder, Tensor],
    student: tuple[Decoder, Tensor],
    ids: Tensor,
    scored: Tensor | None = None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    text: float = 0.0,
) -> Tensor:
    """KL(teacher || student) of the next-token distributions, summed over positions, in nats.

    ``temperature**2 * KL(softmax(t / temperature) || softmax(s / temperature))`` for the logits t
    and s; with ``top_k`` both softmaxes are over the teacher's k largest logits alone. The factor
    keeps gradients of one size whatever the temperature. Gradients flow to the student only. A
    share of the loss may be the negative log-likelihood of the tokens themselves.

    Args:
        teacher: The model whose final norm and head are used, and its hidden states after the last
            layer, [B, T, D].
        student: The same of the model that learns.
        ids: The tokens, [B, T]; without ``text`` they decide nothing but the shape.
        scored: Which tokens' predictions count, [B, T], bool; None for all but the first.
        temperature: What logits are divided by.
        top_k: Logits of a position that count; None for all, as is a number above the vocabulary.
        text: The share of the tokens' own log-likelihood, in [0, 1]; of all logits as they are.

    Returns:
        A scalar, as from :func:`summed_loss`.

    Reference:
        Hinton et al., arXiv:1503.02531 (temperature, and the sum of both losses); LinearPatch,
        arXiv:2505.24680, section 4.2 (the teacher's largest logits).
    """
    judge, pupil = teacher[0], student[0]

    def piece(states: Tensor, wanted: Tensor, tokens: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(wanted.device.type, enabled=False):
            target = judge.leave(wanted).float() / temperature  # [P, V]
        whole = pupil.leave(states).float()
        logits = whole / temperature
        target = target.to(logits.device)
        if top_k is not None and top_k < target.shape[-1]:
            target, places = target.topk(top_k, dim=-1)  # [P, k]
            logits = logits.gather(-1, places)
        taught = divergence(target, logits).sum() * temperature**2
        if not text:
            return taught
        own = cross_entropy(whole, tokens.to(whole.device), reduction="sum")
        return (1.0 - text) * taught + text * own

    wanted = [states for states, _ in predicting(judge, teacher[1], ids, scored)]
    found = [
        (states, wanted[place], tokens)
        for place, (states, tokens) in enumerate(predicting(pupil, student[1], ids, scored))
    ]
    return _added(piece, found)


class _Divergence(torch.autograd.Function):
    """KL of softmaxes; the gradient is their difference, zero to the bit where they agree."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor) -> Tensor:
        wanted, found = teacher.log_softmax(-1), student.log_softmax(-1)
        likely = wanted.exp()
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(found.exp() - likely)
        return (likely * (wanted - found)).sum(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (difference,) = ctx.saved_tensors
        return None, gradient[..., None] * difference


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of the softmaxes of logits, at each position, in nats.

    Args:
        teacher: Logits, [..., V], float32; no gradient flows to them.
        student: Logits, [..., V], float32.

    Returns:
        One number for each position, [...], float32.
    """
    return _Divergence.apply(teacher, student)  # type: ignore[no-any-return, no-untyped-call]


def _added(piece: Callable[..., Tensor], chunks: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """The sum of a loss over chunks; with gradients, each is made again on the way back."""
    training = torch.is_grad_enabled()
    total: Tensor | None = None
    for chunk in chunks:
        if training and len(chunks) > 1:
            loss = checkpoint(piece, *chunk, use_reentrant=False)
        else:
            loss = piece(*chunk)
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


def drawn(decoder: Decoder, hidden: Tensor, temperatures: Tensor, places: Tensor) -> Tensor:
    """A next token after each hidden state, drawn from softmax(logits / temperature).

    The draw is given as a place in the distribution, its tokens laid end to end by their ids: what
    is drawn together with it does not matter, and every device draws from the same numbers.

    Args:
        decoder: Gives the final norm and the head.
        hidden: Hidden states after the last layer, [N, D].
        temperatures: Of each draw, [N], float32, at least 0; 0 takes the likeliest token.
        places: Of each draw, in [0, 1), [N], float64.

    Returns:
        Token ids, [N], on the model's device; minus one where the logits are not finite.
    """
    parts = []
    step = chunk_rows(decoder, hidden.device)
    given = (torch.split(one, step) for one in (temperatures, places))
    for states, heat, place in zip(torch.split(hidden, step), *given, strict=True):
        logits = decoder.leave(states).float()
        logits = logits.cpu() if logits.device.type == "mps" else logits  # [P, V]
        warm, at = (onto(one[:, None], logits.device) for one in (heat, place))
        best = logits.argmax(dim=-1)
        scaled = (logits - logits.amax(-1, keepdim=True)) / warm.where(warm > 0, 1.0)
        ends = scaled.exp_().cumsum(dim=-1, dtype=torch.float64)
        found = torch.searchsorted(ends, at * ends[:, -1:], right=True)[:, 0]
        token = found.where(warm[:, 0] > 0, best)
        parts.append(token.where(ends[:, -1].isfinite(), -1))
    return torch.cat(parts).to(decoder.device)
