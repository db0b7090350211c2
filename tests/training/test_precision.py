"""Accumulated gradients and mixed precision."""

from __future__ import annotations

import pytest
import torch

from streamline.engine.decoder import Decoder
from streamline.training.fit import fit
from streamline.training.state import TrainingState


@pytest.mark.parametrize("objective", ["mse", "lm"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_accumulation_equals_one_big_batch(
    decoder, train, validation, student, objective, autocast
):
    """Batches of six sequences (and a rest of four) at once, in unequal parts, and one by one."""
    runs = []
    for micro_batch in (1024, 64, 16):
        one = student(decoder, 2, 4, objective=objective, batch_tokens=96, learning_rate=1e-3)
        options = {"micro_batch": micro_batch, "autocast": autocast}
        (losses,) = fit(decoder, [one], train, validation, **options)
        runs.append(([row["train_loss"] for row in losses.rows[1:]], one))
    rough = {"rtol": 1e-2, "atol": 5e-3} if autocast else {"rtol": 1e-4, "atol": 1e-6}
    for steps, one in runs[1:]:
        assert steps == pytest.approx(runs[0][0], rel=rough["rtol"])
        for a, b in zip(runs[0][1].module.parameters(), one.module.parameters(), strict=True):
            torch.testing.assert_close(a, b, **rough)


def test_mixed_precision_keeps_float32_weights(decoder, train, validation, student):
    plain, mixed = student(decoder, 1, 3, "layer"), student(decoder, 1, 3, "layer")
    dtypes: set[torch.dtype] = set()
    mixed.module.mlp.up_proj.register_forward_hook(lambda _m, _a, out: dtypes.add(out.dtype))
    (expected,) = fit(decoder, [plain], train, validation)
    (losses,) = fit(decoder, [mixed], train, validation, autocast=torch.bfloat16)
    assert dtypes == {torch.bfloat16}
    assert losses.best == pytest.approx(expected.best, rel=0.05)
    assert losses.best != expected.best


@pytest.mark.parametrize("objective", ["mse", "lm"])
def test_a_bfloat16_teacher_has_float32_students_while_they_learn(
    tiny_llama, train, validation, student, objective, monkeypatch
):
    decoder = Decoder(tiny_llama(n_layers=4).to(torch.bfloat16))
    one = student(decoder, 1, 3, "layer", objective=objective)
    seen: dict[str, set[torch.dtype]] = {"teacher": set(), "gradient": set(), "moment": set()}
    decoder.layers[0].register_forward_hook(lambda _m, _a, out: seen["teacher"].add(out.dtype))
    update = TrainingState.update

    def look(self: TrainingState, train_loss: float, n_tokens: int) -> None:
        seen["gradient"] |= {p.grad.dtype for p in self.parameters.values()}
        update(self, train_loss, n_tokens)
        for state in self.optimiser.state.values():
            seen["moment"] |= {state["exp_avg"].dtype, state["exp_avg_sq"].dtype}

    monkeypatch.setattr(TrainingState, "update", look)
    fit(decoder, [one], train, validation, autocast=torch.bfloat16)
    float32 = {torch.float32}
    assert seen == {"teacher": {torch.bfloat16}, "gradient": float32, "moment": float32}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("objective", ["mse", "lm"])
def test_bfloat16_model_trains_in_float32(tiny_llama, attention, objective, train, student):
    model = tiny_llama(n_layers=4)
    model.set_attn_implementation(attention)
    decoder = Decoder(model.to(torch.bfloat16))
    for autocast in (None, torch.bfloat16):
        one = student(decoder, 1, 3, "layer", objective=objective)
        (losses,) = fit(decoder, [one], train, train[:4], autocast=autocast)
        assert losses.best < losses.before
        assert all(p.dtype == torch.bfloat16 for p in one.module.parameters())
