from __future__ import annotations

import pytest
import torch

from streamline.baselines._distilling import Distillation, top_divergence
from streamline.baselines._magnitudes import magnitude_ratios
from streamline.baselines.linearpatch import LinearPatch, orthogonal_rotation
from streamline.calibration import measure
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError
from streamline.method import Pruned
from streamline.modeling.modeling_layers import LinearMap
from streamline.plan import Span
from streamline.testing.snapshot import differences, snapshot

TOKENS = torch.randint(0, 256, (4, 12), generator=torch.Generator().manual_seed(6))


def prune(decoder: Decoder, method: LinearPatch, sparsity: float) -> Pruned:
    return method.prune(decoder, measure(decoder, TOKENS), sparsity, TOKENS, 0)


@pytest.mark.parametrize(
    ("order", "kind"),
    [
        (1, "hadamard"),
        (2, "hadamard"),
        (32, "hadamard"),
        (12, "hadamard"),
        (20, "hadamard"),
        (28, "hadamard"),
        (36, "hadamard"),
        (40, "hadamard"),
        (576, "hadamard"),
        (960, "hadamard"),
        (33, "cosine"),
        (18, "cosine"),
    ],
)
def test_rotations_are_orthogonal_and_hadamard_where_one_is_built(order, kind):
    matrix, found = orthogonal_rotation(order)
    assert found == kind
    assert torch.allclose(matrix @ matrix.T, torch.eye(order).double(), atol=1e-10)
    if kind == "hadamard":
        assert torch.allclose(matrix.abs() * order**0.5, torch.ones(order, order).double())


@pytest.mark.parametrize("width", [768, 2048, 2560, 3072, 3584, 4096, 5120, 8192])
def test_common_hidden_sizes_have_a_hadamard_matrix(width):
    from streamline.baselines import linearpatch

    twos = (width & -width).bit_length() - 1
    assert any(linearpatch._paley(width >> power) is not None for power in range(twos, -1, -1))


def test_patch_is_symmetric_and_counted(tiny_llama, tiny_opt):
    for factory in (tiny_llama, tiny_opt):
        decoder = Decoder(factory(n_layers=6))
        pruned = prune(decoder, LinearPatch(), 0.25)
        (weight,) = [m.map.weight for m in pruned.modules.values()]
        assert torch.allclose(weight, weight.T, atol=1e-6)
        n = len(pruned.plan.removed_layers)
        expected = decoder.n_parameters() - n * decoder.layer_parameters(0) + 32**2
        assert pruned.n_parameters(decoder) == expected
        assert LinearPatch().size(decoder, 0.25).pruned == expected


def test_no_gap_gives_the_identity(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=6))
    with torch.no_grad():
        for index in (2, 3):
            for parameter in decoder.layers[index].parameters():
                parameter.zero_()
    pruned = prune(decoder, LinearPatch(), 0.16)
    assert pruned.notes["span"] in ([2, 3], [2, 4], [3, 4])
    (patch,) = pruned.modules.values()
    assert torch.allclose(patch.map.weight, torch.eye(32), atol=1e-6)


def test_ratios_against_a_naive_count(tiny_opt):
    decoder = Decoder(tiny_opt(n_layers=4))
    turn, _ = orthogonal_rotation(32)
    with torch.no_grad():
        states = [h.double() for _, h in decoder.trace(decoder.enter(TOKENS))]
    ratios = []
    for row in range(len(TOKENS)):
        before, after = (states[depth][row] @ turn for depth in (1, 3))
        ratios.append(after.abs().mean(0) / before.abs().mean(0))
    found = magnitude_ratios(decoder, TOKENS, Span(1, 3), lambda _: turn, batch_tokens=30)
    assert torch.allclose(found, torch.stack(ratios).mean(0))


def test_a_gap_in_one_scale_is_closed(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=4))

    class Double(torch.nn.Module):
        def forward(self, hidden, *args, **kwargs):
            return 2.0 * hidden

    turn, _ = orthogonal_rotation(32)
    decoder.layers[1] = Double()
    found = magnitude_ratios(decoder, TOKENS, Span(1, 2), lambda _: turn)
    assert torch.allclose(found, torch.full((32,), 2.0).double())


