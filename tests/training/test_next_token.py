from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamline.engine import head
from streamline.engine.decoder import Decoder
from streamline.engine.head import summed_loss
from streamline.engine.paths import Path
from streamline.errors import ConfigError
from streamline.method import Pruned
from streamline.methods.loss import path_losses
from streamline.methods.replacement import make
from streamline.plan import Plan, Span, Step
from streamline.training.fit import fit
from streamline.training.student import Recipe, Student

RECIPE = Recipe(
    objective="lm",
    batch_tokens=64,
    learning_rate=3e-3,
    epochs=3,
    evaluations=3,
    validation_tokens=160,
)


def tokens(n: int, length: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, length), generator=torch.Generator().manual_seed(seed))


TRAIN = tokens(10)


@pytest.fixture
def decoder(tiny_llama: Callable[..., nn.Module]) -> Decoder:
    return Decoder(tiny_llama(n_layers=6))


def student(decoder: Decoder, start: int, stop: int, kind: str = "layer") -> Student:
    span = Span(start, stop)
    init = "first" if kind == "layer" else "random"
    return Student(span, make(kind, decoder, span, init=init), RECIPE)


def path_of(decoder: Decoder, *students: Student) -> Path:
    steps, modules, layer = [], {}, 0
    for one in sorted(students, key=lambda s: s.span.start):
        steps += [Step(i) for i in range(layer, one.span.start)]
        modules[len(steps)] = one.module
        steps.append(Step(one.span.start, "ffn", one.span))
        layer = one.span.stop
    steps += [Step(i) for i in range(layer, decoder.n_layers)]
    return Pruned(Plan(decoder.n_layers, tuple(steps), "ffn"), modules).path(decoder)


def test_loss_is_that_of_the_whole_pruned_model(decoder: Decoder) -> None:
    one = student(decoder, 1, 4)
    path = path_of(decoder, one)
    before = path_losses([path], TRAIN)[0]
    (losses,) = fit(decoder, [one], TRAIN, TRAIN)
    assert losses.before == pytest.approx(before, rel=1e-5)
    assert losses.best == pytest.approx(path_losses([path], TRAIN)[0], rel=1e-5)
    assert losses.best < losses.before
    assert losses.dropping is None
    assert losses.relative is None


def test_only_the_student_changes(decoder: Decoder) -> None:
    before = {k: v.clone() for k, v in decoder.model.state_dict().items()}
    one = student(decoder, 1, 4)
    start = copy.deepcopy(one.module)
    fit(decoder, [one], TRAIN, TRAIN)
    for name, value in decoder.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in decoder.model.parameters())
    for a, b in zip(one.module.parameters(), start.parameters(), strict=True):
        assert not torch.equal(a, b)


def test_first_gradient_is_that_of_plain_backpropagation(decoder: Decoder) -> None:
    one = student(decoder, 1, 4)
    recipe = RECIPE.model_copy(
        update={
            "epochs": 1,
            "batch_tokens": TRAIN.numel(),
            "learning_rate": 0.1,
            "final_learning_rate": 0.1,
        }
    )
    module = copy.deepcopy(one.module)
    nodes = [*decoder.layers[:1], module, *decoder.layers[4:]]
    entry = decoder.enter(TRAIN)
    hidden = entry.hidden
    for place, layer in zip((0, 1, 4, 5), nodes, strict=True):
        hidden = decoder.run(layer, hidden, entry, place)
    logits = decoder.leave(hidden)[:, :-1].flatten(0, 1)
    functional.cross_entropy(logits, TRAIN[:, 1:].flatten()).backward()
    nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
    decoder.model.zero_grad()
    sgd: list[Tensor] = []

    def grab(*_: object) -> None:
        sgd.extend(p.grad.clone() for p in one.module.parameters())

    fit(decoder, [Student(one.span, one.module, recipe)], TRAIN, TRAIN, progress=grab)
    got = torch.cat([g.flatten() for g in sgd])
    expected = torch.cat([p.grad.flatten() for p in module.parameters()])
    # The hook sees gradients before clipping: compare directions and the clipped size.
    torch.testing.assert_close(
        got * min(1.0, recipe.clip / float(got.norm())), expected, rtol=1e-3, atol=1e-5
    )


