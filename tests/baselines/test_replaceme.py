from __future__ import annotations

import pytest
import torch
from torch import nn

from streamline.baselines._cosine_map import cosine_distance, fit_cosine
from streamline.baselines.replaceme import ReplaceMe, StatesFit, fit, fold
from streamline.calibration import measure
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.paths import dense_path
from streamline.errors import ConfigError, UnsupportedModelError
from streamline.methods.teacher_fits import fitted
from streamline.plan import Span
from streamline.testing.models import tiny_model
from streamline.testing.snapshot import differences, snapshot

TOKENS = torch.randint(0, 256, (24, 24), generator=torch.Generator().manual_seed(5))


class LinearOfMLP(nn.Module):
    """A span that *is* linear in the MLP output before it: ``h + M (A - I)``."""

    def __init__(self, source: nn.Module, matrix: torch.Tensor) -> None:
        super().__init__()
        self.matrix = matrix
        self.last: list[torch.Tensor] = []
        source.register_forward_hook(lambda m, args, out: self.last.append(out))

    def forward(self, hidden: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        mlp = self.last[-1].reshape(hidden.shape)
        return hidden + mlp @ self.matrix - mlp


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_recovers_a_span_that_is_linear(family):
    decoder = Decoder(tiny_model(family, n_layers=4))
    width = decoder.hidden_size
    matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(1)) * 0.3
    out = submodule(decoder.layers[0], decoder.family.mlp_out)
    linear = LinearOfMLP(out, matrix)
    layers = decoder.layers
    decoder.layers = [layers[0], linear, layers[2], layers[3]]
    transform, error = fit(decoder, TOKENS, Span(1, 2), ridge=0.0)
    assert torch.allclose(transform, matrix.double(), atol=1e-4)
    assert error["error"] < 1e-8 < error["error_dropped"]
    with torch.no_grad():
        entry = Decoder.enter(decoder, TOKENS[:2])
        want = decoder.run(linear, decoder.run(layers[0], entry.hidden, entry, 0), entry, 1)
        found = decoder.run(fold(decoder, 0, transform), entry.hidden, entry, 0)
    assert torch.allclose(found, want, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_least_squares_against_a_naive_solution(family):
    decoder = Decoder(tiny_model(family, n_layers=4))
    caught = []
    out = submodule(decoder.layers[1], decoder.family.mlp_out)
    hook = out.register_forward_hook(lambda m, args, output: caught.append(output))
    with torch.no_grad():
        states = [h for _, h in decoder.trace(decoder.enter(TOKENS))]
    hook.remove()
    width = decoder.hidden_size
    mlp = caught[0].reshape(-1, width).double()
    attention = states[2].reshape(-1, width).double() - mlp
    target = states[4].reshape(-1, width).double() - attention
    naive = torch.linalg.lstsq(mlp, target).solution
    transform, error = fit(decoder, TOKENS, Span(2, 4), ridge=0.0, batch_tokens=100)
    assert torch.allclose(transform, naive, atol=1e-4)
    residual = (mlp @ naive - target).square().sum() / states[4].double().square().sum()
    assert error["error"] == pytest.approx(float(residual), rel=1e-5)
    assert error["error"] < error["error_dropped"]


def test_the_map_is_folded_so_that_the_model_stays_plain(tiny_opt, tiny_llama):
    for factory in (tiny_opt, tiny_llama):
        decoder = Decoder(factory(n_layers=6))
        method = ReplaceMe()
        pruned = method.prune(decoder, measure(decoder, TOKENS), 0.3, TOKENS, 0)
        start, stop = pruned.notes["span"]
        assert pruned.plan.removed_layers == list(range(start, stop))
        model = assemble(pruned.path(decoder))
        kinds = {type(layer) for layer in Decoder(model).layers}
        assert kinds == {type(decoder.layers[0])}
        assert method.size(decoder, 0.3).pruned == pruned.n_parameters(decoder)
        assert pruned.notes["error"] < pruned.notes["error_dropped"]
        assert dense_path(decoder).n_parameters() == decoder.n_parameters()


def test_the_run_never_starts_at_layer_0(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=4))
    with torch.no_grad():
        for parameter in decoder.layers[0].parameters():
            parameter.zero_()
    calibration = measure(decoder, TOKENS)
    for distance in ("cosine", "angle"):
        assert ReplaceMe(distance=distance).span(calibration, 1).start >= 1
        assert ReplaceMe(distance=distance).span(calibration, 3) == Span(1, 4)
    with pytest.raises(UnsupportedModelError, match="at most 3 of 4 layers can be removed, not 4"):
        ReplaceMe().span(calibration, 4)


