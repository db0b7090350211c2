"""Every method on families with norms after the sublayers or with experts: it runs or says why."""

from __future__ import annotations

import copy

import pytest
import torch

from streamline.baselines.replaceme import fold
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder, submodule
from streamline.errors import UnsupportedModelError
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.plan import Plan, Span
from streamline.registry import METHODS, available, build_method
from streamline.testing.models import tiny_model

TOKENS = torch.randint(0, 250, (4, 16), generator=torch.Generator().manual_seed(1))
SHORTER = {"evopress": "evopress+generations=1+initial=4+offspring=4"}
WITHOUT_ANY = {"given-layers", "quantized", "smaller-dense"}
"""Methods that need to be told a list, a smaller group or a model."""
NORMALISED = {"prune-and-comp", "replaceme", "slicegpt"}
"""What is written into the residual stream passes a norm: nothing can be scaled or folded there."""
MIXED = {"2ssp", "laco", "laco-release", "llm-pruner", "slicegpt"}
"""There is no one MLP whose channels or differences could be taken."""
REFUSED = {
    "gemma3_text": NORMALISED,
    "olmo2": NORMALISED | {"llm-pruner"},
    "mixtral": MIXED,
    "olmoe": MIXED,
    "qwen3_moe": MIXED,
}


@pytest.mark.parametrize(
    "family",
    ["gemma3_text", "olmo2", "mixtral", *(pytest.param(f, marks=pytest.mark.slow)
                                         for f in ("olmoe", "qwen3_moe"))],
)  # fmt: skip
def test_every_method_runs_or_says_why(family: str) -> None:
    decoder = Decoder(tiny_model(family, n_layers=4))
    refused = {}
    for name in sorted(available(METHODS)):
        method = build_method(SHORTER.get(name, name))
        reason = method.unsupported(decoder)
        if reason is not None:
            refused[name] = reason
            continue
        calibration = method.calibrate(decoder, TOKENS)
        pruned = method.prune(decoder, calibration, 0.25, TOKENS, 0)
        size, counted = method.size(decoder, 0.25), pruned.n_parameters(decoder)
        assert size is None or size.pruned == counted, name
        model = pruned.model if pruned.model is not None else assemble(pruned.path(decoder))
        assert sum(p.numel() for p in model.parameters()) == counted, name
        with torch.no_grad():
            assert model(TOKENS).logits.isfinite().all(), name
    assert set(refused) == REFUSED[family] | WITHOUT_ANY
    assert all(len(refused[name].split()) > 8 for name in REFUSED[family])


@torch.no_grad()
def test_a_map_folded_into_every_expert_is_one_after_the_mixture() -> None:
    decoder = Decoder(tiny_model("mixtral", n_layers=3))
    transform = torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    folded = fold(decoder, 1, transform)
    mapped = copy.deepcopy(decoder.layers[1])
    submodule(mapped, "mlp").register_forward_hook(lambda _m, _args, out: out @ transform.float())
    entry = decoder.enter(TOKENS)
    found, wanted = (decoder.run(m, entry.hidden, entry, 1) for m in (folded, mapped))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{"mlp_only_layers": [1, 4]}, {"decoder_sparse_step": 2}])
@torch.no_grad()
def test_layers_without_experts_are_known_by_their_new_numbers(changes: dict[str, object]) -> None:
    decoder = Decoder(tiny_model("qwen3_moe", n_layers=6, **changes))
    model = assemble(Pruned(Plan.drop(6, [0, 3])).path(decoder))
    again = type(model)(model.config)
    assert [type(layer.mlp) for layer in again.model.layers] == [
        type(decoder.layers[i].mlp) for i in (1, 2, 4, 5)
    ]
    assert again.load_state_dict(model.state_dict()).missing_keys == []


def test_a_layer_does_not_start_from_layers_of_another_kind() -> None:
    decoder = Decoder(tiny_model("qwen3_moe", n_layers=4, mlp_only_layers=[2]))
    make("layer", decoder, Span(1, 3), init="first")
    for init in ("last", "mean"):
        with pytest.raises(UnsupportedModelError, match='are not alike.*take init="first"'):
            make("layer", decoder, Span(1, 3), init=init)
