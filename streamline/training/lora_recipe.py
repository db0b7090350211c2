"""How a pruned model is fine-tuned with LoRA: the numbers, and the papers' settings by name.

Example::

    replace(PRESETS["llm-pruner"], rank=16)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streamline.errors import ConfigError, UnknownNameError
from streamline.sources.mixing import tokens_per_document
from streamline.training.student import Positive, Recipe

__all__ = ["PRESETS", "LoraRecipe", "LoraSettings", "Targets", "recipe_of"]

Targets = Literal["all", "attention", "mlp"]


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """How a pruned model is fine-tuned.

    Attributes:
        rank: Rank of every adapter.
        alpha: Scale of the adapters, divided by the rank.
        dropout: Dropout on the adapters' input.
        targets: Which linear maps of the layers get one: ``"all"``, ``"attention"`` or ``"mlp"``
            (everything that is not attention, replacements included).
        learning_rate: Peak learning rate.
        final_learning_rate: Learning rate at the last step.
        shape: ``"linear"`` or ``"cosine"``.
        warmup_steps: Steps of the warm-up, at most a tenth of the run.
        batch: Sequences of ``length`` per optimiser step; longer or shorter token batches are
            counted by their tokens.
        length: Longest example in tokens.
        epochs: Passes over the data.
        max_steps: Largest number of optimiser steps.
        weight_decay: AdamW's weight decay.
        betas: AdamW's betas.
        clip: Largest gradient norm.
        evaluation_steps: Steps between two validations; None for a few at equal distances.
        patience: Validations in a row without a lower loss after which it ends; None never ends it.
            Both need validation data.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: Targets = "all"
    learning_rate: float = 2e-4
    final_learning_rate: float = 0.0
    shape: Literal["cosine", "linear"] = "cosine"
    warmup_steps: int = 100
    batch: int = 4
    length: int = 512
    epochs: int = 1
    max_steps: int | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    evaluation_steps: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.targets not in ("all", "attention", "mlp"):
            raise ConfigError(
                f"LoRA targets must be 'all', 'attention' or 'mlp', got {self.targets!r}"
            )
        for name in ("rank", "batch", "length", "epochs", "evaluation_steps", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"LoRA {name} must be at least 1, got {value}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"LoRA dropout must be in [0, 1), got {self.dropout}")


class LoraSettings(BaseModel):
    """LoRA fine-tuning after pruning, the same for every method."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = Field("default", description="Name of a recipe (rank, rate, target projections).")
    texts: str | None = Field(
        None,
        description="Training text; none for the replacements'. Instructions with answers (alpaca, "
        "or a jsonl file with instruction and output) are trained on their answers alone.",
    )
    n_tokens: Positive | None = Field(
        None, description="Tokens to train on; none for as many as the replacements get."
    )
    n_documents: Positive | None = Field(
        None,
        description="Documents or examples to train on as often as the preset says, in place of "
        "n_tokens.",
    )
    trained_parameters: Positive | None = Field(
        None,
        description="Solve the rank so that about as many parameters are trained; none for the "
        "preset's own.",
    )
    validation_tokens: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Tokens of the same text kept apart, whose lowest loss decides which weights "
        "are kept, and when a preset with patience (slicegpt) ends; 0 keeps the last.",
    )

    @model_validator(mode="after")
    def _check_budgets(self) -> LoraSettings:
        if self.n_tokens is not None and self.n_documents is not None:
            raise ValueError("give n_tokens or n_documents, one of the two")
        return self

    def amount(self, recipe: Recipe) -> LoraSettings | Recipe:
        """Which of the two says how much is trained on: these settings, if they do."""
        return self if self.n_tokens or self.n_documents else recipe

    def planned_tokens(self, recipe: Recipe) -> int:
        """Training tokens that are seen in all, about, of documents that are not counted yet."""
        if self.n_documents is not None:
            return self.n_documents * tokens_per_document(self.texts or recipe.texts)
        return self.n_tokens or recipe.seen_tokens


#: Recipes of the papers by name, ``default`` for a small budget, ``trial`` for some ten thousand
#: tokens, ``matched`` for the rank that trains a given number of parameters. Where their numbers
#: come from: ``baselines/README.md``.
PRESETS: dict[str, LoraRecipe] = {
    "default": LoraRecipe(),
    "llm-pruner": LoraRecipe(
        learning_rate=1e-4, shape="linear", batch=64, length=256, epochs=2, evaluation_steps=100
    ),
    "matched": LoraRecipe(dropout=0.0),
    "trial": LoraRecipe(rank=16, alpha=32, dropout=0.0, learning_rate=2e-3, batch=1),
    "slicegpt": LoraRecipe(
        rank=32,
        alpha=10,
        shape="linear",
        warmup_steps=400,
        batch=3,
        length=1024,
        weight_decay=1e-2,
        betas=(0.9, 0.95),
        evaluation_steps=16,
        patience=5,
    ),  # fmt: skip
    "uidl": LoraRecipe(
        rank=64, alpha=64, targets="mlp", learning_rate=3e-4, batch=16, length=2048, max_steps=5000
    ),
}


def recipe_of(preset: str | LoraRecipe, trained_parameters: int | None) -> LoraRecipe:
    """The recipe of a name.

    Raises:
        UnknownNameError: If there is no such recipe.
        ConfigError: If ``matched`` has no number to match.
    """
    if isinstance(preset, LoraRecipe):
        return preset
    if preset not in PRESETS:
        raise UnknownNameError(
            f"unknown LoRA preset {preset!r}; choose {', '.join(sorted(PRESETS))} or give a recipe"
        )
    if preset == "matched" and trained_parameters is None:
        raise ConfigError("preset 'matched' needs trained_parameters, the number to match")
    return PRESETS[preset]
