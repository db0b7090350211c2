"""What is to be trained and how: a student, and the recipe that trains it.

Plain values; nothing here imports torch.

Example::

    Recipe(n_tokens=30_000, epochs=1).seen_tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streamline.plan import Span
from streamline.sources.mixing import tokens_per_document

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Objective", "Positive", "PostTraining", "Recipe", "Student", "documents_alone"]

Objective = Literal["mse", "lm"]

Positive = Annotated[int, Field(ge=1, lt=2**63)]
_Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Peak = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]

_LARGE = 1_000_000_000  # parameters of a model that a trial's training does not suit
_ENOUGH = 10_000_000  # training tokens


def documents_alone(values: Any) -> Any:
    """Settings in which a number of documents stands in the place of the default of tokens."""
    if isinstance(values, Mapping) and values.get("n_documents") is not None:
        return {"n_tokens": None, **values}
    return values


class PostTraining(BaseModel):
    """A second training of the replacements, on the next-token loss of the whole pruned model.

    It resumes from what the first training made, on the first of the same tokens; what is not given
    here is the first training's.

    Reference:
        LLM-Streamline, arXiv:2403.19135, first version: the inserted network of OPT-1.3B and
        OPT-2.7B is post-trained alone; its settings are not stated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_tokens: Positive | None = Field(
        None, description="Distinct tokens; none for the training's, which it must not exceed."
    )
    epochs: Positive = Field(1, description="Passes over the tokens.")
    batch_tokens: Positive | None = Field(
        None, description="Tokens of an optimiser step; none for the training's."
    )
    learning_rate: _Peak = Field(1e-4, description="Peak learning rate.")
    final_learning_rate: _Rate = Field(1e-5, description="Learning rate at the last step.")
    weight_decay: _Rate | None = Field(
        None, description="AdamW's weight decay; none for the training's."
    )
    betas: _Betas | None = Field(
        None,
        description="AdamW's betas (the paper's released code: 0.9, 0.95); else the training's.",
    )
    clip: _Peak | None = Field(None, description="Largest gradient norm; none for the training's.")


