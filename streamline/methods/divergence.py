"""How far the next-token distributions of many paths are from the dense model's.

Teacher and trials are paths of one trie, so what they share runs once, and logits exist for a few
positions at a time; no logits of the dense model are kept.

Example::

    search = Divergences(decoder, modules)              # weights laid out once for many rounds
    values = search(trials, tokens)                     # nats per token, in the order of the trials

Notation: N sequences, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamline.engine import head
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.finite import not_finite
from streamline.engine.forward import TokenJob, run
from streamline.engine.kernels import FastLinears
from streamline.engine.paths import Path, dense_path
from streamline.engine.transfer import Later
from streamline.methods.loss import check_length
from streamline.progress import tell

__all__ = ["Divergences", "divergence"]

_BATCH_TOKENS = 4096


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of next-token distributions, summed over positions, in nats.

    Args:
        teacher: Logits, [..., V].
        student: Logits, [..., V].

    Returns:
        A scalar, computed in float32 and added up in float64.
    """
    each = head.divergence(teacher.float(), student.float().to(teacher.device))
    return (each.cpu() if each.device.type == "mps" else each).double().sum()


class Divergences:
    """The divergence of any paths through a model from the model itself.

    Args:
        decoder: The dense model.
        modules: What runs on the paths beside its own layers; weights are laid out for the
            processor once.
        batch_tokens: Tokens of one forward pass (at least one sequence).
    """

    def __init__(
        self,
        decoder: Decoder,
        modules: Iterable[nn.Module] = (),
        *,
        batch_tokens: int = _BATCH_TOKENS,
    ) -> None:
        self.decoder = decoder
        self.batch_tokens = batch_tokens
        last = submodule(decoder.model, decoder.family.head)
        self._fast = FastLinears([last, *decoder.layers, *modules], decoder.model)

    def __call__(self, paths: Sequence[Path], pieces: Sequence[Tensor]) -> list[float]:
        """Mean KL(dense || path) per predicted token of each path, in nats.

        The last token of each sequence does not count, as nothing follows it.

        Args:
            paths: Paths of the decoder.
            pieces: Token ids, [N, T] each, T at least 2.

        Raises:
            ConfigError: If a sequence is too short to predict anything.
            NotFiniteError: If a divergence is NaN or infinite.
        """
        jobs = []
        for tokens in pieces:
            check_length(tokens)
            rows = max(1, self.batch_tokens // tokens.shape[1])
            jobs += [_Divergence(some) for some in torch.split(tokens, rows)]
        totals = [0.0] * len(paths)
        with self._fast.active():
            for _, values in run([dense_path(self.decoder), *paths], jobs, progress=tell):
                totals = [total + value for total, value in zip(totals, values, strict=True)]
        for total, path in zip(totals, paths, strict=True):
            if not math.isfinite(total):
                what = "prune: the divergence from the dense model on calibration sequence {}"
                raise not_finite(what, path, [row[None] for piece in pieces for row in piece])
        n_tokens = sum(len(tokens) * (tokens.shape[1] - 1) for tokens in pieces)
        return [total / n_tokens for total in totals]


@dataclass(frozen=True)
class _Divergence(TokenJob):
    """Some sequences, [B, T]: the summed divergence of every path from the first one."""

    def keep(self, hidden: Tensor) -> Tensor:
        return hidden[:, :-1].flatten(0, 1)

    def answer(self, decoder: Decoder, kept: Tensor) -> tuple[Decoder, Tensor]:
        return decoder, kept

    def combine(self, answers: list[Any]) -> Later:
        decoder, teacher = answers[0]
        n, found = len(answers) - 1, list[Tensor]()
        step = head.chunk_rows(decoder, teacher.device)
        for low in range(0, len(teacher), step):
            wanted = decoder.leave(teacher[low : low + step])
            for _, states in answers[1:]:
                found.append(divergence(wanted, decoder.leave(states[low : low + step])))
        return Later(found, lambda them: [sum(map(float, them[i::n])) for i in range(n)])

    def split(self) -> Sequence[_Divergence]:
        return self.halves()
