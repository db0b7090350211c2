"""What students learn, alone and beside others."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from asking import asked
from torch import Tensor, nn

from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError
from streamline.plan import Span
from streamline.training.fit import fit
from streamline.training.student import Student


def test_mse_falls_and_is_reported(decoder, tmp_path, train, validation, student, recipe):
    one = student(decoder, 2, 4, "layer")
    seen: list[tuple[int, int, str]] = []
    (losses,) = fit(
        decoder, [one], train, validation, directory=tmp_path, progress=lambda *a: seen.append(a)
    )
    assert losses.best < losses.before
    assert losses.relative == pytest.approx(losses.best / losses.dropping)
    assert losses.tokens == 2 * train.numel()
    assert seen[-1][:2] == (320, 320)
    assert "validation" in seen[-1][2]
    file = tmp_path / "losses" / f"{losses.label}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == losses.rows
    assert list(rows[0]) == ["step", "tokens", "train_loss", "validation_loss", "lr", "seconds"]
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["step"] for row in rows if row["validation_loss"] is not None] == [0, 3, 6]
    assert rows[0]["train_loss"] is None
    assert rows[-1]["lr"] == recipe.final_learning_rate
    assert not any(p.requires_grad for p in one.module.parameters())


def test_losses_are_the_plain_mean_over_tokens_and_features(decoder, train, validation, student):
    one = student(decoder, 1, 3, "layer")
    start = copy.deepcopy(one.module)
    (losses,) = fit(decoder, [one], train, validation)

    def mse(module: nn.Module) -> tuple[float, float]:
        with torch.no_grad():
            entry = decoder.enter(validation)
            states = dict(decoder.trace(entry, 3))
            output = decoder.run(module, states[1], entry, 1)
        error = (output - states[3]).square().mean()
        return float(error), float((states[1] - states[3]).square().mean())

    assert losses.before == pytest.approx(mse(start)[0], rel=1e-5)
    assert losses.best == pytest.approx(mse(one.module)[0], rel=1e-5)
    assert losses.dropping == pytest.approx(mse(start)[1], rel=1e-5)


def test_first_step_is_adamw_on_the_mean_gradient(decoder, train, validation, student, recipe):
    one = student(decoder, 2, 4, epochs=1, batch_tokens=train.numel(), warmup=0.0, evaluations=1)
    module = copy.deepcopy(one.module)
    with torch.no_grad():
        entry = decoder.enter(train)
        states = dict(decoder.trace(entry, 4))
    (decoder.run(module, states[2], entry, 2) - states[4]).square().mean().backward()
    nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
    torch.optim.AdamW(
        module.parameters(), lr=recipe.final_learning_rate, weight_decay=recipe.weight_decay
    ).step()
    (losses,) = fit(decoder, [one], train, validation, micro_batch=32)
    assert losses.best_step == 1
    for a, b in zip(one.module.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-6)


def test_a_step_asks_for_its_losses_once_in_however_many_parts(decoder, train, validation, student):
    questions = []
    for micro_batch in (64, 16):  # of steps of 64 tokens
        one = student(decoder, 2, 4, "layer", objective="lm")  # whose teacher keeps nothing
        with asked() as found:
            fit(decoder, [one], train, validation, micro_batch=micro_batch)
        questions.append(len(found.now))
    assert questions[0] == questions[1]


def test_joint_training_equals_separate(decoder, train, validation, student, weights):
    def several() -> list[Student]:
        return [
            student(decoder, 2, 4, "layer"),
            student(decoder, 2, 4, "ffn", learning_rate=1e-3),
            student(decoder, 1, 3, "swiglu", clip=0.5),
            student(decoder, 3, 6, "layer", batch_tokens=32),
            student(decoder, 0, 2, "layer", objective="lm"),
            student(decoder, 2, 4, "layer", objective="lm"),
        ]

    together, alone = several(), several()
    joint = fit(decoder, together, train, validation)
    single = [fit(decoder, [s], train, validation)[0] for s in alone]
    for a, b in zip(weights(*together), weights(*alone), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert [x.best for x in joint] == pytest.approx([x.best for x in single], abs=1e-6)


def test_equal_students_are_trained_once(
    decoder, tmp_path, train, validation, student, weights, assert_equal
):
    twins = [student(decoder, 2, 4), student(decoder, 2, 4)]
    losses = fit(
        decoder, twins, train, validation, directory=tmp_path, labels=["a", "b"],
    )  # fmt: skip
    assert_equal(weights(twins[0]), weights(twins[1]))
    assert losses[0].best == losses[1].best
    assert losses[1].seconds == 0.0
    assert (tmp_path / "students" / "b.safetensors").exists()


def test_a_teacher_s_weights_are_hashed_only_where_something_is_kept(
    decoder, train, validation, student, monkeypatch, tmp_path
):
    hashed = []
    monkeypatch.setattr(
        "streamline.training.fit.weights_fingerprint", lambda model: hashed.append(model) or "key"
    )
    fit(decoder, [student(decoder, 2, 4, "ffn")], train, validation)
    assert not hashed
    fit(decoder, [student(decoder, 2, 4, "ffn")], train, validation, losses=tmp_path)
    assert hashed == [decoder]


def test_best_weights_are_a_copy(decoder, train, validation, student, weights, assert_equal):
    one = student(decoder, 2, 4, learning_rate=5.0, final_learning_rate=5.0, clip=1e9)
    start = weights(one)
    (losses,) = fit(decoder, [one], train, validation)
    assert losses.after > losses.before
    assert losses.best_step == 0
    assert losses.best == losses.before
    assert_equal(weights(one), start)


def replace_rate(one: Student) -> Student:
    still = {"learning_rate": 1e-12, "final_learning_rate": 1e-12, "weight_decay": 0.0}
    recipe = one.recipe.model_copy(update=still)
    return Student(one.span, one.module, recipe)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("objective", ["mse", "lm"])
def test_students_are_causal_in_training_as_at_use(
    tiny_llama, attention, objective, train, validation, student, recipe
):
    model = tiny_llama(n_layers=4)
    model.set_attn_implementation(attention)
    decoder = Decoder(model)
    one = student(decoder, 1, 3, "layer", objective=objective)
    outputs: list[Tensor] = []
    one.module.register_forward_hook(
        lambda _m, _a, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )
    changed = train.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 256
    for data in (train, changed):
        # A rate of almost nothing, so that both see the same student in the first forward passes.
        recipe = one.recipe.model_copy(update={"batch_tokens": train.numel()})
        group = Student(one.span, one.module, recipe)
        fit(decoder, [replace_rate(group)], data, validation, micro_batch=10_000)
    half = len(outputs) // 2
    a, b = outputs[1].detach(), outputs[half + 1].detach()
    assert a.shape[0] == b.shape[0] == len(train)
    torch.testing.assert_close(a[:, :9], b[:, :9], rtol=1e-4, atol=1e-4)
    assert (a[:, 9:] - b[:, 9:]).abs().max() > 1e-2


def test_decoder_is_left_as_it_was(decoder, train, validation, student):
    decoder.model.train()
    before = {k: v.clone() for k, v in decoder.model.state_dict().items()}
    students = [student(decoder, 1, 3, "layer"), student(decoder, 2, 4, "layer", objective="lm")]
    fit(decoder, students, train, validation)
    assert decoder.model.training
    assert all(p.requires_grad and p.grad is None for p in decoder.model.parameters())
    for name, value in decoder.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("family", ["tiny_opt", "tiny_qwen3"])
def test_other_families_train(family, request, train, validation, student):
    decoder = Decoder(request.getfixturevalue(family)(n_layers=4))
    kinds = [student(decoder, 1, 3, "layer"), student(decoder, 1, 3, "ffn")]
    for losses in fit(decoder, kinds, train, validation):
        assert losses.best < losses.before


def test_steps_without_a_finite_gradient_are_left_out(
    decoder, train, validation, student, weights, assert_equal
):
    one = student(decoder, 2, 4)
    one.module.register_forward_hook(
        lambda m, _a, out: out * float("inf") if torch.is_grad_enabled() else out
    )
    start = weights(one)
    (losses,) = fit(decoder, [one], train, validation)
    assert losses.skipped_steps == 6
    assert losses.not_finite == "the gradient of every step"
    assert losses.rows[1]["train_loss"] is None
    assert_equal(weights(one), start)


def test_a_training_most_of_whose_steps_have_no_finite_gradient_came_to_nothing(
    decoder, train, validation, student, caplog
):
    """Four of six in the first, half of them in the second, which is told."""
    found = []
    for failing in (4, 3):
        one, calls = student(decoder, 2, 4), iter(range(99))
        next(one.module.parameters()).register_hook(
            lambda g, calls=calls, failing=failing: g * math.inf if next(calls) < failing else g
        )
        found += fit(decoder, [one], train, validation)
    assert [losses.skipped_steps for losses in found] == [4, 3]
    assert found[0].not_finite == "the gradient of 4 of 6 steps"
    assert found[1].not_finite is None and found[1].summary()["skipped_steps"] == 3
    assert "3 of 6 steps were left out" in caplog.text


def test_refusals(decoder, train, validation, student, recipe):
    one = student(decoder, 2, 4)
    with pytest.raises(ConfigError, match=r"train tokens must be .* got torch.float32"):
        fit(decoder, [one], train.float(), validation)
    with pytest.raises(ConfigError, match=r"validation tokens must be a non-empty"):
        fit(decoder, [one], train, validation[:0])
    with pytest.raises(ConfigError, match="need at least 2 tokens, got 1"):
        fit(decoder, [one], train[:, :1], validation)
    with pytest.raises(ConfigError, match="autocast must be None or torch.bfloat16"):
        fit(decoder, [one], train, validation, autocast=torch.float16)
    with pytest.raises(ConfigError, match="as many different labels"):
        fit(decoder, [one, one], train, validation, labels=["a", "a"])
    with pytest.raises(ConfigError, match="does not fit a model of 6 layers"):
        fit(decoder, [Student(Span(5, 7), one.module, recipe)], train, validation)
    with pytest.raises(ConfigError, match="need as many paths, got 0"):
        fit(decoder, [one], train, validation, paths=[])
