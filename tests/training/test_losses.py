"""Losses stay on the device until a step's are all there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.methods.replacement import make
from streamline.plan import Span
from streamline.training.fit import fit
from streamline.training.lora import LoraRecipe, fine_tune
from streamline.training.student import Recipe, Student

TOKENS = torch.randint(0, 256, (8, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("objective", ["mse", "lm", "lora"])
def test_no_micro_batch_is_waited_for(
    objective: str,
    tiny_llama: Callable[..., PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, found = list[str](), []
    for name in ("__float__", "item", "tolist"):
        original = getattr(Tensor, name)

        def counted(self: Tensor, name: str = name, original: Any = original) -> Any:
            read.extend([name] * self.is_floating_point())
            return original(self)

        monkeypatch.setattr(Tensor, name, counted)
    for micro_batch in (16, 128):
        decoder = Decoder(tiny_llama(n_layers=2))
        student = Student(
            Span(0, 1),
            make("ffn", decoder, Span(0, 1), seed=0),
            Recipe(objective="lm" if objective == "lm" else "mse", n_tokens=128, batch_tokens=128),
        )
        model = assemble(dense_path(decoder))
        preset = LoraRecipe(rank=1, batch=8, epochs=1, dropout=0.0)
        read.clear()
        if objective == "lora":
            fine_tune(model, TOKENS, preset=preset, validation=TOKENS, micro_batch=micro_batch)
        else:
            fit(decoder, [student], TOKENS, TOKENS[:4], micro_batch=micro_batch)
        found.append(list(read))
    assert found[0] == found[1] != []
