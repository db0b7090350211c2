"""A tiny teacher, tokens, and students to be trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder
from streamline.methods.replacement import make
from streamline.plan import Span
from streamline.training.student import Recipe, Student


@pytest.fixture
def decoder(tiny_llama: Callable[..., nn.Module]) -> Decoder:
    return Decoder(tiny_llama(n_layers=6))


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        normalize=False,
        epochs=2,
        length=16,
        batch_tokens=64,
        learning_rate=3e-3,
        final_learning_rate=3e-4,
        validation_tokens=64,
        evaluations=2,
    )


@pytest.fixture
def tokens() -> Callable[..., Tensor]:
    """``tokens(n)``: random sequences."""

    def draw(n: int, length: int = 16, seed: int = 0) -> Tensor:
        return torch.randint(0, 256, (n, length), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def train(tokens: Callable[..., Tensor]) -> Tensor:
    return tokens(10)


@pytest.fixture
def validation(tokens: Callable[..., Tensor]) -> Tensor:
    return tokens(4, seed=1)


@pytest.fixture
def student(recipe: Recipe) -> Callable[..., Student]:
    """``student(decoder, start, stop, kind, **changes of the recipe)``."""

    def build(
        decoder: Decoder, start: int, stop: int, kind: str = "ffn", **changes: object
    ) -> Student:
        span = Span(start, stop)
        init = "first" if kind == "layer" else "random"
        return Student(
            span, make(kind, decoder, span, init=init), recipe.model_copy(update=changes)
        )

    return build


@pytest.fixture
def weights() -> Callable[..., list[Tensor]]:
    """``weights(*students)``: copies of all their weights."""

    def copies(*students: Student) -> list[Tensor]:
        return [p.detach().clone() for s in students for p in s.module.parameters()]

    return copies


@pytest.fixture
def assert_equal() -> Callable[..., None]:
    """``assert_equal(a, b)``: two lists of tensors are the same to the bit."""

    def check(a: list[Tensor], b: list[Tensor]) -> None:
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)

    return check