class Recipe(BaseModel):
    """How replacements are trained, and on what.

    The defaults are a trial's, small enough for a CPU; a run takes what the paper states where the
    device allows (:mod:`streamline.run.deciding`), and a suite for the paper's models sets it. The
    squared error of a few tokens can be hundreds of times that of the others, and a network on a
    small budget then learns nothing else: ``normalize`` divides it by the token's own size. With
    it, steps of 1,024 tokens and a peak of 1e-3 the two networks that replace 5 and 10 layers of
    SmolLM2-135M have perplexities of 177 and 184 (FFN) and 131 and 174 (SwiGLU) after 100,000
    tokens; on the plain error in steps of 2,048 at 3e-4 it was 295 and 71,637, and 3,042 and 356,
    after 200,000.

    Reference:
        LLM-Streamline, arXiv:2403.19135, section 3.4 (layer replacement); ``normalize`` goes
        beyond it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    texts: str | None = Field(None, description="Training text; none for the calibration's.")
    objective: Objective = Field(
        "mse",
        description="What replacements are trained on: mse (of hidden states, as the paper) or lm "
        "(the language-model loss of the pruned model).",
    )
    normalize: bool = Field(
        True, description="Divide each token's squared error by its target's mean square."
    )
    n_tokens: Positive | None = Field(
        100_000, description="Tokens that replacements are trained on; else 100,000."
    )
    n_documents: Positive | None = Field(
        None,
        description="Documents that replacements are trained on, in place of n_tokens; their "
        "tokens are counted when they are loaded.",
    )
    length: Annotated[int, Field(ge=2)] = Field(512, description="Tokens of each sequence.")
    epochs: Positive = Field(2, description="Passes over the training tokens.")
    batch_tokens: Positive = Field(
        1_024, description="Tokens of an optimiser step; gradients are accumulated to it."
    )
    learning_rate: _Peak = Field(1e-3, description="Peak learning rate.")
    final_learning_rate: _Rate = Field(1e-4, description="Learning rate at the last step.")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="Share of all steps for the linear warm-up."
    )
    weight_decay: _Rate = Field(1e-3, description="AdamW's weight decay.")
    betas: _Betas = Field(
        (0.9, 0.999), description="AdamW's betas; the released code's lm objective has 0.9, 0.95."
    )
    clip: _Peak = Field(5.0, description="Largest gradient norm of a student.")
    validation_tokens: Positive = Field(
        8_192, description="Tokens kept apart for the validation loss."
    )
    evaluations: Annotated[int, Field(ge=0)] = Field(
        4, description="How often it is measured during training, beside before and after."
    )
    cache_bytes: Annotated[int, Field(ge=0)] = Field(
        0, description="Disk for teacher activations when epochs repeat; 0 for no cache."
    )
    post_train: PostTraining | None = Field(
        None, description="A second training on the next-token loss; none for one training."
    )

    @model_validator(mode="before")
    @classmethod
    def _documents_alone(cls, values: Any) -> Any:
        return documents_alone(values)

    @model_validator(mode="after")
    def _check_budgets(self) -> Recipe:
        if (self.n_tokens is None) == (self.n_documents is None):
            raise ValueError("give n_tokens or n_documents, one of the two")
        wanted = self.post_train.n_tokens if self.post_train else None
        if wanted is not None and isinstance(self.n_tokens, int) and wanted > self.n_tokens:
            raise ValueError(
                f"post_train takes the first of the training's tokens: n_tokens {wanted} is more "
                f"than its {self.n_tokens}"
            )
        return self

    def stages(self) -> list[Recipe]:
        """The trainings of a replacement, one after the other."""
        first = self.model_copy(update={"post_train": None})
        if self.post_train is None:
            return [first]
        changes = {k: v for k, v in self.post_train.model_dump().items() if v is not None}
        if "n_tokens" in changes:
            changes["n_documents"] = None
        return [first, first.model_copy(update={"objective": "lm", **changes})]

    def decisive(self) -> dict[str, Any]:
        """The fields that decide what one training makes of given tokens, as plain values."""
        left_out = {"texts", "cache_bytes", "post_train", "n_documents"}
        return self.model_dump(mode="json", exclude=left_out)

    def counted(self, n_tokens: int) -> Recipe:
        """The recipe with the tokens that its documents were found to have."""
        return self.model_copy(update={"n_tokens": n_tokens, "n_documents": None})

    @property
    def distinct_tokens(self) -> int:
        """Tokens that replacements are trained on; of documents that are not counted yet, about."""
        if self.n_tokens is not None:
            return self.n_tokens
        return (self.n_documents or 0) * tokens_per_document(self.texts)

    @property
    def seen_tokens(self) -> int:
        """Training tokens that a replacement sees, epochs and stages counted."""
        return sum(recipe.distinct_tokens * recipe.epochs for recipe in self.stages())

    def too_few(self, n_parameters: int) -> str | None:
        """A warning for a large model that would get a trial's training, or None."""
        if n_parameters < _LARGE or self.seen_tokens >= _ENOUGH:
            return None
        return (
            f"replacements see {self.seen_tokens:,} training tokens, enough for a trial; "
            "published results need tens of millions: give --train-tokens, or a suite with its own"
        )


@dataclass
class Student:
    """A replacement that has still to be trained.

    Attributes:
        span: The layers it learns to replace.
        module: The network, called like a layer; trained in place.
        recipe: How it is to be trained.
        token_fraction: Fraction of the recipe's training tokens that it sees.
    """

    span: Span
    module: nn.Module
    recipe: Recipe
    token_fraction: float = 1.0

    def apply(self, recipe: Recipe) -> None:
        """Train by a recipe from now on, on this student's fraction of its tokens."""
        self.recipe = recipe.counted(max(1, round(recipe.distinct_tokens * self.token_fraction)))
