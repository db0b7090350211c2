"""A training whose loss is not finite fails its own replacement; those beside it are trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from streamline.run.pipeline import run
from streamline.training import loop
from streamline.training.state import TrainingState


def spoiled(monkeypatch: Any, when: Callable[[int], bool]) -> None:
    """Validation of the FFN is NaN at some steps."""
    original = loop._validate

    def validate(args: Any, objective: Any, groups: Any, *rest: Any) -> None:
        for group in groups:
            is_ffn = type(group.modules[0]).__name__ == "FFN"
            if is_ffn and when(group.state.step):
                with torch.no_grad():
                    next(group.modules.parameters()).fill_(float("nan"))
        original(args, objective, groups, *rest)

    monkeypatch.setattr(loop, "_validate", validate)


def test_a_training_that_diverges_fails_its_own_cell(tmp_path: Path, monkeypatch, config) -> None:
    spoiled(monkeypatch, lambda step: step > 0)
    methods = "shortgpt,llm-streamline-layer,llm-streamline-ffn"
    records = run(config(tmp_path, methods=methods))
    assert [record.status for record in records] == ["ok", "ok", "ok", "failed"]
    assert "train" in records[3].reason and "validation loss at step" in records[3].reason
    assert "layers" in records[3].reason
    assert not list((tmp_path / "cache" / "training" / "students").glob("*ffn*"))
    again = run(config(tmp_path, methods=methods))
    assert again[3].status == "failed", "it is tried again, and fails the same"


def test_a_training_without_one_finite_gradient_fails_its_own_cell(
    tmp_path: Path, monkeypatch, config
) -> None:
    """Its validation loss stays finite, that of the weights it started with."""
    update = TrainingState.update

    def overflowing(state: TrainingState, train_loss: float, n_tokens: int) -> None:
        for parameter in state.parameters.values() if "ffn" in state.label else ():
            parameter.grad = torch.full_like(parameter, float("inf"))
        update(state, train_loss, n_tokens)

    monkeypatch.setattr(TrainingState, "update", overflowing)
    methods = "shortgpt,llm-streamline-layer,llm-streamline-ffn"
    for _ in range(2):  # nothing is left that a second run takes for trained
        records = run(config(tmp_path, methods=methods))
        assert [record.status for record in records] == ["ok", "ok", "ok", "failed"]
        assert "the gradient of every step of what replaces the layers" in records[3].reason
        assert not list((tmp_path / "cache" / "training" / "students").glob("*ffn*"))