def test_models_with_a_norm_after_the_mlp_are_refused():
    gemma = Decoder(tiny_model("gemma2", n_layers=2))
    assert "puts a norm between" in (ReplaceMe().unsupported(gemma) or "")
    post = Decoder(tiny_model("opt", n_layers=2, do_layer_norm_before=False))
    assert "normalises after the addition" in (ReplaceMe().unsupported(post) or "")
    assert ReplaceMe().unsupported(Decoder(tiny_model("llama", n_layers=2))) is None


def test_cosine_distance_by_hand():
    found = torch.tensor([[1.0, 0.0], [3.0, 3.0], [-2.0, 0.0]])
    wanted = torch.tensor([[5.0, 0.0], [0.0, 7.0], [1.0, 0.0]])
    expected = (0.0 + (1.0 - 0.5**0.5) + 2.0) / 3
    assert float(cosine_distance(found, wanted)) == pytest.approx(expected)


def states(decoder, span):
    (found,) = fitted(decoder, [StatesFit(span)], TOKENS)
    return [torch.cat(part) for part in zip(*found.rows, strict=True)]


def cosine_fit(decoder, span, **changes):
    settings = {"epochs": 40, "learning_rate": 1e-2, "batch": 128, "seed": 0} | changes
    return fit_cosine(*states(decoder, span), device=decoder.device, **settings)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_cosine_objective_recovers_a_span_that_is_linear(family):
    decoder = Decoder(tiny_model(family, n_layers=4))
    width = decoder.hidden_size
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(1))
    matrix = torch.eye(width) + 0.1 * noise
    out = submodule(decoder.layers[0], decoder.family.mlp_out)
    layers = decoder.layers
    decoder.layers = [layers[0], LinearOfMLP(out, matrix), layers[2], layers[3]]
    transform, error = cosine_fit(decoder, Span(1, 2))
    assert error["error"] < 1e-2 * error["error_dropped"]
    mlp = states(decoder, Span(1, 2))[0].double()
    wanted = matrix.double()
    missed = (mlp @ (transform - wanted)).norm() / (mlp @ (torch.eye(width) - wanted)).norm()
    assert missed < 0.1, "the map itself, not only the angle, is found"


def test_the_cosine_of_the_pruned_model_is_the_one_that_was_fitted(tiny_llama):
    """The folded layer's own states after the cut, against the dense ones."""
    decoder = Decoder(tiny_llama(n_layers=6))
    calibration, before = measure(decoder, TOKENS), snapshot(decoder.model)
    method = ReplaceMe(objective="cosine", epochs=30, learning_rate=1e-2, batch=96)
    pruned = method.prune(decoder, calibration, 0.3, TOKENS, 0)
    assert not differences(before, snapshot(decoder.model))
    start, stop = pruned.notes["span"]
    with torch.no_grad():
        entry = decoder.enter(TOKENS)
        dense = dict(decoder.trace(entry, stop))
        node = pruned.path(decoder).nodes[start - 1]
        found = decoder.run(node.module, dense[start - 1], entry, start - 1)
    flat = (found.flatten(0, 1), dense[stop].flatten(0, 1))
    assert pruned.notes["error"] == pytest.approx(float(cosine_distance(*flat)), rel=1e-4)
    flat = (dense[start].flatten(0, 1), dense[stop].flatten(0, 1))
    assert pruned.notes["error_dropped"] == pytest.approx(float(cosine_distance(*flat)), rel=1e-4)
    squares = ReplaceMe().prune(decoder, calibration, 0.3, TOKENS, 0)
    with torch.no_grad():
        by_squares = squares.path(decoder).nodes[start - 1].module
        other = decoder.run(by_squares, dense[start - 1], entry, start - 1)
    distance = float(cosine_distance(other.flatten(0, 1), dense[stop].flatten(0, 1)))
    assert pruned.notes["error"] < pruned.notes["error_dropped"]
    assert pruned.notes["error"] < distance * 1.05, "as near in angle as least squares"


def test_the_order_of_the_cosine_fit_follows_the_seed(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=4))
    first, again, other = (
        cosine_fit(decoder, Span(1, 3), epochs=2, seed=seed)[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_settings_of_the_cosine_fit_are_checked():
    with pytest.raises(ConfigError, match="epochs=0 of replaceme is not accepted: .* 1"):
        ReplaceMe(epochs=0)
