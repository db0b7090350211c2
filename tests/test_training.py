from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from streamline.activations import ActivationCache
from streamline.decoder import Decoder
from streamline.errors import ConfigError
from streamline.method import Student
from streamline.plan import Span
from streamline.recipe import Recipe
from streamline.replacement import make
from streamline.training import fit

RECIPE = Recipe(
    epochs=2,
    length=16,
    batch_tokens=64,
    learning_rate=3e-3,
    final_learning_rate=3e-4,
    validation_tokens=64,
    evaluations=2,
)


@pytest.fixture
def decoder(tiny_llama: Callable[..., nn.Module]) -> Decoder:
    return Decoder(tiny_llama(n_layers=6))


def tokens(n: int, length: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, length), generator=torch.Generator().manual_seed(seed))


TRAIN, VALIDATION = tokens(10), tokens(4, seed=1)


def student(
    decoder: Decoder, start: int, stop: int, kind: str = "ffn", **changes: object
) -> Student:
    span = Span(start, stop)
    init = "first" if kind == "layer" else "random"
    return Student(span, make(kind, decoder, span, init=init), replace(RECIPE, **changes))


def weights(*students: Student) -> list[Tensor]:
    return [p.detach().clone() for s in students for p in s.module.parameters()]


def assert_equal(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def test_mse_falls_and_is_reported(decoder: Decoder, tmp_path: Path) -> None:
    one = student(decoder, 2, 4, "layer")
    seen: list[tuple[int, int, str]] = []
    (losses,) = fit(
        decoder, [one], TRAIN, VALIDATION, directory=tmp_path, progress=lambda *a: seen.append(a)
    )
    assert losses.best < losses.before
    assert losses.relative == pytest.approx(losses.best / losses.dropping)
    assert losses.tokens == 2 * TRAIN.numel()
    assert seen[-1][:2] == (320, 320)
    assert "validation" in seen[-1][2]
    file = tmp_path / "losses" / f"{losses.label}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == losses.rows
    assert list(rows[0]) == ["step", "tokens", "train_loss", "validation_loss", "lr", "seconds"]
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["step"] for row in rows if row["validation_loss"] is not None] == [0, 3, 6]
    assert rows[0]["train_loss"] is None
    assert rows[-1]["lr"] == RECIPE.final_learning_rate
    assert not any(p.requires_grad for p in one.module.parameters())


def test_losses_are_the_plain_mean_over_tokens_and_features(decoder: Decoder) -> None:
    one = student(decoder, 1, 3, "layer")
    start = copy.deepcopy(one.module)
    (losses,) = fit(decoder, [one], TRAIN, VALIDATION)

    def mse(module: nn.Module) -> tuple[float, float]:
        with torch.no_grad():
            entry = decoder.enter(VALIDATION)
            states = dict(decoder.trace(entry, 3))
            output = decoder.run(module, states[1], entry, 1)
        error = (output - states[3]).square().mean()
        return float(error), float((states[1] - states[3]).square().mean())

    assert losses.before == pytest.approx(mse(start)[0], rel=1e-5)
    assert losses.best == pytest.approx(mse(one.module)[0], rel=1e-5)
    assert losses.dropping == pytest.approx(mse(start)[1], rel=1e-5)


def test_accumulation_equals_one_big_batch(decoder: Decoder) -> None:
    results = []
    for micro_batch in (16, 48, 1024):
        one = student(decoder, 2, 4, batch_tokens=96, learning_rate=1e-3)
        fit(decoder, [one], TRAIN, VALIDATION, micro_batch=micro_batch)
        results.append(weights(one))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_first_step_is_adamw_on_the_mean_gradient(decoder: Decoder) -> None:
    one = student(decoder, 2, 4, epochs=1, batch_tokens=TRAIN.numel(), warmup=0.0, evaluations=1)
    module = copy.deepcopy(one.module)
    with torch.no_grad():
        entry = decoder.enter(TRAIN)
        states = dict(decoder.trace(entry, 4))
    (decoder.run(module, states[2], entry, 2) - states[4]).square().mean().backward()
    nn.utils.clip_grad_norm_(module.parameters(), RECIPE.clip)
    torch.optim.AdamW(
        module.parameters(), lr=RECIPE.final_learning_rate, weight_decay=RECIPE.weight_decay
    ).step()
    (losses,) = fit(decoder, [one], TRAIN, VALIDATION, micro_batch=32)
    assert losses.best_step == 1
    for a, b in zip(one.module.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-6)


