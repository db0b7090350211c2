"""Shortened LLaMA: rank each layer by itself (loss without it, Taylor, magnitude), remove at once.

Three registered methods have one rule: order layers by score. Scores are measured once per model,
so one calibration serves every sparsity.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from streamline.calibration import Calibration, measure
from streamline.engine.budget import Effort, gradient_flops, statistics_flops, trials_flops
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, dense_path
from streamline.fields import Count, Length, Natural
from streamline.hashing import content_key
from streamline.method import DepthMethod
from streamline.methods.loss import loss_sample, sample_shape, score_paths
from streamline.plan import Plan

from ._taylor import absolute_rows, added, each_gradient


def without_each_layer(decoder: Decoder) -> list[Path]:
    """One path per layer: the dense model without it."""
    dense = dense_path(decoder)
    return [dense.without(i, f"without {i}") for i in range(decoder.n_layers)]


@dataclass(frozen=True, kw_only=True)
class ShortenedLlama(DepthMethod):
    """Remove the layers of lowest score, all at once, with no second look.

    Attributes:
        n_samples: Calibration sequences scored.
        length: Tokens of each.
        plus: The "+" rule: the first and last layers are removed only when no other remains.
        keep_first: How many first layers the rule keeps.
        keep_last: How many last layers the rule keeps.

    Reference:
        Shortened LLaMA, arXiv:2402.02834, section 3.
    """

    paper: ClassVar[str] = "arXiv:2402.02834"

    n_samples: Count = 10
    length: Length = 128
    plus: bool = True
    keep_first: Natural = 4
    keep_last: Natural = 2

    @abstractmethod
    def scores(self, decoder: Decoder, tokens: Tensor) -> tuple[list[float], dict[str, Any]]:
        """Score every layer; the lowest is removed first.

        Args:
            decoder: The dense model; left as it was.
            tokens: Token ids, [n_samples, length].

        Returns:
            One score per layer, and JSON facts about the cost.
        """

    def calibration_key(self) -> str:
        """One pass per criterion and sample; the "+" rule is applied afterwards."""
        return f"{self.name}-{content_key([self.n_samples, self.length])[:12]}"

    def calibrate(self, decoder: Decoder, batches: Tensor) -> Calibration:
        """Score each layer, as well as the shared statistics of the same tokens."""
        tokens = loss_sample(batches, self.n_samples, self.length)
        scores, facts = self.scores(decoder, tokens)
        shared = measure(decoder, tokens)
        extras = {"scores": torch.tensor(scores, dtype=torch.float64)}
        return replace(shared, extras=extras, facts=shared.facts | facts)

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort | None:
        """The statistics and the scores of some tokens."""
        tokens = math.prod(sample_shape(shape, self.n_samples, self.length))
        return Effort(statistics_flops(decoder, tokens) + self.scoring_flops(decoder, tokens))

    @abstractmethod
    def scoring_flops(self, decoder: Decoder, tokens: int) -> float:
        """FLOPs of :meth:`scores` on so many tokens."""

    def order(self, calibration: Calibration) -> list[int]:
        """Every layer in the order of its removal."""
        scores = calibration.extras["scores"].tolist()
        n = len(scores)
        kept = {*range(self.keep_first), *range(n - self.keep_last, n)} if self.plus else set()
        return sorted(range(n), key=lambda i: (i in kept, scores[i], i))

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        """Remove the first layers of the order."""
        return Plan.drop(calibration.n_layers, self.order(calibration)[:n_remove])

    def explain(self, calibration: Calibration, n_remove: int) -> dict[str, Any]:
        """Scores, order and cost."""
        return {
            "scores": calibration.extras["scores"].tolist(),
            "order": self.order(calibration),
            **calibration.facts,
        }


@dataclass(frozen=True, kw_only=True)
class ShortenedLlamaPPL(ShortenedLlama):
    """Remove the layers without which the loss is least.

    Differs from the released code:
        It rebuilds the model once per layer; here all variants are evaluated jointly, as one trie.
        It ranks by perplexity, the same order as by loss. It applies the "+" rule to this criterion
        too; the paper does so only for magnitude and Taylor, so it is off here (``plus``).
        Sequences come from the run's calibration texts instead of BookCorpus.
    """

    name: ClassVar[str] = "shortened-llama-ppl"
    supports_streaming: ClassVar[bool] = True

    plus: bool = False

    def scores(self, decoder: Decoder, tokens: Tensor) -> tuple[list[float], dict[str, Any]]:
        """Mean token loss without each layer."""
        found = score_paths(without_each_layer(decoder), tokens)
        return found.losses, {
            "layer_runs": found.layer_runs,
            "naive_layer_runs": found.naive_layer_runs,
        }

    def scoring_flops(self, decoder: Decoder, tokens: int) -> float:
        """A loss without each layer."""
        return trials_flops(without_each_layer(decoder), tokens)


@dataclass(frozen=True, kw_only=True)
class ShortenedLlamaTaylor(ShortenedLlama):
    """Remove the layers of least Taylor importance.

    The score is ``sum |w * dL/dw|`` over a layer's weights ("Taylor+" with the rule). ``L`` is the
    mean token loss of all sequences as one batch, so products are summed with their sign over the
    batch before the absolute value. A layer's weights are its parameters named ``weight``:
    projections and norms; biases are left out, and nothing outside the layers counts.

    Differs from the released code:
        The batch always holds all sequences (released: ``batch_size=10`` with 10 sequences, so
        equal by default). Works wherever a family has its layers; released code groups by names of
        Llama. Sequences come from the run's calibration texts instead of BookCorpus.
    """

    name: ClassVar[str] = "shortened-llama-taylor"

    def scores(self, decoder: Decoder, tokens: Tensor) -> tuple[list[float], dict[str, Any]]:
        """First-order Taylor scores; gradients are used layer by layer and not kept."""
        return taylor_scores(decoder, tokens), {"backward_passes": 1}

    def scoring_flops(self, decoder: Decoder, tokens: int) -> float:
        """One backward pass."""
        return gradient_flops(decoder, tokens)

    def rehearse(self, decoder: Decoder, few: Decoder, batches: Tensor, sparsity: float) -> None:
        """The backward pass: what is kept for it, and one gradient at a time."""
        tokens = loss_sample(batches, self.n_samples, self.length)
        weights = [w for i in range(few.n_layers) for w in layer_weights(few, i)]

        def product(weight: torch.nn.Parameter, gradient: Tensor) -> None:
            (weight.detach().float() * gradient.float()).abs().sum()

        each_gradient(few, tokens, weights, product)


@dataclass(frozen=True, kw_only=True)
class ShortenedLlamaMagnitude(ShortenedLlama):
    """Remove the layers of least weight magnitude.

    The score is ``sum |w|`` over a layer's weights ("Mag+" with the rule). It looks at no data.

    Differs from the released code:
        None known, beside families: a layer's weights are its parameters named ``weight``.
    """

    name: ClassVar[str] = "shortened-llama-magnitude"

    @torch.no_grad()
    def scores(self, decoder: Decoder, tokens: Tensor) -> tuple[list[float], dict[str, Any]]:
        """Sums of absolute weights."""
        return [
            added([absolute_rows(w.detach().float()) for w in layer_weights(decoder, i)])
            for i in range(decoder.n_layers)
        ], {}

    def scoring_flops(self, decoder: Decoder, tokens: int) -> float:
        """None: the weights are added up."""
        return 0.0


def layer_weights(decoder: Decoder, index: int) -> list[torch.nn.Parameter]:
    """The parameters of a layer named ``weight``: all but its biases."""
    named = decoder.layers[index].named_parameters()
    return [parameter for name, parameter in named if name.rpartition(".")[2] == "weight"]


def taylor_scores(decoder: Decoder, tokens: Tensor) -> list[float]:
    """``sum |w * dL/dw|`` of every layer, with ``L`` the mean loss of one batch.

    Args:
        decoder: The dense model; left as it was.
        tokens: Token ids, [N, T].

    Returns:
        One score per layer, at least 0.
    """
    owners = {w: i for i in range(decoder.n_layers) for w in layer_weights(decoder, i)}
    parts: list[list[Tensor]] = [[] for _ in range(decoder.n_layers)]

    def add(weight: torch.nn.Parameter, gradient: Tensor) -> None:
        product = weight.detach().float() * gradient.float()
        parts[owners[weight]].append(absolute_rows(product))

    each_gradient(decoder, tokens, list(owners), add)
    return list(map(added, parts))
