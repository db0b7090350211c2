"""Training budgets that papers state, and the one that a model gets.

Example::

    stated_for("llama2-7b", None).n_samples          # 20,000
    stated_for("some/model", 13_000_000_000)         # that of the nearest size: Llama2-7B's
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["BUDGETS", "LARGE_BUDGET", "Budget", "stated_for"]

LARGE_BUDGET = 10_000_000
"""Training tokens, epochs counted, from which on a replacement is trained as the papers do."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a paper trains a replacement of one model, in its own units.

    Attributes:
        model: The model's short name.
        shown: The name that the paper prints.
        n_parameters: About how many it has, to find the nearest one.
        n_samples: Samples of training text.
        length: Tokens of each; not stated.
        batch_tokens: The batch that is stated, read as tokens.
        learning_rate: Peak learning rate.
        epochs: Passes over the samples.
        source: Where it is stated.
    """

    model: str
    shown: str
    n_parameters: float
    n_samples: int
    length: int
    batch_tokens: int
    learning_rate: float
    epochs: int = 5
    source: str = "arXiv:2403.19135v1, section 4.1 and appendix B"

    @property
    def recipe(self) -> dict[str, Any]:
        """The fields of a training that it decides.

        The fall to a quarter of the peak and the warm-up are those of the code that was released
        later; validation is ours.
        """
        return {
            "n_tokens": self.n_samples * self.length,
            "length": self.length,
            "epochs": self.epochs,
            "batch_tokens": self.batch_tokens,
            "learning_rate": self.learning_rate,
            "final_learning_rate": self.learning_rate / 4,
            "warmup": 0.01,
            "normalize": False,
            "validation_tokens": 131_072,
            "evaluations": 20,
        }

    @property
    def words(self) -> str:
        """The budget in the units of the paper."""
        return (
            f"{self.n_samples:,} samples, {self.epochs} times, as {self.source}, states for "
            f"{self.shown}, each read as {self.length:,} tokens"
        )


_LARGE: dict[str, Any] = {"length": 2_048, "batch_tokens": 2_048, "learning_rate": 1e-3}
_SMALL: dict[str, Any] = {"length": 512, "batch_tokens": 512, "learning_rate": 4e-4}

BUDGETS = (
    Budget(model="opt-1.3b", shown="OPT-1.3B", n_parameters=1.3e9, n_samples=3_000, **_SMALL),
    Budget(model="opt-2.7b", shown="OPT-2.7B", n_parameters=2.7e9, n_samples=3_000, **_SMALL),
    Budget(model="opt-6.7b", shown="OPT-6.7B", n_parameters=6.66e9, n_samples=10_000, **_LARGE),
    Budget(model="llama2-7b", shown="Llama2-7B", n_parameters=6.74e9, n_samples=20_000, **_LARGE),
)
"""What the first version of LLM-Streamline states; later versions give one number for all models
(30,000 documents), which the suites of their tables have."""


def stated_for(model: str, n_parameters: int | None) -> Budget:
    """The budget that is stated for a model, or for the one that is nearest to its size.

    Args:
        model: A short name or another one.
        n_parameters: Its parameters, where it is none of the table.

    Returns:
        Of several that are as near, the largest budget.
    """
    own = next((budget for budget in BUDGETS if budget.model == model), None)
    if own is not None:
        return own
    size = n_parameters or max(budget.n_parameters for budget in BUDGETS)
    return min(reversed(BUDGETS), key=lambda one: round(abs(math.log(size / one.n_parameters)), 1))
