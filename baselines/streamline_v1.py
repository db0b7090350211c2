"""The comparison set of LLM-Streamline's first version: what replaces the span.

Five methods that differ in the network alone: an MLP d-2d-d or a decoder layer, once or applied
once per removed layer with shared parameters, or one MLP for each removed layer. The sixth of the
set, nothing with LoRA of as many trained parameters, is ``llm-streamline-none`` with
``--recovery lora``.

The first version trains on 20,000 samples of 2048 tokens (the length is not stated) in batches of
2,048 (of what is not stated; read as tokens, since 2,048 samples would leave 49 steps) at 1e-3 for
five epochs. A run trains all its replacements by its own settings, so that they are compared on the
same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import Tensor, nn

from streamline.calibration import Calibration
from streamline.engine.decoder import Decoder
from streamline.method import Pruned
from streamline.methods.llm_streamline import StreamlineReplacement
from streamline.methods.replacement import blank
from streamline.modeling.modeling_layers import Stack
from streamline.plan import Span
from streamline.training.student import Recipe

#: Tokens of a training sequence; the first version counts samples and does not give their length.
_LENGTH = 2048


def v1_recipe() -> Recipe:
    """20,000 samples in steps of 2,048 tokens at 1e-3 for five epochs, as for Llama-2-7B.

    For OPT-1.3B and 2.7B the first version uses 3,000 samples in batches of 512 at 4e-4. It does
    not say what a batch of 2,048 counts; 2,048 samples would leave 49 steps, in which a random
    network learns nothing at this rate, so it is read as tokens, here and in the suites. What else
    it leaves open (schedule, weight decay, clipping) is as in the later release.
    """
    return Recipe(
        n_tokens=20_000 * _LENGTH,
        length=_LENGTH,
        batch_tokens=2_048,
        epochs=5,
        learning_rate=1e-3,
        final_learning_rate=2.5e-4,
        normalize=False,
    )


@dataclass(frozen=True, kw_only=True)
class StreamlineV1MLP(StreamlineReplacement):
    """Replace the span by one MLP d-2d-d with ReLU.

    Reference:
        arXiv:2403.19135, first version, sections 4.3 and 5, appendix B; its counts fit 4 d^2.

    Differs from the paper:
        Activation, bias and residual are not stated there; they are as in the later release (ReLU,
        bias, no residual). The post-training of the inserted MLP alone, which it does for OPT-1.3B
        and 2.7B, is a stage of a run (``training: post_train:``) and not part of the method.
    """

    name: ClassVar[str] = "streamline-v1-mlp"
    kind: ClassVar[str] = "mlp"

    recipe: Recipe = field(default_factory=v1_recipe, repr=False)


@dataclass(frozen=True, kw_only=True)
class StreamlineV1MLPShared(StreamlineReplacement):
    """One MLP d-2d-d, applied once per removed layer.

    Reference:
        arXiv:2403.19135, first version, Table 5 (MLP with parameter sharing).
    """

    name: ClassVar[str] = "streamline-v1-mlp-shared"
    kind: ClassVar[str] = "shared-mlp"

    recipe: Recipe = field(default_factory=v1_recipe, repr=False)


@dataclass(frozen=True, kw_only=True)
class StreamlineV1MultipleMLP(StreamlineReplacement):
    """One MLP d-2d-d of its own for each removed layer.

    Each is fitted to its own layer ("multiple MLP").

    Reference:
        arXiv:2403.19135, first version, section 5 and Table 6.
    """

    name: ClassVar[str] = "streamline-v1-multiple-mlp"
    kind: ClassVar[str] = "multiple-mlp"

    recipe: Recipe = field(default_factory=v1_recipe, repr=False)

    def networks(self, decoder: Decoder, n_removed: int) -> list[nn.Module]:
        """One MLP for each layer, each with an optimiser of its own."""
        return [blank("mlp", decoder, 1) for _ in range(n_removed)]

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Choose the span and make one student for each of its layers."""
        pruned = super().prune(decoder, calibration, sparsity, batches, seed)
        students = []
        for student in pruned.students:
            assert isinstance(student.module, Stack)
            for layer, part in zip(student.span.layers, student.module.sequence(), strict=True):
                students.append(replace(student, span=Span(layer, layer + 1), module=part))
        return replace(pruned, students=students)


@dataclass(frozen=True, kw_only=True)
class StreamlineV1Layer(StreamlineReplacement):
    """Replace the span by one new decoder layer.

    Attributes:
        init: ``"random"`` as for the MLP it is compared with (the first version does not say how
            the layer starts); ``"first"``, ``"last"`` and ``"mean"`` start from the span's layers.

    Reference:
        arXiv:2403.19135, first version, Table 5 (transformer layer).
    """

    name: ClassVar[str] = "streamline-v1-layer"
    kind: ClassVar[str] = "layer"

    init: Literal["first", "last", "mean", "random"] = "random"
    recipe: Recipe = field(default_factory=v1_recipe, repr=False)


@dataclass(frozen=True, kw_only=True)
class StreamlineV1LayerShared(StreamlineReplacement):
    """One new decoder layer, run once per removed layer.

    Attributes:
        init: As for :class:`StreamlineV1Layer`.

    Reference:
        arXiv:2403.19135, first version, Table 5 (transformer layer with sharing).
    """

    name: ClassVar[str] = "streamline-v1-layer-shared"
    kind: ClassVar[str] = "shared-layer"

    init: Literal["first", "last", "mean", "random"] = "random"
    recipe: Recipe = field(default_factory=v1_recipe, repr=False)
