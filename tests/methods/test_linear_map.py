"""The closed-form map between two depths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder
from streamline.methods.linear_map import LinearMoments, linear_maps
from streamline.plan import Span


@pytest.fixture
def decoder(tiny_llama: Callable[..., nn.Module]) -> Decoder:
    return Decoder(tiny_llama(n_layers=5))


def tokens(n: int, length: int = 16) -> Tensor:
    return torch.randint(0, 256, (n, length), generator=torch.Generator().manual_seed(0))


def test_linear_maps_find_a_span_that_is_linear(decoder: Decoder) -> None:
    class Affine(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(seed)
            self.weight = nn.Parameter(torch.randn(32, 32, generator=generator) / 6)
            self.bias = nn.Parameter(torch.randn(32, generator=generator))

        def forward(self, hidden: Tensor, *_: object, **__: object) -> Tensor:
            return hidden @ self.weight.T + self.bias

    first, second = Affine(1), Affine(2)
    layers = decoder.model.model.layers
    layers[2], layers[3] = first, second
    decoder = Decoder(decoder.model)
    both, first_only = Span(2, 4), Span(2, 3)
    maps = linear_maps(decoder, [both, first_only, both], tokens(40), ridge=1e-10)
    assert set(maps) == {both, first_only}
    torch.testing.assert_close(maps[first_only][0].float(), first.weight.data, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(maps[first_only][1].float(), first.bias.data, rtol=1e-3, atol=1e-3)
    product = second.weight.data @ first.weight.data
    shift = second.weight.data @ first.bias.data + second.bias.data
    torch.testing.assert_close(maps[both][0].float(), product, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(maps[both][1].float(), shift, rtol=1e-3, atol=1e-3)


def test_linear_maps_do_not_depend_on_micro_batches_or_company(decoder: Decoder) -> None:
    spans = [Span(1, 3), Span(2, 4), Span(1, 4)]
    together = linear_maps(decoder, spans, tokens(12))
    for span in spans:
        alone = linear_maps(decoder, [span], tokens(12), micro_batch=16)
        torch.testing.assert_close(together[span], alone[span], rtol=1e-6, atol=1e-6)


def test_closed_form_finds_an_exact_map() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    bias = torch.randn(16, generator=generator, dtype=torch.float64)
    moments = LinearMoments(16)
    for _ in range(4):
        x = 100 + torch.randn(3, 50, 16, generator=generator, dtype=torch.float64)
        moments.update(x, x @ weight.T + bias)
    found, offset = moments.solve(ridge=0.0)
    torch.testing.assert_close(found, weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(offset, bias, rtol=0, atol=1e-6)
    assert moments.n_tokens == 600


def test_batches_of_any_size_give_the_same_map() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 120, 8, generator=generator)
    whole, parts = LinearMoments(8), LinearMoments(8)
    whole.update(x, y)
    for start in range(0, 120, 40):
        parts.update(x[start : start + 40], y[start : start + 40])
    for a, b in zip(whole.solve(), parts.solve(), strict=True):
        torch.testing.assert_close(a, b)
    expected = torch.linalg.lstsq(torch.cat([x, torch.ones(120, 1)], dim=1), y).solution
    found, offset = whole.solve(ridge=0.0)
    torch.testing.assert_close(found.float(), expected[:8].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(offset.float(), expected[8], rtol=1e-4, atol=1e-5)


def test_weighted_moments_give_the_map_of_least_relative_error(decoder: Decoder) -> None:
    """Against rows scaled by hand; a few tokens hundreds of times larger own the plain map."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 200, 8, generator=generator, dtype=torch.float64)
    x[:3], y[:3] = 300 * x[:3], 300 * y[:3]
    weights = 1.0 / y.square().mean(-1)
    moments = LinearMoments(8)
    for start in range(0, 200, 50):
        part = slice(start, start + 50)
        moments.update(x[part], y[part], weights[part])
    found, offset = moments.solve(ridge=0.0)
    root = weights.sqrt()[:, None]
    rows = root * torch.cat([x, torch.ones(200, 1, dtype=torch.float64)], dim=1)
    expected = torch.linalg.lstsq(rows, root * y).solution
    torch.testing.assert_close(found, expected[:8].T, rtol=0, atol=1e-9)
    torch.testing.assert_close(offset, expected[8], rtol=0, atol=1e-9)

    span, ids = Span(1, 3), tokens(12)
    with torch.no_grad():
        states = [hidden.double() for _, hidden in decoder.trace(decoder.enter(ids), 3)]
    before, after = states[1].flatten(0, 1), states[3].flatten(0, 1)

    def error(weight: Tensor, bias: Tensor) -> float:
        left = (before @ weight.T + bias - after).square().sum(-1)
        return float((left / after.square().sum(-1)).mean())

    plain = linear_maps(decoder, [span], ids, ridge=0.0)[span]
    weighted = linear_maps(decoder, [span], ids, ridge=0.0, weighted=True)[span]
    assert error(*weighted) < error(*plain)


def test_the_penalty_pulls_towards_dropping() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 200, 8, generator=generator)
    moments = LinearMoments(8)
    moments.update(x, y)
    distances = [
        (moments.solve(ridge)[0] - torch.eye(8)).norm().item() for ridge in (0, 1, 100, 1e6)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4


def test_moments_need_tokens_of_one_shape() -> None:
    with pytest.raises(ValueError, match="no hidden states were added"):
        LinearMoments(4).solve()
    with pytest.raises(ValueError, match=r"x \[2, 4\] and y \[3, 4\] must have the same shape"):
        LinearMoments(4).update(torch.zeros(2, 4), torch.zeros(3, 4))