def test_without_rotation_the_patch_is_diagonal(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=6))
    (patch,) = prune(decoder, LinearPatch(rotation="none"), 0.25).modules.values()
    weight = patch.map.weight.detach()
    assert torch.equal(weight, torch.diag(weight.diagonal()))
    assert (weight.diagonal() > 0).all()


def logits_of(pruned: Pruned, decoder: Decoder) -> torch.Tensor:
    path, entry = pruned.path(decoder), decoder.enter(TOKENS)
    hidden = entry.hidden
    for node in path.nodes:
        hidden = decoder.run(node.module, hidden, entry, node.layer)
    return decoder.leave(hidden)


def test_divergence_by_hand_and_against_the_whole_vocabulary():
    teacher = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    student = torch.log(torch.tensor([[0.2, 0.3, 0.5]]))
    p, q = torch.tensor([5 / 8, 3 / 8]), torch.tensor([2 / 5, 3 / 5])
    expected = float((p * (p / q).log()).sum())
    assert float(top_divergence(teacher, student, 2)) == pytest.approx(expected, rel=1e-5)
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2, 3, 50, generator=generator) for _ in range(2))
    whole = torch.nn.functional.kl_div(
        other.log_softmax(-1).flatten(0, 1),
        one.log_softmax(-1).flatten(0, 1),
        log_target=True,
        reduction="batchmean",
    )
    assert float(top_divergence(one, other, 50)) == pytest.approx(float(whole), rel=1e-5)
    assert float(top_divergence(one, other, 999)) == pytest.approx(float(whole), rel=1e-5)
    assert float(top_divergence(one, one, 7)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_distillation_brings_the_logits_nearer(family, tiny_llama, tiny_opt):
    factory = tiny_llama if family == "llama" else tiny_opt
    decoder = Decoder(factory(n_layers=6))
    plain = prune(decoder, LinearPatch(), 0.25)
    before = snapshot(decoder.model)
    method = LinearPatch(distill_epochs=8, learning_rate=3e-3, step_tokens=24)
    pruned = prune(decoder, method, 0.25)
    assert not differences(before, snapshot(decoder.model))
    facts = pruned.notes["distillation"]
    with torch.no_grad():
        dense = decoder.logits(TOKENS)
        found = [float(top_divergence(dense, logits_of(p, decoder), 100)) for p in (plain, pruned)]
    assert facts["before"] == pytest.approx(found[0], rel=1e-4)
    assert facts["after"] == pytest.approx(found[1], rel=1e-4)
    assert facts["after"] < 0.9 * facts["before"]
    assert (facts["n_steps"], facts["tokens"]) == (16, 8 * TOKENS.numel())
    assert facts["trained_parameters"] == 32**2
    assert pruned.n_parameters(decoder) == plain.n_parameters(decoder)
    assert "distillation" not in plain.notes


def test_distillation_finds_a_map_that_was_hidden(tiny_llama):
    """A layer that only scales channels: the matrix that does so gives the dense logits."""
    model = tiny_llama(n_layers=3)
    scales = 1.0 + 0.3 * torch.randn(32, generator=torch.Generator().manual_seed(2))

    class Scale(torch.nn.Module):
        def forward(self, hidden, *args, **kwargs):
            return hidden * scales

    model.model.layers[1] = Scale()
    decoder = Decoder(model)
    patch = LinearMap(32, bias=False)
    torch.nn.init.eye_(patch.map.weight)
    distillation = Distillation(decoder, Span(1, 2), patch, 50)
    facts = distillation.train(TOKENS, epochs=25, learning_rate=2e-2, step_tokens=24, seed=0)
    assert facts["after"] < 0.25 * facts["before"]
    with torch.no_grad():
        patch.map.weight.copy_(torch.diag(scales))
    assert distillation.divergence(TOKENS, 4) == pytest.approx(0.0, abs=1e-6)


def test_settings_of_the_distillation_are_checked():
    with pytest.raises(ConfigError, match="top_k=1 of linearpatch is not accepted: .* 2"):
        LinearPatch(distill_epochs=1, top_k=1)
