"""What a run asks of each of its stages: checked values, each with its default.

How replacements are trained is :class:`streamline.training.student.Recipe`, LoRA fine-tuning
:class:`streamline.training.lora_recipe.LoraSettings`, and distillation
:class:`streamline.training.distillation.settings.DistillationSettings`.

Example::

    CalibrationConfig(texts="wikitext2", n_samples=128)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, DirectoryPath, Field

from streamline.evaluation.efficiency.allowance import QUICK_SECONDS
from streamline.run.checks.left_open import left_open
from streamline.run.checks.values import at_home, distinct, one_folder_each
from streamline.run.settings import setting
from streamline.training.student import Positive, Recipe

__all__ = [
    "AUTO", "QUICK", "TRAINING_AUTO", "CalibrationConfig", "Matrix", "MethodConfig", "Names",
    "PerplexityConfig", "Positive", "ThereFolder", "TrainingConfig", "parts",
]  # fmt: skip


def parts(text: str) -> list[str]:
    """What stands between the commas of a text; a comma in brackets divides nothing."""
    return [part.strip() for part in re.split(r",(?![^\[\]]*\])", text) if part.strip()]


def _several(value: Any) -> Any:
    """Turn ``"a,b"`` or a single value into a list; lists stay.

    Raises:
        ValueError: If it is empty.
    """
    items = parts(value) if isinstance(value, str) else value
    items = [items] if isinstance(items, (int, float)) else items
    if isinstance(items, (list, tuple)) and not items:
        raise ValueError("at least one value is needed")
    return items


#: What several values of a setting have in common: one text with commas, each value once.
Several = (BeforeValidator(_several), AfterValidator(distinct))
Sparsity = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], *Several]
ThereFolder = Annotated[DirectoryPath, BeforeValidator(at_home)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Sparsities = Annotated[tuple[Sparsity, ...], *Several]
Recoveries = Annotated[tuple[Literal["none", "lora", "kd"], ...], *Several]


def _none_is_zero(value: Any) -> Any:
    """Turn ``none`` into 0; all else stays."""
    return 0 if value == "none" else value


class Strict(BaseModel):
    """A frozen value that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CalibrationConfig(Strict):
    """The text that methods look at before they decide."""

    texts: str = Field(
        "auto",
        description="Calibration text: auto (slimpajama where the hub answers, else packaged), "
        "another known name, or a file; samples are drawn at random from a large part of it.",
    )
    n_samples: Positive = Field(64, description="Samples of calibration text; else 64.")
    length: Annotated[int, Field(ge=2)] = Field(512, description="Tokens of each sample.")


class PerplexityConfig(Strict):
    """The held-out text whose perplexity is in the summary."""

    texts: str = Field(
        "auto",
        description="Held-out text: auto (wikitext2 where the hub answers, else packaged:heldout), "
        "another known name, or a file.",
    )
    n_tokens: Annotated[int, Field(ge=0), BeforeValidator(_none_is_zero)] = Field(
        16_384, description="Tokens whose perplexity is measured, or none; else 16,384."
    )
    length: Annotated[int, Field(ge=2)] = Field(512, description="Tokens of each window.")


#: Fields of a training that a run leaves open; what each becomes: `streamline.run.deciding`.
TRAINING_AUTO = (
    "n_tokens", "length", "epochs", "batch_tokens", "learning_rate", "final_learning_rate",
    "warmup", "normalize", "validation_tokens", "evaluations",
)  # fmt: skip

#: Every setting that may be left open, in the order in which they are decided.
AUTO = (
    "dtype", "calibration.texts", "perplexity.texts", "calibration.length", "perplexity.length",
    *(f"training.{name}" for name in TRAINING_AUTO),
)  # fmt: skip

if TYPE_CHECKING:  # what they are once everything is decided
    TrainingConfig = Recipe
else:
    CalibrationConfig = left_open("CalibrationConfig", __name__, CalibrationConfig, "length")
    PerplexityConfig = left_open("PerplexityConfig", __name__, PerplexityConfig, "length")
    TrainingConfig = left_open("TrainingConfig", __name__, Recipe, *TRAINING_AUTO)


class MethodConfig(Strict):
    """What a run asks of one method in place of what it asks of all.

    A table that compares replacements at one number of layers needs it: what a replacement adds
    decides which sparsity that number is.
    """

    sparsities: Sparsities | None = Field(None, description="Its own; none for the run's.")
    recovery: Recoveries | None = Field(
        None, description="Its own stages after pruning; none for the run's."
    )


class Matrix(Strict):
    """The cells of a run, and the questions that each is asked."""

    models: Annotated[Names, AfterValidator(one_folder_each)] = setting(
        ..., "Aliases, hub ids or local folders, with commas between.", flag="--models"
    )
    methods: Names = setting(
        ...,
        "Names, `pkg.module:Class`, or `all`, with commas between; NAME+FIELD=VALUE sets a field.",
        flag="--methods",
        per_model=True,
    )
    sparsities: Sparsities = setting(
        (0.25,),
        "Fractions of all parameters to remove, such as 0.15,0.25; else 0.25.",
        flag="--sparsities",
        per_model=True,
    )
    tasks: Names = setting(
        ("commonsense",),
        "Tasks and groups, with commas between; else commonsense.",
        flag="--tasks",
        keyed=True,
    )
    limit: Positive | None = setting(
        None,
        "Questions of each task, shared among its subjects; else all.",
        flag="--limit",
        metavar="N",
        keyed=True,
    )
    seeds: Annotated[tuple[Seed, ...], *Several] = setting(
        (0,), "Seeds, with commas between; each is a cell of its own.", flag="--seed"
    )
    recovery: Recoveries = setting(
        ("none",),
        "Stages after pruning: none, lora, kd (distillation), or several.",
        flag="--recovery",
    )


#: What a trial sets; flags win over it, and it wins over a suite.
QUICK: dict[str, Any] = {
    "limit": 10,
    "calibration": {"n_samples": 4},
    "training": {"n_tokens": 8_192, "epochs": 1, "validation_tokens": 2_048, "evaluations": 1},
    "lora": {"n_tokens": 8_192},
    "perplexity": {"n_tokens": 1_024},
    "efficiency_seconds": QUICK_SECONDS,
}
