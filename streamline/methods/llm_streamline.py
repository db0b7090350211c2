"""LLM-Streamline: replace the most similar run of layers by one trained network.

The span is the one whose input and output hidden states have the highest mean token cosine among
all spans of its length (:meth:`Calibration.ranked_spans`), or the one without which the loss is
lowest. What replaces it is decided by the variants below; it is trained afterwards by
:mod:`streamline.training.fit`, together with the replacements of every other cell.

Example:
    method = StreamlineLayer(init="first")
    pruned = method.prune(decoder, method.calibrate(decoder, batches), 0.25, batches, seed=0)
    pruned.notes["spans"][:2]        # the chosen span and the runner-up, with their cosines

Reference:
    arXiv:2403.19135, sections 3.3 (layer pruning) and 3.4 (layer replacement).

Differs from the released code: the last depth is the raw output of the last layer, not the state
after the final norm; cosines are summed row by row instead of through a token-by-token matrix;
sampling is seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from streamline.calibration import Calibration
from streamline.engine.budget import Effort, layers_to_remove, reading_flops, statistics_flops
from streamline.engine.decoder import Decoder
from streamline.fields import Count, Fraction
from streamline.method import DepthMethod, Method, Pruned, Size
from streamline.methods.linear_map import LinearFit, linear_maps
from streamline.methods.refitting import Refitting
from streamline.methods.replacement import (
    MAPPED,
    added_parameters,
    blank,
    check_start,
    make,
)
from streamline.methods.spans import (
    Criterion,
    RunnerUp,
    Scored,
    check_runner_up,
    divided,
    ranked_spans,
    ranking_flops,
    span_notes,
)
from streamline.methods.teacher_fits import Fit
from streamline.plan import Plan, Span
from streamline.training.student import Recipe, Student

PAPER = "arXiv:2403.19135"


@dataclass(frozen=True, kw_only=True)
class StreamlineNone(Refitting, DepthMethod):
    """Drop the most similar span, with no replacement.

    Attributes:
        runner_up: 0 for the span of highest cosine, 1 for the next best, and so on: what the
            criterion's near misses would give.
        criterion: ``"cosine"``, the highest of the states at a span's ends; ``"perplexity"``,
            the lowest without the span, on the first 10 calibration sequences of 128 tokens (the
            paper compares both and does not say on how much); or ``"agreement"``, the lowest mean
            rank by cosine over the run's text and each of the six domains of the packaged one (at
            most 16 sequences of 512 tokens of each), of equal ranks the highest mean cosine.
        refit: Whether the layers that are left are refitted in closed form, from the one before the
            span on, so that their states follow the dense model's on the calibration text
            (:mod:`streamline.methods.refit`). The paper does not.

    Reference:
        arXiv:2403.19135, section 3.3 ("None" in the tables).
    """

    name: ClassVar[str] = "llm-streamline-none"
    paper: ClassVar[str] = PAPER
    supports_streaming: ClassVar[bool] = True

    runner_up: RunnerUp = 0
    criterion: Criterion = "cosine"

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        object.__setattr__(self, "by_domain", self.criterion == "agreement")

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        """Drop the span of highest cosine (or the chosen runner-up)."""
        check_runner_up(self.runner_up, calibration.n_layers, n_remove)
        span, _ = calibration.ranked_spans(n_remove)[self.runner_up]
        return Plan.drop(calibration.n_layers, span.layers)

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Drop the best span by the criterion (or the chosen runner-up)."""
        n_remove = layers_to_remove(decoder, sparsity)
        if n_remove == 0 or self.criterion == "cosine":
            pruned = super().prune(decoder, calibration, sparsity, batches, seed)
        else:
            check_runner_up(self.runner_up, decoder.n_layers, n_remove)
            ranked = ranked_spans(decoder, calibration, batches, n_remove, self.criterion)
            plan = Plan.drop(decoder.n_layers, ranked[self.runner_up].span.layers)
            pruned = Pruned(plan, notes=span_notes(ranked))
        return self.with_refit(decoder, pruned, batches)

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """The shared calibration; by perplexity a loss without each span; refitting."""
        n_remove = layers_to_remove(decoder, sparsity)
        ranking = ranking_flops(decoder, n_remove, self.criterion, shape) if n_remove else 0.0
        first = (decoder.n_layers - n_remove) / 2
        refit = self.refit_effort(decoder, n_remove, first, shape)
        calibrated = statistics_flops(decoder, math.prod(shape))
        return Effort(calibrated, ranking + refit.prune, algebra=refit.algebra)

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """The count from the layers that would go.

        Raises:
            UnsupportedModelError: If the model has no such runner-up.
        """
        n_remove = layers_to_remove(decoder, sparsity)
        check_runner_up(self.runner_up, decoder.n_layers, n_remove)
        return Size.without(decoder, n_remove)

    def explain(self, calibration: Calibration, n_remove: int) -> dict[str, Any]:
        """The chosen span and its runners-up."""
        return span_notes([Scored(*pair) for pair in calibration.ranked_spans(n_remove)])


