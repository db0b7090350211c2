"""How a replacement is trained: the numbers, and nothing that needs a model.

Defaults are those of the released training script for hidden-state MSE (AdamW, cosine to a quarter
of the peak, 1 % warm-up), with a schedule that really ends where it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from streamline.errors import ConfigError

Objective = Literal["mse", "lm"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to fit replacements.

    Attributes:
        objective: ``"mse"`` on hidden states (the paper) or ``"lm"``, the language-model loss of
            the whole pruned model with only the replacement trainable.
        normalize: Whether the squared error of each token is divided by the mean square of its
            target. A few tokens have hidden states hundreds of times as large as the others; they
            own the plain error and the network then learns nothing else on a small budget.
        n_tokens: Distinct training tokens.
        length: Tokens per sequence.
        epochs: Passes over the training tokens.
        batch_tokens: Tokens per optimiser step (micro-batches are accumulated to it).
        learning_rate: Peak learning rate.
        final_learning_rate: Learning rate at the last step.
        warmup: Share of all steps for the linear warm-up.
        weight_decay: AdamW's weight decay.
        betas: AdamW's betas.
        clip: Largest gradient norm per student.
        validation_tokens: Held-out tokens for the validation loss.
        evaluations: How often validation loss is measured during training, beside before and after.

    Reference:
        arXiv:2403.19135, section 3.4 (layer replacement); ``normalize`` goes beyond it.
    """

    objective: Objective = "mse"
    normalize: bool = False
    n_tokens: int = 60_000_000
    length: int = 2048
    epochs: int = 1
    batch_tokens: int = 262_144
    learning_rate: float = 2e-4
    final_learning_rate: float = 5e-5
    warmup: float = 0.01
    weight_decay: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 5.0
    validation_tokens: int = 131_072
    evaluations: int = 20

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.objective not in ("mse", "lm"):
            raise ConfigError(f"objective must be 'mse' or 'lm', got {self.objective!r}")
        for name in ("n_tokens", "length", "epochs", "batch_tokens", "validation_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training {name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"training warmup is a share in [0, 1), got {self.warmup}")
        if self.learning_rate <= 0 or self.final_learning_rate < 0:
            raise ConfigError(
                f"learning rates must be positive, got {self.learning_rate} to "
                f"{self.final_learning_rate}"
            )
