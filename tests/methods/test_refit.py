"""Layers refitted in closed form to follow the dense model's states."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from streamline.api.variants import unsupported_reason
from streamline.baselines.sleb import SLEB
from streamline.checkpoints.checkpoint import load, save
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.paths import dense_path
from streamline.errors import ConfigError, NotFiniteError, UnsupportedModelError
from streamline.evaluation.efficiency.memory import peak_of
from streamline.method import Pruned
from streamline.methods import refit, ridge
from streamline.methods.layers import projection
from streamline.methods.llm_streamline import StreamlineNone
from streamline.methods.refit import cannot_refit, refitted, rehearse_refit
from streamline.plan import Plan
from streamline.run.planning.rehearsal import Rehearsal
from streamline.testing.models import tiny_model
from streamline.testing.snapshot import differences, snapshot

TOKENS = torch.randint(0, 256, (24, 24), generator=torch.Generator().manual_seed(5))
FRESH = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(6))


def drop(n_layers: int, *layers: int) -> Pruned:
    return Pruned(Plan.drop(n_layers, layers))


def inner(layer: nn.Module, path: str, seen: list[Tensor]) -> None:
    """Keep what a projection reads."""
    submodule(layer, path).register_forward_hook(lambda _, args, __: seen.append(args[0]))


class LinearOfInner(nn.Module):
    """A layer that adds a linear map of what the MLP's projection before it reads."""

    def __init__(self, before: nn.Module, path: str, matrix: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(matrix)
        self.seen: list[Tensor] = []
        inner(before, path, self.seen)

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        read = self.seen[-1].reshape(*hidden.shape[:2], -1)
        return hidden + read @ self.weight


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_a_layer_that_the_one_before_can_take_over_is_taken_over(family, monkeypatch):
    monkeypatch.setattr(ridge, "RIDGES", (1e-13,))
    decoder = Decoder(tiny_model(family, n_layers=4))
    path = decoder.family.mlp_out
    width = next(submodule(decoder.layers[0], path).parameters()).numel() // decoder.hidden_size
    matrix = torch.randn(width, decoder.hidden_size, generator=torch.Generator().manual_seed(1))
    odd = LinearOfInner(decoder.layers[0], path, 0.1 * matrix)
    submodule(decoder.model, decoder.family.layers)[1] = odd
    decoder = Decoder(decoder.model)
    found = refitted(decoder, drop(4, 1), TOKENS)
    assert found.plan.removed_layers == [1]
    assert [step.kind for step in found.plan.steps] == ["layer-copy"] * 3
    ends = []
    with torch.no_grad():
        for nodes in (dense_path(decoder).nodes, found.path(decoder).nodes):
            entry = decoder.enter(FRESH)
            hidden = entry.hidden
            for node in nodes:
                hidden = decoder.run(node.module, hidden, entry, node.layer)
            ends.append(hidden)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-3, atol=1e-3)
    before, after = found.notes["refit"][0]["mlp"]
    assert after < 1e-8 < before


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_ridge_regression_against_a_naive_solution(family, monkeypatch):
    """Before the gap: weights of the targets' sizes, a penalty, all sequences."""
    monkeypatch.setattr(ridge, "RIDGES", (1.0,))
    monkeypatch.setattr(refit, "BATCH_TOKENS", 100)
    decoder = Decoder(tiny_model(family, n_layers=5))
    found = refitted(decoder, drop(5, 2, 3), TOKENS)
    seen: list[Tensor] = []
    inner(decoder.layers[1], decoder.family.mlp_out, seen)
    with torch.no_grad():
        states = [hidden.double() for _, hidden in decoder.trace(decoder.enter(TOKENS))]
    read = seen[0].double().reshape(TOKENS.numel(), -1)
    wanted, dropped = states[4].flatten(0, 1), states[2].flatten(0, 1)
    root = wanted.square().mean(1, keepdim=True).rsqrt()
    gram = (root * read).T @ (root * read)
    pull = (1.0 * gram.diagonal().mean()).sqrt() * torch.eye(len(gram), dtype=gram.dtype)
    rows = torch.cat([root * read, pull])
    right = torch.cat([root * (wanted - dropped), torch.zeros(len(gram), wanted.shape[1])])
    naive = torch.linalg.lstsq(rows, right).solution
    old, new = (
        submodule(layer, decoder.family.mlp_out).weight
        for layer in (decoder.layers[1], found.modules[1])
    )
    torch.testing.assert_close((new - old).double(), naive.T, rtol=0, atol=1e-5)
    # Up to the gap both models are one, so the attention before it has nothing to learn.
    o = decoder.family.o
    assert torch.equal(
        submodule(found.modules[1], o).weight, submodule(decoder.layers[1], o).weight
    )
    assert found.notes["refit"][0]["attention"] == [0.0, 0.0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bloom", "falcon", "qwen2"])
def test_states_come_nearer_in_every_family_and_the_dense_model_stays(family, tmp_path):
    decoder = Decoder(tiny_model(family))
    before = snapshot(decoder.model)
    dropped = drop(6, 2, 3)
    found = refitted(decoder, dropped, TOKENS)
    assert not differences(before, snapshot(decoder.model))
    assert sorted(found.modules) == [1, 2, 3]
    assert found.n_parameters(decoder) == dropped.n_parameters(decoder)
    for note in found.notes["refit"]:
        for name in ("attention", "mlp"):
            assert note[name][1] <= note[name][0]
    assert found.notes["refit"][0]["mlp"][1] < 0.9 * found.notes["refit"][0]["mlp"][0]
    with torch.no_grad():
        wanted, plain, own = (
            assemble(one.path(decoder))(FRESH, output_hidden_states=True).hidden_states[-1]
            for one in (drop(6), dropped, found)
        )
    assert (own - wanted).square().mean() < (plain - wanted).square().mean()
    save(found, decoder, None, tmp_path / "saved", {}, verify=False)
    again, _, _ = load(tmp_path / "saved")
    with torch.no_grad():
        logits = assemble(found.path(decoder))(FRESH).logits
        torch.testing.assert_close(again(FRESH).logits, logits)


@pytest.mark.parametrize("family", ["llama", "falcon", "gpt_neox", "bloom", "gpt2", "opt"])
def test_a_change_has_the_error_that_is_foretold(family):
    """What a projection gives is added to the state, whatever a layer does with it then."""
    decoder = Decoder(tiny_model(family, n_layers=4))
    with torch.no_grad():
        states = refit._States(decoder, TOKENS, 1, alike=True)
        between, layer = states.advance(3), refit._copied(decoder, 1)
        for path, wanted in ((decoder.family.o, between), (decoder.family.mlp_out, None)):
            _, held = states.sums(layer, 1, path, wanted)
            change = 0.02 * torch.randn(held.right.shape, dtype=torch.float64)
            foretold = held.left(change)
            module, parameters = projection(layer, path)
            weight = next(iter(parameters.values()))
            weight += change if isinstance(module, Conv1D) else change.T
            _, now = states.sums(layer, 1, path, wanted)
            assert now.left(None) == pytest.approx(foretold, rel=1e-4) and foretold > 1e-3


def test_without_a_gap_nothing_changes_and_a_gap_may_come_first():
    decoder = Decoder(tiny_model("llama"))
    for plain in (drop(6), drop(6, *range(6))):
        assert refitted(decoder, plain, TOKENS) is plain
    found = refitted(decoder, drop(6, 0), TOKENS)
    assert [note["layer"] for note in found.notes["refit"]] == [1, 2, 3, 4, 5]
    assert found.notes["refit"][0]["attention"][1] < found.notes["refit"][0]["attention"][0]
    last = refitted(decoder, drop(6, 5), TOKENS)
    assert [note["layer"] for note in last.notes["refit"]] == [4]


def test_a_projection_that_no_penalty_helps_stays_as_it_is():
    """A removed layer that wrote nothing: no error, and so no change, to the bit."""
    decoder = Decoder(tiny_model("llama"))
    for path in (decoder.family.o, decoder.family.mlp_out):
        nn.init.zeros_(submodule(decoder.layers[2], path).weight)
    found = refitted(decoder, drop(6, 2), TOKENS)
    for place, module in found.modules.items():
        old = decoder.layers[found.plan.steps[place].layer].state_dict()
        assert all(torch.equal(value, old[name]) for name, value in module.state_dict().items())


def test_one_sequence_cannot_be_held_out_of_one():
    with pytest.raises(ConfigError, match="holds a sequence out .* got 1 in all"):
        refitted(Decoder(tiny_model("llama")), drop(6, 2), TOKENS[:1])


def test_states_that_are_not_finite_are_refused_and_no_weight_becomes_nan():
    decoder = Decoder(tiny_model("llama"))
    with torch.no_grad():
        submodule(decoder.layers[3], decoder.family.mlp_out).weight[0, 0] = torch.inf
    with pytest.raises(NotFiniteError, match="states at layer 1 of .* take --dtype float32"):
        refitted(decoder, drop(6, 2, 3), TOKENS)


def test_offloaded_layers_are_refused_where_nothing_could_be_written():
    decoder = Decoder(tiny_model("llama"))
    decoder.layers[4].to("meta")
    with pytest.raises(UnsupportedModelError, match="layer 4 .* weights are offloaded"):
        refit._copied(decoder, 4)


def test_the_rehearsal_holds_what_refitting_holds():
    """The sums of the MLP's wide inputs most of all; no tensor without data is read."""
    tokens = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(5))
    decoder = Decoder(tiny_model("llama", hidden_size=64, intermediate_size=512))
    rehearsal = Rehearsal(decoder, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planned = rehearsal.peak(lambda few: rehearse_refit(few, rehearsal.tokens(8, 32)))
    assert rehearsal.ended is None
    with peak_of(torch.device("cpu")) as peak:
        refitted(decoder, drop(6, 1), tokens)
    assert planned is not None and 0.8 < planned / peak.bytes < 1.3


@pytest.mark.parametrize(
    ("family", "reason"),
    [("gemma2", "normalises it"), ("mixtral", "has experts"), ("llama", None)],
)
def test_models_that_cannot_be_refitted_are_refused_with_the_reason(family, reason):
    decoder = Decoder(tiny_model(family, n_layers=2))
    for method in (StreamlineNone(refit=True), SLEB(refit=True)):
        found = method.unsupported(decoder)
        assert (found is None) == (reason is None) and (reason is None or reason in found)
        assert type(method)().unsupported(decoder) is None
    assert cannot_refit(decoder) == found


def test_a_plan_of_a_streamed_run_refuses_it_as_the_run_does():
    decoder = Decoder(tiny_model("llama"))
    for method in (StreamlineNone(), SLEB()):
        assert unsupported_reason(method, decoder, 0.3, streamed=True) is None
        reason = unsupported_reason(replace(method, refit=True), decoder, 0.3, streamed=True)
        assert reason is not None and "run it without --stream" in reason


def test_a_state_that_is_normalised_before_the_mlp_adds_to_it_is_refused():
    model = tiny_model("bloom", n_layers=2, apply_residual_connection_post_layernorm=True)
    assert "normalises it" in (cannot_refit(Decoder(model)) or "")
    assert cannot_refit(Decoder(tiny_model("bloom", n_layers=2))) is None


def test_the_field_changes_what_is_left_and_not_what_goes():
    decoder = Decoder(tiny_model("llama"))
    for plain in (StreamlineNone(), StreamlineNone(criterion="perplexity"), SLEB()):
        own = replace(plain, refit=True)
        assert plain.calibration_key() == own.calibration_key()
        calibration = plain.calibrate(decoder, TOKENS)
        without, found = (m.prune(decoder, calibration, 0.3, TOKENS, 0) for m in (plain, own))
        assert found.plan.removed_layers == without.plan.removed_layers
        assert not without.modules and found.modules
        assert own.size(decoder, 0.3).pruned == found.n_parameters(decoder)
