"""Calibration: one pass against the naive formulas, span ranking, packing, the file."""

from __future__ import annotations

import weakref

import pytest
import torch

from streamline.calibration import Calibration, measure
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError
from streamline.plan import Span
from streamline.testing.models import tiny_model
from streamline.testing.snapshot import differences, snapshot


@pytest.fixture
def decoder() -> Decoder:
    return Decoder(tiny_model("llama", n_layers=5))


@pytest.fixture
def batches() -> torch.Tensor:
    return torch.randint(0, 250, (6, 12), generator=torch.Generator().manual_seed(0))


def naive_states(decoder: Decoder, batches: torch.Tensor) -> list[torch.Tensor]:
    """Raw states of every depth by hooks on the model's own forward, [N, T, D] each."""
    inputs, outputs = [], []
    handles = [
        decoder.layers[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0])),
        *(
            layer.register_forward_hook(lambda _, __, out: outputs.append(out))
            for layer in decoder.layers
        ),
    ]
    with torch.no_grad():
        decoder.model(batches)
    for handle in handles:
        handle.remove()
    return [inputs[0], *outputs]


@pytest.mark.parametrize("batch_tokens", [1, 24, 10_000])
def test_measure_equals_the_naive_formulas(decoder, batches, batch_tokens):
    found = measure(decoder, batches, batch_tokens=batch_tokens)
    states = naive_states(decoder, batches)
    for i, a in enumerate(states):
        for j, b in enumerate(states):
            cosine = torch.cosine_similarity(a, b, dim=-1)
            assert found.cosine[i, j].item() == pytest.approx(cosine.mean().item(), abs=1e-5)
            angle = torch.arccos(cosine[:, -1].clamp(-1, 1)).mean().item() / torch.pi
            expected = 0.0 if i == j else angle
            assert found.angle[i, j].item() == pytest.approx(expected, abs=2e-4)
    assert (found.n_tokens, found.n_samples) == (72, 6)


def test_influence_is_one_minus_the_cosine_of_neighbours(decoder, batches):
    found = measure(decoder, batches)
    expected = torch.tensor([1 - found.cosine[i, i + 1] for i in range(5)])
    assert torch.equal(found.influence, expected)


def test_the_last_depth_is_before_the_final_norm(decoder, batches):
    before = measure(decoder, batches)
    with torch.no_grad():
        decoder.model.model.norm.weight.mul_(torch.linspace(-3, 3, 32))
    assert torch.equal(measure(decoder, batches).cosine, before.cosine)


def test_measure_leaves_the_model_as_it_was(decoder, batches):
    before = snapshot(decoder.model)
    measure(decoder, batches)
    assert differences(before, snapshot(decoder.model)) == []


def test_memory_is_flat_in_the_number_of_samples(decoder):
    """As many hidden states are alive at most, however many samples there are."""

    def most_alive(n: int) -> int:
        alive: list[weakref.ref[torch.Tensor]] = []
        peak = 0

        def look(_module, _args, out):
            nonlocal peak
            alive.append(weakref.ref(out))
            peak = max(peak, len({id(ref()) for ref in alive if ref() is not None}))

        hooks = [layer.register_forward_hook(look) for layer in decoder.layers]
        measure(decoder, torch.arange(12 * n).view(n, 12) % 250, batch_tokens=24)
        for hook in hooks:
            hook.remove()
        return peak

    assert most_alive(2) == most_alive(12) <= 3


def test_spans_are_ranked_by_cosine_and_ties_by_start():
    cosine = torch.eye(5, dtype=torch.float64)
    for i, value in enumerate([0.5, 0.9, 0.9]):
        cosine[i, i + 2] = value
    found = Calibration(cosine, torch.zeros(5, 5), 1, 1)
    assert [span for span, _ in found.ranked_spans(2)] == [Span(1, 3), Span(2, 4), Span(0, 2)]


@pytest.mark.parametrize("length", [0, 5])
def test_a_span_that_does_not_fit_is_refused(length):
    found = Calibration(torch.eye(5), torch.zeros(5, 5), 1, 1)
    with pytest.raises(ConfigError, match=f"a span of {length} layers does not fit in 4"):
        found.ranked_spans(length)


def test_a_zeroed_layer_is_the_most_similar_span(batches):
    model = tiny_model("llama", n_layers=5)
    with torch.no_grad():
        model.model.layers[3].self_attn.o_proj.weight.zero_()
        model.model.layers[3].mlp.down_proj.weight.zero_()
    found = measure(Decoder(model), batches)
    span, cosine = found.ranked_spans(1)[0]
    assert (span, cosine) == (Span(3, 4), pytest.approx(1.0, abs=1e-6))


def test_a_file_gives_the_same_back(decoder, batches, tmp_path):
    found = measure(decoder, batches)
    whole = Calibration(
        found.cosine, found.angle, 72, 6, {"losses": torch.arange(3.0)}, {"seconds": 1.5}
    )
    whole.save(tmp_path)
    again = Calibration.load(tmp_path)
    assert torch.equal(again.cosine, whole.cosine)
    assert torch.equal(again.extras["losses"], whole.extras["losses"])
    assert (again.n_tokens, again.facts) == (72, {"seconds": 1.5})
