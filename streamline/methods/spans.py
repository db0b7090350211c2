"""Which span of layers can best be spared, and how it is divided among several networks.

Example::

    ranked = ranked_spans(decoder, calibration, batches, 9, "cosine")
    divided(ranked[0].span, 2)              # Span(21, 30) as [21, 26) and [26, 30)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from streamline.calibration import Calibration
from streamline.engine.budget import statistics_flops, trials_flops
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, dense_path
from streamline.errors import ConfigError, UnsupportedModelError
from streamline.fields import Natural
from streamline.method import Pruned
from streamline.methods.loss import loss_sample, path_losses, sample_shape
from streamline.plan import Plan, Span
from streamline.sources.batches import OF_DOMAIN
from streamline.sources.packaged import DOMAINS

__all__ = [
    "Criterion",
    "RunnerUp",
    "Scored",
    "check_runner_up",
    "divided",
    "ranked_spans",
    "ranking_flops",
    "span_notes",
]

#: How many spans beside the chosen one are kept in the notes.
N_RUNNERS_UP = 4


#: Which of the next best spans is taken; no model has as many layers.
RunnerUp = Annotated[Natural, Field(le=255)]


#: What the span is chosen by.
Criterion = Literal["cosine", "perplexity", "agreement"]
#: Calibration sequences, and tokens of each, that a loss is measured on.
LOSS_SAMPLE = (10, 128)


@dataclass(frozen=True)
class Scored:
    """A span, and how well it can be spared.

    Attributes:
        span: The layers.
        cosine: Mean token cosine of the states at its two ends.
        loss: Mean loss per token of the model without it, in nats; None where it was not asked.
        ranks: Its rank by cosine on each of several texts, 1 for the highest; likewise.
    """

    span: Span
    cosine: float
    loss: float | None = None
    ranks: tuple[int, ...] | None = None

    def note(self) -> dict[str, Any]:
        """As JSON."""
        found = {"span": [self.span.start, self.span.stop], "cosine": round(self.cosine, 6)}
        if self.loss is not None:
            found["loss"] = round(self.loss, 6)
        return found if self.ranks is None else found | {"ranks": list(self.ranks)}


def ranked_spans(
    decoder: Decoder, calibration: Calibration, batches: Tensor, length: int, criterion: Criterion
) -> list[Scored]:
    """Every span of a length, the one that can best be spared first.

    Args:
        decoder: The dense model.
        calibration: Its statistics.
        batches: Calibration tokens, [N, T]; the first of them for a loss (:data:`LOSS_SAMPLE`).
        length: Layers in the span.
        criterion: ``"cosine"``, the highest; ``"perplexity"``, the lowest without the span; or
            ``"agreement"``, the lowest mean over several texts of its rank by cosine, of equal ones
            the highest mean cosine.

    Raises:
        ConfigError: If only one text was measured, and they are to agree.
    """
    if criterion == "agreement":
        return _agreed(calibration, length)
    ranked = [Scored(span, cosine) for span, cosine in calibration.ranked_spans(length)]
    if criterion == "cosine":
        return ranked
    ranked.sort(key=lambda one: one.span.start)
    paths = [
        Pruned(Plan.drop(decoder.n_layers, one.span.layers)).path(decoder, f"without {one.span}")
        for one in ranked
    ]
    losses = path_losses(paths, loss_sample(batches, *LOSS_SAMPLE))
    found = [Scored(one.span, one.cosine, x) for one, x in zip(ranked, losses, strict=True)]
    return sorted(found, key=lambda one: one.loss or 0.0)


def _agreed(calibration: Calibration, length: int) -> list[Scored]:
    """Every span, the one first on which the texts of a calibration agree most."""
    texts = [replace(calibration, cosine=cosine) for cosine in calibration.cosines]
    if len(texts) < 2:
        raise ConfigError(
            "criterion=agreement goes by several texts, and this calibration is of one: give "
            "calibration.beside(others), as a run and streamline.prune do"
        )
    ranks: dict[Span, list[int]] = {}
    cosines: dict[Span, list[float]] = {}
    for text in texts:
        for rank, (span, cosine) in enumerate(text.ranked_spans(length), 1):
            ranks.setdefault(span, []).append(rank)
            cosines.setdefault(span, []).append(cosine)
    found = [
        Scored(span, cosine, ranks=tuple(ranks[span]))
        for span, cosine in calibration.ranked_spans(length)
    ]

    def order(one: Scored) -> tuple[float, float, int]:
        return sum(ranks[one.span]), -math.fsum(cosines[one.span]), one.span.start

    return sorted(found, key=order)


def ranking_flops(
    decoder: Decoder, length: int, criterion: Criterion, shape: tuple[int, int]
) -> float:
    """FLOPs of :func:`ranked_spans`; none by cosine, which calibration has measured.

    By agreement those of measuring each domain, as if nothing else needed it.

    Args:
        decoder: The dense model.
        length: Layers in the span.
        criterion: As there.
        shape: Calibration sequences, and tokens of each.
    """
    if criterion == "cosine":
        return 0.0
    if criterion == "agreement":
        tokens = math.prod(min(own, most) for own, most in zip(shape, OF_DOMAIN, strict=True))
        return len(DOMAINS) * statistics_flops(decoder, tokens)
    nodes = dense_path(decoder).nodes
    starts = range(decoder.n_layers - length + 1)
    paths = [Path(decoder, (*nodes[:s], *nodes[s + length :])) for s in starts]
    return trials_flops(paths, math.prod(sample_shape(shape, *LOSS_SAMPLE)))


def divided(span: Span, parts: int) -> list[Span]:
    """A span in parts that follow each other, alike in length; the first ones may have one more."""
    size, more = divmod(len(span), parts)
    ends = [span.start + size * i + min(i, more) for i in range(parts + 1)]
    return [Span(start, stop) for start, stop in zip(ends, ends[1:], strict=False)]


def check_runner_up(runner_up: int, n_layers: int, length: int) -> None:
    """Refuse a runner-up that a model does not have.

    Raises:
        UnsupportedModelError: If spans of this length are fewer.
    """
    n_spans = n_layers - length + 1
    if length and runner_up >= n_spans:
        raise UnsupportedModelError(
            f"runner_up={runner_up} is too large: there are {n_spans} spans of {length} layers"
        )


def span_notes(ranked: Sequence[Scored]) -> dict[str, Any]:
    """The best spans with their scores, as JSON."""
    return {"spans": [one.note() for one in ranked[: 1 + N_RUNNERS_UP]]}
