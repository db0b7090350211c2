"""The recipes of recovery by name: their optimiser, when they validate, and when they end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamline.errors import ConfigError
from streamline.training import lora
from streamline.training.lora import PRESETS, LoraRecipe, fine_tune
from streamline.training.state import TrainingState
from streamline.training.student import PostTraining, Recipe

RECIPE = LoraRecipe(
    rank=4, batch=2, length=16, epochs=12, learning_rate=3e-2, evaluation_steps=1, patience=2
)


def tokens(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 16), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def optimisers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every optimiser that is made was given."""
    made: list[dict[str, Any]] = []

    class Seen(TrainingState):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self.optimiser.defaults | {"clip": self.clip})

    monkeypatch.setattr(lora, "TrainingState", Seen)
    return made


@pytest.mark.parametrize(
    ("preset", "decay", "betas"),
    [
        ("llm-pruner", 0.0, (0.9, 0.999)),
        ("slicegpt", 1e-2, (0.9, 0.95)),
        ("uidl", 0.0, (0.9, 0.999)),
    ],
)
def test_a_preset_has_its_own_optimiser(tiny_llama, optimisers, preset, decay, betas):
    recipe = replace(PRESETS[preset], length=16, rank=2, epochs=1)
    fine_tune(tiny_llama(n_layers=2), tokens(4), preset=recipe, token_budget=32)
    (made,) = optimisers
    assert (made["weight_decay"], made["betas"], made["clip"]) == (decay, betas, 1.0)


def test_training_ends_when_the_validation_loss_does_not_fall(tiny_llama, tmp_path: Path):
    train, held_out = tokens(6), tokens(6, seed=1)
    options: dict[str, Any] = {"validation": held_out, "directory": tmp_path}
    result = fine_tune(tiny_llama(n_layers=2), train, preset=RECIPE, **options)
    losses = [row["validation_loss"] for row in result.losses]
    assert result.n_steps == len(losses) - 1 < 36
    assert losses.index(min(losses)) == len(losses) - 3, "two without a lower loss, then the end"
    assert result.after == min(losses)
    again = fine_tune(tiny_llama(n_layers=2), train, preset=RECIPE, **options)
    assert (again.n_steps, again.losses, again.after) == (
        result.n_steps,
        result.losses,
        result.after,
    )
    patient = replace(RECIPE, patience=None)
    assert (
        fine_tune(tiny_llama(n_layers=2), train, preset=patient, validation=held_out).n_steps > 35
    )


def test_without_validation_data_it_does_not_end_early(tiny_llama):
    assert fine_tune(tiny_llama(n_layers=2), tokens(6), preset=RECIPE).n_steps == 36


def test_validations_follow_the_recipes_steps(tiny_llama):
    recipe = replace(RECIPE, evaluation_steps=5, patience=None, epochs=4)
    result = fine_tune(tiny_llama(n_layers=2), tokens(6), preset=recipe, validation=tokens(2))
    measured = [row["step"] for row in result.losses if row["validation_loss"] is not None]
    assert measured == [0, 5, 10, 12]


@pytest.mark.parametrize("name", ["patience", "evaluation_steps"])
def test_none_or_at_least_one(name):
    with pytest.raises(ConfigError, match=f"LoRA {name} must be at least 1, got 0"):
        LoraRecipe(**{name: 0})


def test_the_second_training_has_an_optimiser_of_its_own():
    second = PostTraining(betas=(0.9, 0.95), clip=1.0, weight_decay=0.0)
    before, after = Recipe(post_train=second).stages()
    assert (before.betas, before.clip, before.weight_decay) == ((0.9, 0.999), 5.0, 1e-3)
    assert (after.betas, after.clip, after.weight_decay) == ((0.9, 0.95), 1.0, 0.0)
    assert after.objective == "lm"
    assert Recipe(post_train=PostTraining()).stages()[1].betas == (0.9, 0.999)


def test_betas_are_checked():
    with pytest.raises(ValueError, match="less than 1"):
        PostTraining(betas=(0.9, 1.0))
