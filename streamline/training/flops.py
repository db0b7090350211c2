"""FLOPs that training takes, from shapes: 2 for each weight and token forward, 4 more backward.

Weights are those of :mod:`streamline.engine.budget`. A frozen weight that gradients pass takes 2
backward.

Example::

    replacing_flops(decoder, [student], "mse", tokens=100_000)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from streamline.engine.budget import head_weights, matrix_weights, weights
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.paths import Path
from streamline.training.student import Objective, Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["adapting_flops", "distilling_flops", "replacing_flops"]


def replacing_flops(
    decoder: Decoder,
    students: Sequence[Student],
    objective: Objective,
    tokens: int,
    path: Path | None = None,
) -> float:
    """FLOPs of fitting the replacements of one variant, as if it were alone.

    Args:
        decoder: The teacher.
        students: The variant's replacements.
        objective: ``mse``: each learns the teacher's states, which come from its layers up to the
            last span. ``lm``: the whole pruned model is run, and gradients go back to the first.
        tokens: Training tokens, epochs counted.
        path: The pruned model, for ``lm``.
    """
    own = weights(decoder, (student.module for student in students))
    if objective == "mse" or path is None:
        last = max(student.span.stop for student in students)
        return float(tokens) * (2 * weights(decoder, decoder.layers[:last]) + 6 * own)
    trained = {id(student.module) for student in students}
    first = next((i for i, node in enumerate(path.nodes) if id(node.module) in trained), 0)
    modules = [node.module for node in path.nodes]
    head = head_weights(decoder)
    forward = weights(decoder, modules) + head
    passed = weights(decoder, modules[first:]) + head
    return float(tokens) * (2 * forward + 2 * passed + 2 * own)


def adapting_flops(model: PreTrainedModel, adapters: int, tokens: int) -> float:
    """FLOPs of LoRA fine-tuning: all weights forward and passed backward, the adapters trained.

    Args:
        model: The model.
        adapters: Parameters of the adapters.
        tokens: Training tokens, epochs counted.
    """
    decoder = Decoder(model)
    frozen = weights(decoder, decoder.layers) + head_weights(decoder)
    return float(tokens) * (4 * frozen + 6 * adapters)


def distilling_flops(
    model: PreTrainedModel, dense: Decoder, tokens: int, *, shared: int, adapters: int = 0
) -> float:
    """FLOPs of distillation: the dense model forward; the other behind what both have alike, twice.

    Args:
        model: The model that has learnt.
        dense: The teacher.
        tokens: Training tokens, epochs counted.
        shared: First layers that ran once for both.
        adapters: Parameters of the adapters; 0 where weights were trained, which are then those
            that the dense model does not have.
    """
    decoder = Decoder(model)
    parts = [*decoder.layers[shared:], submodule(model, decoder.family.head)]
    teacher = weights(dense, dense.layers) + head_weights(dense)
    known = {id(parameter) for parameter in dense.model.parameters()}
    own = [p for part in parts for p in part.parameters() if id(p) not in known]
    trained = 6 * adapters if adapters else 2 * matrix_weights(decoder, own)
    return float(tokens) * (2 * teacher + 4 * weights(decoder, parts) + trained)
