"""What a run asks of each of its stages: checked values, each with its default.

Example::

    TrainingConfig(n_tokens=30_000, epochs=1).recipe()
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from streamline.training.student import Recipe

__all__ = [
    "CalibrationConfig", "HealingConfig", "MethodConfig", "PerplexityConfig", "Positive",
    "PostTrainingConfig", "Recoveries", "Sparsities", "Strict", "TrainingConfig", "distinct",
]  # fmt: skip


def _split(value: Any) -> Any:
    """Turn ``"a,b"`` or a single value into a list; lists stay."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, (int, float)) else value


def distinct(value: Any) -> Any:
    """Refuse an empty list and a value given twice."""
    items = _split(value)
    if isinstance(items, (list, tuple)):
        if not items:
            raise ValueError("at least one value is needed")
        twice = sorted({str(item) for item in items if list(items).count(item) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} given twice")
    return items


Sparsity = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Sparsities = Annotated[tuple[Sparsity, ...], BeforeValidator(distinct)]
Recoveries = Annotated[tuple[Literal["none", "lora"], ...], BeforeValidator(distinct)]
Positive = Annotated[int, Field(ge=1)]


_LARGE = 1_000_000_000  # parameters of a model that a trial's training does not suit
_ENOUGH = 10_000_000  # training tokens


class Strict(BaseModel):
    """A frozen value that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CalibrationConfig(Strict):
    """The text that methods look at before they decide.

    Attributes:
        texts: ``packaged``, ``slimpajama``, ``wikitext2``, or a local jsonl or txt file.
        n_samples: Number of packed samples.
        length: Tokens of each sample.
        proportions: How a mixture's domains are weighed: by tokens (the paper) or by rows (its
            released code).
    """

    texts: str = "packaged"
    n_samples: Positive = 64
    length: Annotated[int, Field(ge=2)] = 512
    proportions: Literal["tokens", "rows"] = "tokens"


class PostTrainingConfig(Strict):
    """A second training of the replacements, on the next-token loss of the whole pruned model.

    It goes on from what the first training made, on the first of the same tokens; every other
    number is the training's.

    Attributes:
        n_tokens: Distinct tokens; None for the training's, which it must not exceed.
        epochs: Passes over them.
        batch_tokens: Tokens of one optimiser step; None for the training's.
        learning_rate: Peak learning rate.
        final_learning_rate: Learning rate at the last step.

    Reference:
        LLM-Streamline, arXiv:2403.19135, first version: the inserted network of OPT-1.3B and
        OPT-2.7B is post-trained alone; its settings are not stated.
    """

    n_tokens: Positive | None = None
    epochs: Positive = 1
    batch_tokens: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    final_learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-5


class TrainingConfig(Strict):
    """How replacements are fitted: the fields of a ``Recipe``, and the text.

    The defaults are small enough for a CPU; a suite for the paper's models sets the paper's.

    Attributes:
        texts: Where the text comes from; None for the calibration's.
        objective: ``mse`` on hidden states (the paper), or ``lm``: the language-modelling loss of
            the whole pruned model with only the replacement trainable.
        normalize: Whether each token's squared error is divided by its target's mean square;
            beyond the paper, see :class:`streamline.training.student.Recipe`.
        n_tokens: Distinct training tokens.
        length: Tokens of each sequence.
        epochs: Passes over the training tokens.
        batch_tokens: Tokens of one optimiser step.
        learning_rate: Peak learning rate.
        final_learning_rate: Learning rate at the last step.
        warmup: Share of all steps for the linear warm-up.
        weight_decay: AdamW's weight decay.
        validation_tokens: Tokens kept apart for the validation loss.
        evaluations: How often it is measured during training, beside before and after.
        cache_bytes: Budget on disk for teacher activations when epochs repeat; 0 for no cache.
        post_train: A second training on the next-token loss; None for one training.
    """

    texts: str | None = None
    objective: Literal["mse", "lm"] = "mse"
    normalize: bool = False
    n_tokens: Positive = 100_000
    length: Annotated[int, Field(ge=2)] = 512
    epochs: Positive = 2
    batch_tokens: Positive = 2_048
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3e-4
    final_learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3e-5
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    validation_tokens: Positive = 8_192
    evaluations: Annotated[int, Field(ge=0)] = 4
    cache_bytes: Annotated[int, Field(ge=0)] = 0
    post_train: PostTrainingConfig | None = None

    @model_validator(mode="after")
    def _check_post_train(self) -> TrainingConfig:
        asked = self.post_train.n_tokens if self.post_train else None
        if asked is not None and asked > self.n_tokens:
            raise ValueError(
                f"post_train takes the first of the training's tokens: n_tokens {asked} is more "
                f"than its {self.n_tokens}"
            )
        return self

    def recipe(self) -> Recipe:
        """The part that a replacement is trained by."""
        return Recipe(**self.model_dump(exclude={"texts", "cache_bytes", "post_train"}))

    def stages(self) -> list[Recipe]:
        """The trainings of a replacement, one after the other."""
        first = self.recipe()
        if self.post_train is None:
            return [first]
        changes = {k: v for k, v in self.post_train.model_dump().items() if v is not None}
        return [first, replace(first, objective="lm", **changes)]

    @property
    def seen_tokens(self) -> int:
        """Training tokens that a replacement sees, epochs and stages counted."""
        return sum(recipe.n_tokens * recipe.epochs for recipe in self.stages())

    def too_few(self, n_parameters: int) -> str | None:
        """What to tell someone whose large model would get a trial's training, or None."""
        if n_parameters < _LARGE or self.seen_tokens >= _ENOUGH:
            return None
        return (
            f"replacements see {self.seen_tokens:,} training tokens, enough for a trial; "
            "published results take tens of millions: give --train-tokens, or a suite with its own"
        )


class HealingConfig(Strict):
    """LoRA post-training, the same for every method.

    Attributes:
        preset: Name of a recipe (rank, rate, target projections).
        texts: Where the text comes from; None for the training's. Instructions with answers
            (:mod:`streamline.sources.instructions`: ``alpaca``, or a local jsonl file with
            ``instruction`` and ``output``) are trained on their answers alone.
        n_tokens: Tokens to train on; None for as many as the replacements get.
        trained_parameters: Solve the rank so that about as many parameters are trained; None for
            the preset's own rank.
        validation_tokens: Tokens of the same text kept apart; the weights of their lowest loss are
            kept. 0 for none: the last weights are kept.
    """

    preset: str = "default"
    texts: str | None = None
    n_tokens: Positive | None = None
    trained_parameters: Positive | None = None
    validation_tokens: Annotated[int, Field(ge=0)] = 0


class PerplexityConfig(Strict):
    """The held-out text whose perplexity stands in the summary.

    Attributes:
        texts: Where the text comes from.
        n_tokens: Tokens scored; 0 for no perplexity.
        length: Tokens of each window.
    """

    texts: str = "packaged:heldout"
    n_tokens: Annotated[int, Field(ge=0)] = 16_384
    length: Annotated[int, Field(ge=2)] = 512


class MethodConfig(Strict):
    """What a run asks of one method in place of what it asks of all.

    A table that compares replacements at one number of layers needs it: what a replacement adds
    decides which sparsity that number is.

    Attributes:
        sparsities: Its own sparsities; None for the run's.
        recovery: Its own stages after pruning; None for the run's.
    """

    sparsities: Sparsities | None = None
    recovery: Recoveries | None = None