def test_joint_training_equals_separate(decoder: Decoder) -> None:
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
    joint = fit(decoder, together, TRAIN, VALIDATION)
    single = [fit(decoder, [s], TRAIN, VALIDATION)[0] for s in alone]
    for a, b in zip(weights(*together), weights(*alone), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert [x.best for x in joint] == pytest.approx([x.best for x in single], abs=1e-6)


class Stop(Exception):
    pass


@pytest.mark.parametrize("objective", ["mse", "lm"])
@pytest.mark.parametrize("calls", [2, 6, 10])
def test_killed_and_resumed_equals_uninterrupted(
    decoder: Decoder, tmp_path: Path, objective: str, calls: int
) -> None:
    def students() -> list[Student]:
        return [
            student(decoder, 1, 3, "layer", objective=objective),
            student(decoder, 2, 4, "ffn", objective=objective),
        ]

    whole = students()
    expected = fit(decoder, whole, TRAIN, VALIDATION, micro_batch=32)
    count = 0

    def die(*_: object) -> None:
        nonlocal count
        count += 1
        if count == calls:
            raise Stop

    options = {"directory": tmp_path, "micro_batch": 32, "save_seconds": 0.0}
    with pytest.raises(Stop):
        fit(decoder, students(), TRAIN, VALIDATION, progress=die, **options)
    resumed, steps = students(), []
    losses = fit(
        decoder, resumed, TRAIN, VALIDATION, progress=lambda *a: steps.append(a[0]), **options
    )
    assert_equal(weights(*resumed), weights(*whole))
    assert steps[0] > 32 or calls == 2, "the first steps must not be made again"
    for a, b in zip(losses, expected, strict=True):
        assert (a.before, a.after, a.best, a.best_step) == (b.before, b.after, b.best, b.best_step)
        strip = [{**row, "seconds": 0} for row in a.rows]
        assert strip == [{**row, "seconds": 0} for row in b.rows]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_student_saved_later_waits_for_the_other(decoder: Decoder, tmp_path: Path) -> None:
    def students() -> list[Student]:
        return [student(decoder, 1, 3, "layer"), student(decoder, 2, 4, "ffn")]

    whole = students()
    fit(decoder, whole, TRAIN, VALIDATION)
    ahead = students()

    def die(done: int, *_: object) -> None:
        if done > 200:
            raise Stop

    with pytest.raises(Stop):
        fit(decoder, ahead[:1], TRAIN, VALIDATION, directory=tmp_path, progress=die, save_seconds=0)
    late = students()
    fit(decoder, late, TRAIN, VALIDATION, directory=tmp_path)
    assert_equal(weights(*late), weights(*whole))


def test_finished_training_is_only_loaded(decoder: Decoder, tmp_path: Path) -> None:
    one = student(decoder, 2, 4)
    (first,) = fit(decoder, [one], TRAIN, VALIDATION, directory=tmp_path)
    two = student(decoder, 2, 4)
    calls: list[object] = []
    (second,) = fit(
        decoder, [two], TRAIN, VALIDATION, directory=tmp_path, progress=lambda *a: calls.append(a)
    )
    assert not calls
    assert second == first
    assert_equal(weights(one), weights(two))
    assert not list((tmp_path / "state").glob("*"))


def test_another_recipe_under_the_same_label_starts_afresh(
    decoder: Decoder, tmp_path: Path
) -> None:
    fit(decoder, [student(decoder, 2, 4)], TRAIN, VALIDATION, directory=tmp_path, labels=["a"])
    other = student(decoder, 2, 4, learning_rate=1e-3)
    (losses,) = fit(decoder, [other], TRAIN, VALIDATION, directory=tmp_path, labels=["a"])
    fresh = student(decoder, 2, 4, learning_rate=1e-3)
    fit(decoder, [fresh], TRAIN, VALIDATION)
    assert_equal(weights(other), weights(fresh))
    lines = (tmp_path / "losses" / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == losses.rows


def test_equal_students_are_trained_once(decoder: Decoder, tmp_path: Path) -> None:
    twins = [student(decoder, 2, 4), student(decoder, 2, 4)]
    losses = fit(
        decoder, twins, TRAIN, VALIDATION, directory=tmp_path, labels=["a", "b"],
    )  # fmt: skip
    assert_equal(weights(twins[0]), weights(twins[1]))
    assert losses[0].best == losses[1].best
    assert losses[1].seconds == 0.0
    assert (tmp_path / "students" / "b.json").exists()


def test_best_weights_are_a_copy(decoder: Decoder) -> None:
    one = student(decoder, 2, 4, learning_rate=5.0, final_learning_rate=5.0, clip=1e9)
    start = weights(one)
    (losses,) = fit(decoder, [one], TRAIN, VALIDATION)
    assert losses.after > losses.before
    assert losses.best_step == 0
    assert losses.best == losses.before
    assert_equal(weights(one), start)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("objective", ["mse", "lm"])
def test_students_are_causal_in_training_as_at_use(
    tiny_llama: Callable[..., nn.Module], attention: str, objective: str
) -> None:
    model = tiny_llama(n_layers=4)
    model.set_attn_implementation(attention)
    decoder = Decoder(model)
    one = student(decoder, 1, 3, "layer", objective=objective)
    outputs: list[Tensor] = []
    one.module.register_forward_hook(
        lambda _m, _a, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )
    changed = TRAIN.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 256
    for data in (TRAIN, changed):
        # A rate of almost nothing, so that both see the same student in the first forward passes.
        pupil = Student(one.span, one.module, replace(one.recipe, batch_tokens=TRAIN.numel()))
        fit(decoder, [replace_rate(pupil)], data, VALIDATION, micro_batch=10_000)
    half = len(outputs) // 2
    a, b = outputs[1].detach(), outputs[half + 1].detach()
    assert a.shape[0] == b.shape[0] == len(TRAIN)
    torch.testing.assert_close(a[:, :9], b[:, :9], rtol=1e-4, atol=1e-4)
    assert (a[:, 9:] - b[:, 9:]).abs().max() > 1e-2


def replace_rate(one: Student) -> Student:
    recipe = replace(one.recipe, learning_rate=1e-12, final_learning_rate=1e-12, weight_decay=0.0)
    return Student(one.span, one.module, recipe)


def test_teacher_stops_at_the_last_tap_and_serves_all_students(decoder: Decoder) -> None:
    students = [student(decoder, 1, 3), student(decoder, 2, 4), student(decoder, 1, 3, "layer")]
    counts = [0] * 6
    for index, layer in enumerate(decoder.layers):
        layer.self_attn.register_forward_hook(
            lambda *_, index=index: counts.__setitem__(index, counts[index] + 1)
        )
    fit(decoder, students, TRAIN, VALIDATION, micro_batch=1024)
    # Six training batches; the validation states are kept after the first of three evaluations.
    assert counts == [7, 7, 7, 7, 0, 0]


def test_memory_is_flat_in_the_number_of_samples(decoder: Decoder) -> None:
    """Every hidden state that a layer returned is gone again, but for those of one batch."""

    def kept(n: int) -> int:
        alive: list[weakref.ref[Tensor]] = []
        hooks = [
            layer.register_forward_hook(
                lambda _m, _a, out: alive.append(
                    weakref.ref(out[0] if isinstance(out, tuple) else out)
                )
            )
            for layer in decoder.layers
        ]
        peak = 0

        def look(*_: object) -> None:
            nonlocal peak
            peak = max(peak, sum(ref() is not None for ref in alive))

        one = student(decoder, 1, 3, epochs=1, evaluations=1)
        fit(decoder, [one], tokens(n), VALIDATION, micro_batch=64, progress=look)
        for hook in hooks:
            hook.remove()
        assert len(alive) > n // 2
        return peak

    assert kept(8) == kept(40) <= 2


def test_decoder_is_left_as_it_was(decoder: Decoder) -> None:
    decoder.model.train()
    before = {k: v.clone() for k, v in decoder.model.state_dict().items()}
    students = [student(decoder, 1, 3, "layer"), student(decoder, 2, 4, "layer", objective="lm")]
    fit(decoder, students, TRAIN, VALIDATION)
    assert decoder.model.training
    assert all(p.requires_grad and p.grad is None for p in decoder.model.parameters())
    for name, value in decoder.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("family", ["tiny_opt", "tiny_qwen3"])
def test_other_families_train(family: str, request: pytest.FixtureRequest) -> None:
    decoder = Decoder(request.getfixturevalue(family)(n_layers=4))
    kinds = [student(decoder, 1, 3, "layer"), student(decoder, 1, 3, "ffn")]
    for losses in fit(decoder, kinds, TRAIN, VALIDATION):
        assert losses.best < losses.before


def test_mixed_precision_keeps_float32_weights(decoder: Decoder) -> None:
    plain, mixed = student(decoder, 1, 3, "layer"), student(decoder, 1, 3, "layer")
    dtypes: set[torch.dtype] = set()
    mixed.module.mlp.up_proj.register_forward_hook(lambda _m, _a, out: dtypes.add(out.dtype))
    (expected,) = fit(decoder, [plain], TRAIN, VALIDATION)
    (losses,) = fit(decoder, [mixed], TRAIN, VALIDATION, autocast=torch.bfloat16)
    assert dtypes == {torch.bfloat16}
    assert losses.best == pytest.approx(expected.best, rel=0.05)
    assert losses.best != expected.best


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("objective", ["mse", "lm"])
def test_bfloat16_model_trains_in_float32(
    tiny_llama: Callable[..., nn.Module], attention: str, objective: str
) -> None:
    model = tiny_llama(n_layers=4)
    model.set_attn_implementation(attention)
    decoder = Decoder(model.to(torch.bfloat16))
    for autocast in (None, torch.bfloat16):
        one = student(decoder, 1, 3, "layer", objective=objective)
        (losses,) = fit(decoder, [one], TRAIN, TRAIN[:4], autocast=autocast)
        assert losses.best < losses.before
        assert all(p.dtype == torch.bfloat16 for p in one.module.parameters())


def test_activation_cache_spares_the_teacher(decoder: Decoder, tmp_path: Path) -> None:
    counts = [0]
    decoder.layers[0].self_attn.register_forward_hook(
        lambda *_: counts.__setitem__(0, counts[0] + 1)
    )

    def run(cache: ActivationCache | None) -> tuple[int, list[Tensor], float]:
        counts[0] = 0
        one = student(decoder, 1, 3, "layer", epochs=3)
        (losses,) = fit(decoder, [one], TRAIN, VALIDATION, cache=cache)
        return counts[0], weights(one), losses.best

    streamed, _, best = run(None)
    cache = ActivationCache(tmp_path / "a", 10**6)
    once, cached, cached_best = run(cache)
    assert (streamed, once) == (10, 4)
    assert cached_best == pytest.approx(best, rel=0.02)
    again, reread, _ = run(cache)
    assert again == 1, "only the validation states are computed again"
    assert_equal(cached, reread)
    small, uncached, _ = run(ActivationCache(tmp_path / "b", 1000))
    assert small == 10
    assert_equal(cached, uncached)
    assert not list((tmp_path / "b").rglob("*.states"))


def test_steps_without_a_finite_gradient_are_left_out(decoder: Decoder) -> None:
    one = student(decoder, 2, 4)
    one.module.register_forward_hook(
        lambda m, _a, out: out * float("inf") if torch.is_grad_enabled() else out
    )
    start = weights(one)
    (losses,) = fit(decoder, [one], TRAIN, VALIDATION)
    assert losses.skipped_steps == 6
    assert losses.rows[1]["train_loss"] is None
    assert_equal(weights(one), start)


def test_refusals(decoder: Decoder) -> None:
    one = student(decoder, 2, 4)
    with pytest.raises(ConfigError, match=r"train tokens must be .* got torch.float32"):
        fit(decoder, [one], TRAIN.float(), VALIDATION)
    with pytest.raises(ConfigError, match=r"validation tokens must be a non-empty"):
        fit(decoder, [one], TRAIN, VALIDATION[:0])
    with pytest.raises(ConfigError, match="need at least 2 tokens, got 1"):
        fit(decoder, [one], TRAIN[:, :1], VALIDATION)
    with pytest.raises(ConfigError, match="autocast must be None or torch.bfloat16"):
        fit(decoder, [one], TRAIN, VALIDATION, autocast=torch.float16)
    with pytest.raises(ConfigError, match="as many different labels"):
        fit(decoder, [one, one], TRAIN, VALIDATION, labels=["a", "a"])
    with pytest.raises(ConfigError, match="does not fit a model of 6 layers"):
        fit(decoder, [Student(Span(5, 7), one.module, RECIPE)], TRAIN, VALIDATION)
    with pytest.raises(ConfigError, match="need as many paths, got 0"):
        fit(decoder, [one], TRAIN, VALIDATION, paths=[])
