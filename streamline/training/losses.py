"""How a training went, as a run records it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from streamline.errors import NotFiniteError
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.lora_recipe import LoraRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["MOST_SKIPPED", "FineTuned", "Losses", "finite"]

#: The part of the steps that may be left out; a training that lost more came to nothing.
MOST_SKIPPED = 0.5


@dataclass
class Losses:
    """How a training went.

    Attributes:
        label: Name of its files.
        objective: ``"mse"`` or ``"lm"``.
        spans: The spans that were replaced, as ``[start, stop]``.
        n_parameters: Trained parameters.
        tokens: Training tokens seen, epochs counted.
        before: Validation loss before training.
        after: Validation loss after the last step.
        best: Lowest validation loss: that of the weights which were kept.
        best_step: The step they come from.
        dropping: Validation loss of leaving the span out; None for the LM objective.
        seconds: Time spent, with its part of passes that others use too.
        skipped_steps: Steps left out because their gradient was not finite.
        rows: One entry per optimiser step, as in the JSON lines file.
        not_finite: What was not finite, if the training came to nothing: the validation loss at a
            step, at which it ended, or the gradient of more than half of all steps.
    """

    label: str
    objective: str
    spans: list[list[int]]
    n_parameters: int
    tokens: int
    before: float
    after: float
    best: float
    best_step: int
    dropping: float | None
    seconds: float
    skipped_steps: int
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)
    not_finite: str | None = None

    @property
    def relative(self) -> float | None:
        """Best validation loss over that of leaving the span out; below 1 is a gain."""
        return None if not self.dropping else self.best / self.dropping

    def require_finite(self, what: str) -> None:
        """Refuse a training that came to nothing.

        Raises:
            NotFiniteError: With the layers and what was not finite.
        """
        if self.not_finite is not None:
            spans = ", ".join(f"{start} to {stop - 1}" for start, stop in self.spans)
            raise NotFiniteError(
                f"train {what}: {self.not_finite} of what replaces the layers {spans} is not "
                "finite: the model's states or the training overflow; take bfloat16 for "
                "a float16 model, or a lower learning rate"
            )

    def summary(self) -> dict[str, Any]:
        """Everything but the rows, as a JSON object."""
        data = asdict(self) | {"relative": self.relative}
        del data["rows"], data["not_finite"]
        return {k: finite(v) for k, v in data.items()}


def finite(value: Any) -> Any:
    """A value, or None for a float that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass
class FineTuned:
    """What recovery made of a model.

    Attributes:
        model: The model with the adapters merged into its weights.
        recipe: The recipe that was used, with its rank.
        trained_parameters: Parameters of the adapters, or the weights that were trained.
        tokens: Training tokens seen, epochs counted, padding not.
        n_steps: Optimiser steps.
        seconds: Time spent.
        peak_memory_bytes: Largest memory use of the accelerators; None on a CPU.
        losses: One row per optimiser step, as in the JSON lines file.
        before: Validation loss before, if validation data was given.
        after: Validation loss of the weights that were kept, likewise.
        distillation: How it learnt from the dense model, if it did.
        shared_layers: First layers that ran once for it and the dense model.
        skipped_steps: Steps left out because their gradient was not finite.
    """

    model: PreTrainedModel
    recipe: LoraRecipe
    trained_parameters: int
    tokens: int
    n_steps: int
    seconds: float
    peak_memory_bytes: int | None
    losses: list[dict[str, Any]] = field(default_factory=list, repr=False)
    before: float | None = None
    after: float | None = None
    distillation: DistillationSettings | None = None
    shared_layers: int = 0
    skipped_steps: int = 0

    def summary(self) -> dict[str, Any]:
        """Everything but model and rows, as a JSON object."""
        names = ("trained_parameters", "tokens", "n_steps", "seconds", "peak_memory_bytes")
        taught = (
            {}
            if self.distillation is None
            else {
                "distillation": self.distillation.model_dump(mode="json"),
                "shared_layers": self.shared_layers,
            }
        )
        return {
            "recipe": asdict(self.recipe),
            **taught,
            **{name: getattr(self, name) for name in (*names, "skipped_steps", "before", "after")},
        }
