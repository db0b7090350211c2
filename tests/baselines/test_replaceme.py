from __future__ import annotations

import pytest
import torch
from torch import nn

from streamline.baselines.replaceme import ReplaceMe, fit, fold
from streamline.calibration import measure
from streamline.decoder import Decoder, submodule
from streamline.errors import ConfigError
from streamline.paths import dense_path
from streamline.plan import Span
from streamline.surgery import assemble
from streamline.testing import tiny_model

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


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gpt_neox"])
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
    with pytest.raises(ConfigError, match="at most 3 of 4 layers can go, not 4"):
        ReplaceMe().span(calibration, 4)


def test_models_with_a_norm_behind_the_mlp_are_refused():
    gemma = Decoder(tiny_model("gemma2", n_layers=2))
    assert "puts a norm between" in (ReplaceMe().unsupported(gemma) or "")
    post = Decoder(tiny_model("opt", n_layers=2, do_layer_norm_before=False))
    assert "normalises behind the addition" in (ReplaceMe().unsupported(post) or "")
    assert ReplaceMe().unsupported(Decoder(tiny_model("llama", n_layers=2))) is None
