"""FLOPs that training takes, from shapes: 2 for each weight and token forward, 4 more backward.

Weights are those of :mod:`streamline.engine.budget`. A frozen weight that gradients pass takes 2
backward. What a token takes is said once, for what was done and for plans; plans add what layers
in parts run once more, which a record does not: it has what a training takes wherever it is done.

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

__all__ = [
    "adapters_token", "adapting_flops", "again_token", "distilled_token", "distilling_flops",
    "loss_token", "replacing_flops", "states_token", "writing_flops",
]  # fmt: skip


def states_token(teacher: float, own: float) -> float:
    """A token of replacements that learn states: the teacher forward, they forward and back."""
    return 2 * teacher + 6 * own


def loss_token(forward: float, passed: float, own: float) -> float:
    """A token of the language-model loss: all forward, and back to what is trained."""
    return 2 * forward + 2 * passed + 2 * own


def adapters_token(frozen: float, adapters: float) -> float:
    """A token of LoRA: frozen weights forward and passed backward, adapters trained."""
    return 4 * frozen + 6 * adapters


def distilled_token(teacher: float, student: float, adapters: float, trained: float) -> float:
    """A token of distillation: the teacher forward, the student's own part forward and back."""
    return 2 * teacher + 4 * student + 6 * adapters + 2 * trained


def again_token(weights: float) -> float:
    """A token of layers in parts, which keep nothing for their gradients: once more forward."""
    return 2 * weights


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
        return float(tokens) * states_token(weights(decoder, decoder.layers[:last]), own)
    trained = {id(student.module) for student in students}
    first = next((i for i, node in enumerate(path.nodes) if id(node.module) in trained), 0)
    modules = [node.module for node in path.nodes]
    head = head_weights(decoder)
    forward = weights(decoder, modules) + head
    passed = weights(decoder, modules[first:]) + head
    return float(tokens) * loss_token(forward, passed, own)


def adapting_flops(model: PreTrainedModel, adapters: int, tokens: int) -> float:
    """FLOPs of LoRA fine-tuning: all weights forward and passed backward, the adapters trained.

    Args:
        model: The model.
        adapters: Parameters of the adapters.
        tokens: Training tokens, epochs counted.
    """
    decoder = Decoder(model)
    frozen = weights(decoder, decoder.layers) + head_weights(decoder)
    return float(tokens) * adapters_token(frozen, adapters)


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
    trained = 0 if adapters else matrix_weights(decoder, own)
    return float(tokens) * distilled_token(teacher, weights(decoder, parts), adapters, trained)


def writing_flops(decoder: Decoder, read: int, written: int) -> float:
    """FLOPs of writing texts: all tokens through the layers, the written ones through the head.

    Args:
        decoder: The model that writes.
        read: Tokens of the prompts.
        written: New tokens.
    """
    layers, head = weights(decoder, decoder.layers), head_weights(decoder)
    return 2.0 * ((read + written) * layers + written * head)
