"""Language-model loss of many paths at once: what every "try it and see" criterion scores by.

Paths that enter the same model share the layers of their common prefixes through the trie of
:mod:`streamline.engine.paths`; only each path's own rest and its head are run anew. The count of
layer runs is given beside what running every path on its own would have cost.

Example:
    scores = score_paths([pruned.path(decoder) for pruned in trials], batches)
    scores.losses[0], scores.layer_runs, scores.naive_layer_runs

Notation: N sequences, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamline.distributed import Share, spread, woven
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.kernels import FastLinears
from streamline.engine.paths import Path, PathTrie
from streamline.errors import ConfigError
from streamline.progress import tell

#: Positions whose logits exist at once: bounds the memory of the head to this times V. On the CPU
#: they then stay in its cache between the product and the softmax.
_CHUNK_ON_CPU, _CHUNK = 128, 1024


@dataclass(frozen=True)
class Scores:
    """Losses of some paths, and what finding them cost.

    Attributes:
        losses: Mean negative log-likelihood per predicted token of each path, in nats.
        n_tokens: Predicted tokens averaged over, N * (T - 1).
        layer_runs: Layer evaluations, one for each sequence that a layer ran on.
        naive_layer_runs: The same without sharing prefixes.
    """

    losses: list[float]
    n_tokens: int
    layer_runs: int
    naive_layer_runs: int


def path_losses(paths: Sequence[Path], batches: Tensor) -> list[float]:
    """Mean token loss of each path; see :func:`score_paths`."""
    return score_paths(paths, batches).losses


@torch.no_grad()
def score_paths(
    paths: Sequence[Path],
    batches: Tensor,
    *,
    batch_tokens: int = 4096,
) -> Scores:
    """Walk many paths over token batches and average the next-token loss of each.

    Args:
        paths: Any paths; those of one decoder are walked together.
        batches: Token ids, [N, T], int64, with T at least 2.
        batch_tokens: Tokens walked at once (at least one sequence).

    Returns:
        One loss per path, in order, and the cost.

    Raises:
        ConfigError: If the sequences are too short to predict anything.
    """
    check_length(batches)
    tries = _tries(paths)
    totals = [0.0] * len(paths)
    rows = max(1, batch_tokens // batches.shape[1])
    for members, trie in tries:
        if trie.decoder.streamed:
            from streamline.evaluation.streamed import losses_streamed

            for index, total in zip(members, losses_streamed(trie, batches, rows), strict=True):
                totals[index] = total
    resident = [index for index, path in enumerate(paths) if not path.decoder.streamed]
    if resident:
        whole = [paths[index] for index in resident]
        for sums in woven(spread(_sums, whole, batches, rows, progress=tell)):
            for index, total in zip(resident, sums, strict=True):
                totals[index] += total
    n_tokens = len(batches) * (batches.shape[1] - 1)
    return Scores(
        losses=[total / n_tokens for total in totals],
        n_tokens=n_tokens,
        layer_runs=len(batches) * sum(trie.n_runs for _, trie in tries),
        naive_layer_runs=len(batches) * sum(trie.n_naive_runs for _, trie in tries),
    )


def check_length(tokens: Tensor) -> None:
    """Refuse token ids [N, T] in which nothing can be predicted.

    Raises:
        ConfigError: If there is no sequence, or none of two tokens.
    """
    if tokens.shape[1] < 2 or not len(tokens):
        raise ConfigError(
            f"a loss needs sequences of at least 2 tokens, got a batch of {list(tokens.shape)}"
        )


def _tries(paths: Sequence[Path]) -> list[tuple[list[int], PathTrie]]:
    """Each decoder's trie, with the places of its paths."""
    groups: dict[int, list[int]] = {}
    for index, path in enumerate(paths):
        groups.setdefault(id(path.decoder), []).append(index)
    return [(members, PathTrie([paths[i] for i in members])) for members in groups.values()]


@torch.no_grad()
def _sums(
    share: Share,
    paths: Sequence[Path],
    batches: Tensor,
    rows: int,
    *,
    progress: Callable[[int, int], None] | None,
) -> list[list[float]]:
    """Summed losses of the paths, batch by batch; a process that works alone adds them up."""
    tries = _tries(paths)
    fast = [fast_linears(trie.decoder, trie.paths) for _, trie in tries]
    parts = share.of(torch.split(batches, rows))
    total, done, out = sum(map(len, parts)), 0, []
    sums = [0.0] * len(paths)
    for tokens in parts:
        if share.size > 1:
            sums = [0.0] * len(paths)
            out.append(sums)
        for (members, trie), linears in zip(tries, fast, strict=True):

            def at_end(
                index: int,
                hidden: Tensor,
                members: list[int] = members,
                decoder: Decoder = trie.decoder,
                tokens: Tensor = tokens,
                sums: list[float] = sums,
            ) -> None:
                sums[members[index]] += summed_loss(decoder, hidden, tokens)

            with linears.active():
                trie.walk(trie.decoder.enter(tokens), at_end)
        done += len(tokens)
        if progress is not None:
            progress(done, total)
    return out if share.size > 1 else [sums]


def fast_linears(decoder: Decoder, paths: Sequence[Path]) -> FastLinears:
    """Faster products for the head and for every module on some paths of a decoder.

    Nothing is laid out a second time inside an active set, so a search over many calls of
    :func:`score_paths` can hold one set for all.
    """
    head = submodule(decoder.model, decoder.family.head)
    modules = [head, *(node.module for path in paths for node in path.nodes)]
    return FastLinears(modules, decoder.model)


@torch.no_grad()
def summed_loss(decoder: Decoder, hidden: Tensor, tokens: Tensor) -> float:
    """Negative log-likelihood of every token after the first, summed.

    Logits are made for a few hundred positions at a time, and the softmax is taken in float32.

    Args:
        decoder: The model whose final norm and head are used.
        hidden: Hidden states after the last layer, [N, T, D].
        tokens: Token ids, [N, T].

    Returns:
        The sum over N * (T - 1) predictions, in nats.
    """
    total = 0.0
    for states, targets in pieces(hidden, tokens):
        logits = decoder.leave(states).float()
        wanted = targets.to(logits.device)
        total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
    return total


def pieces(hidden: Tensor, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The states that predict a token and those tokens, a few hundred at a time.

    Args:
        hidden: Hidden states after the last layer, [N, T, D].
        tokens: Token ids, [N, T].

    Returns:
        Pairs of states, [P, D], and token ids, [P].
    """
    states = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    targets = tokens[:, 1:].reshape(-1)
    size = _CHUNK_ON_CPU if hidden.device.type == "cpu" else _CHUNK
    parts = zip(torch.split(states, size), torch.split(targets, size), strict=True)
    return list(parts)


def loss_sample(batches: Tensor, n_samples: int | None, length: int | None) -> Tensor:
    """The first sequences of the calibration tokens, cut short: what a loss criterion looks at.

    Args:
        batches: Calibration tokens, [N, T].
        n_samples: Sequences to take, or None for all.
        length: Tokens of each to take, or None for all.

    Returns:
        Token ids of at most the asked shape.

    Raises:
        ConfigError: If nothing would be left to predict.
    """
    if (n_samples is not None and n_samples < 1) or (length is not None and length < 2):
        raise ConfigError(
            f"a loss needs at least 1 sequence of 2 tokens, got n_samples={n_samples} and "
            f"length={length}"
        )
    return batches[:n_samples, :length]