def test_layers_before_the_span_run_once_for_all_students(decoder: Decoder) -> None:
    students = [student(decoder, 2, 4), student(decoder, 2, 4, "ffn"), student(decoder, 3, 5)]
    counts = [0] * 6
    for index, layer in enumerate(decoder.layers):
        layer.self_attn.register_forward_hook(
            lambda *_, index=index: counts.__setitem__(index, counts[index] + 1)
        )
    fit(decoder, students, TRAIN, TRAIN, micro_batch=1024)
    batches = 9 + 4  # training steps and validations
    assert counts == [batches, batches, batches, 0, 2 * batches, 3 * batches]


def test_students_of_one_path_are_trained_together(decoder: Decoder) -> None:
    students = [student(decoder, 1, 2, "ffn"), student(decoder, 3, 5, "ffn")]
    path = path_of(decoder, *students)
    before = path_losses([path], TRAIN)[0]
    first, second = fit(decoder, students, TRAIN, TRAIN, paths=[path, path])
    assert first is second
    assert first.spans == [[1, 2], [3, 5]]
    assert first.before == pytest.approx(before, rel=1e-5)
    assert first.best == pytest.approx(path_losses([path], TRAIN)[0], rel=1e-5)
    assert first.best < first.before
    other = Student(students[1].span, students[1].module, RECIPE.model_copy(update={"epochs": 1}))
    with pytest.raises(ConfigError, match="must have one recipe"):
        fit(decoder, [students[0], other], TRAIN, TRAIN, paths=[path, path])


def test_parts_of_one_module_are_trained_together(decoder: Decoder) -> None:
    span = Span(1, 3)
    stack = make("multiple-ffn", decoder, span)
    path = path_of(decoder, Student(span, stack, RECIPE))
    parts = [
        Student(Span(layer, layer + 1), part, RECIPE)
        for layer, part in zip(span.layers, stack.sequence(), strict=True)
    ]
    start = path_losses([path], TRAIN)[0]
    first, _ = fit(decoder, parts, TRAIN, TRAIN, paths=[path, path])
    assert first.before == pytest.approx(start, rel=1e-5)
    assert first.best == pytest.approx(path_losses([path], TRAIN)[0], rel=1e-5)
    assert first.best < first.before
    stranger = student(decoder, 1, 3)
    with pytest.raises(ConfigError, match="does not lie on its path"):
        fit(decoder, [stranger], TRAIN, TRAIN, paths=[path])


def test_post_training_goes_on_from_the_hidden_state_loss(decoder: Decoder) -> None:
    one = student(decoder, 1, 3)
    mse = Student(one.span, one.module, RECIPE.model_copy(update={"objective": "mse"}))
    fit(decoder, [mse], TRAIN, TRAIN)
    after_mse = path_losses([path_of(decoder, one)], TRAIN)[0]
    (losses,) = fit(decoder, [one], TRAIN, TRAIN)
    assert losses.before == pytest.approx(after_mse, rel=1e-5)
    assert losses.best < after_mse


def test_head_in_pieces_gives_the_same_loss_and_gradient(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scored = torch.rand(4, 16, generator=torch.Generator().manual_seed(1)) < 0.5
    results = []
    for rows in (1024, 7):
        monkeypatch.setattr(head, "chunk_rows", lambda *_, rows=rows, **__: rows)
        loss = summed_loss(decoder, hidden, TRAIN[:4], scored)
        (gradient,) = torch.autograd.grad(loss, hidden)
        results.append((loss.detach(), gradient))
    torch.testing.assert_close(results[0], results[1])
    logp = decoder.leave(hidden).log_softmax(-1)[:, :-1].gather(2, TRAIN[:4, 1:, None])[..., 0]
    assert float(results[0][0]) == pytest.approx(
        -float(logp[scored[:, 1:]].detach().sum()), rel=1e-5
    )