@dataclass(frozen=True, kw_only=True)
class StreamlineReplacement(Method):
    """Layer pruning and replacement by one network, trained on hidden states.

    Attributes:
        init: How the network starts: of a network of linear maps ``"random"``, as
            released; ``"linear"``, the map of least squares from the span's input to its output on
            the calibration text; ``"weighted"``, the same with each token's error over the size of
            its target, as training has it with ``normalize``; or ``"identity"``.
        residual: Whether the network learns the span's increment instead of its output. The
            released networks learn the output.
        runner_up: 0 for the best span by the criterion, 1 for the next best, and so on.
        criterion: As of :class:`StreamlineNone`.
        n_replacements: Networks that stand for the span, each for its part of the layers (alike in
            number, the first parts have the odd ones): with the squared error each is trained to
            the states at its own part's end, with the language-model loss all are trained as one.
            The authors' Llama-3.1-5.4B has two decoder layers for fourteen.
        share: Fraction of the run's training tokens that it is trained on; 0 leaves it as it
            starts, and nothing is trained.
        recipe: How it is trained; a run uses its own, so it is no part of the name.
    """

    paper: ClassVar[str] = PAPER
    trains: ClassVar[bool] = True
    supports_streaming: ClassVar[bool] = True
    kind: ClassVar[str]

    init: str = "random"
    residual: bool = False
    runner_up: RunnerUp = 0
    criterion: Criterion = "cosine"
    n_replacements: Count = 1
    share: Fraction = 1.0
    recipe: Recipe = field(default_factory=Recipe, repr=False)

    def __post_init__(self) -> None:
        """Check the fields, and that the network can start as it is to."""
        super().__post_init__()
        check_start(self.kind, self.init, self.residual)
        object.__setattr__(self, "trains", self.share > 0)
        object.__setattr__(self, "by_domain", self.criterion == "agreement")

    def _added(self, decoder: Decoder) -> Callable[[int], int]:
        one = added_parameters(self.kind, decoder, norm=self._norm)
        return lambda n: sum(one(len(part)) for part in self._parts(Span(0, n)))

    def _parts(self, span: Span) -> list[Span]:
        """What each network stands for; no more networks than layers."""
        return divided(span, min(self.n_replacements, len(span))) if len(span) else []

    @property
    def _norm(self) -> bool:
        """Whether the network has a norm of its own."""
        return False

    def n_remove(self, decoder: Decoder, sparsity: float) -> int:
        """How many layers the network replaces at a sparsity."""
        return layers_to_remove(decoder, sparsity, self._added(decoder))

    def fits(self, decoder: Decoder, calibration: Calibration, sparsity: float) -> list[Fit]:
        """The linear maps that the networks start from; of a span that is known by cosine alone."""
        n_remove = self.n_remove(decoder, sparsity)
        if self.init not in MAPPED or self.criterion != "cosine" or n_remove == 0:
            return []
        span, _ = calibration.ranked_spans(n_remove)[self.runner_up]
        weighted = self.init == "weighted"
        return [LinearFit(part, weighted=weighted) for part in self._parts(span)]

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Choose the span, make the network, and leave its training to the training stage."""
        n_remove = self.n_remove(decoder, sparsity)
        if n_remove == 0:
            return Pruned(Plan.dense(decoder.n_layers))
        check_runner_up(self.runner_up, decoder.n_layers, n_remove)
        ranked = ranked_spans(decoder, calibration, batches, n_remove, self.criterion)
        span = ranked[self.runner_up].span
        parts = self._parts(span)
        maps = {}
        if self.init in MAPPED:
            maps = linear_maps(decoder, parts, batches, weighted=self.init == "weighted")
        students = [
            Student(
                part,
                make(
                    self.kind,
                    decoder,
                    part,
                    init=self.init,
                    residual=self.residual,
                    norm=self._norm,
                    seed=seed + index,
                    linear=maps.get(part),
                ),
                self.recipe,
                token_fraction=self.share,
            )
            for index, part in enumerate(parts)
        ]
        modules = {span.start + i: student.module for i, student in enumerate(students)}
        if not self.share:
            for module in modules.values():
                module.requires_grad_(False).to(decoder.dtype)
        return Pruned(
            Plan.replace(decoder.n_layers, parts, self.kind),
            modules=modules,
            students=students if self.share else [],
            notes=span_notes(ranked),
        )

    def networks(self, decoder: Decoder, n_removed: int) -> list[nn.Module]:
        """The networks of its kind, one for each part."""
        parts = self._parts(Span(0, n_removed))
        return [blank(self.kind, decoder, len(part), norm=self._norm) for part in parts]

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """The shared calibration, the choice of the span, and a pass for maps to start from."""
        tokens, n_remove = math.prod(shape), self.n_remove(decoder, sparsity)
        found = ranking_flops(decoder, n_remove, self.criterion, shape) if n_remove else 0.0
        mapped = self.init in MAPPED and n_remove > 0
        if mapped:
            n_maps = len(self._parts(Span(0, n_remove)))
            found += reading_flops(decoder, tokens) + 4.0 * tokens * decoder.hidden_size**2 * n_maps
        return Effort(statistics_flops(decoder, tokens), found, passes=int(mapped))

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """Removed layers, less the network that is added.

        Raises:
            UnsupportedModelError: If the model has no such runner-up.
        """
        n_remove = self.n_remove(decoder, sparsity)
        check_runner_up(self.runner_up, decoder.n_layers, n_remove)
        return Size.without(decoder, n_remove, self._added(decoder)(n_remove))


@dataclass(frozen=True, kw_only=True)
class StreamlineFFN(StreamlineReplacement):
    """Replace the most similar span by an FFN d-4d-d.

    It has a ReLU.

    Reference:
        arXiv:2403.19135 (later versions), "FFN"; no residual and no norm, as released.
    """

    name: ClassVar[str] = "llm-streamline-ffn"
    kind: ClassVar[str] = "ffn"


@dataclass(frozen=True, kw_only=True)
class StreamlineSwiGLU(StreamlineReplacement):
    """Replace the most similar span by one gated MLP.

    Its intermediate size is the model's own.

    Attributes:
        norm: Whether an RMS norm comes before it. With ``residual`` too it is a decoder block
            without attention, which serving engines know; the released network has neither.

    Reference:
        arXiv:2403.19135 (later versions), "SwiGLU".
    """

    name: ClassVar[str] = "llm-streamline-swiglu"
    kind: ClassVar[str] = "swiglu"

    norm: bool = False

    @property
    def _norm(self) -> bool:
        return self.norm


@dataclass(frozen=True, kw_only=True)
class StreamlineLayer(StreamlineReplacement):
    """Replace the most similar span by one decoder layer.

    It starts from the span's first layer, unless ``init`` is another one.

    Attributes:
        init: ``"first"``, ``"last"``, ``"mean"`` of the span's layers, or ``"random"``.

    Reference:
        arXiv:2403.19135 (later versions), "Layer-First" and its alternatives.

    Differs from the released code: OPT's layer is initialised like any other (released: left
    random by a misspelt name), and the layer is causal while it is trained.
    """

    name: ClassVar[str] = "llm-streamline-layer"
    kind: ClassVar[str] = "layer"

    init: Literal["first", "last", "mean", "random"] = "first"
