"""A checkpoint of a pruned model as the model to prune: refused with a reason, or right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamline.api.variants import unsupported_reason
from streamline.checkpoints import checkpoint
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.registry import METHODS, available, build_method
from streamline.sources.models import load_model, planned_model
from streamline.testing.models import tiny_model, tiny_tokenizer

KINDS = {
    "llm-streamline-ffn": "without the attention or the MLP",
    "streamline-v1-layer-shared": "share their weights",
    "streamline-v1-mlp-shared": "without the attention or the MLP",
    "llm-drop+target=attention": "without the attention or the MLP",
    "slicegpt": "states of several widths",
    "llm-pruner": "projections of other shapes",
}
#: One that fetches a model, one that fits no tiny model, and those that decide nothing by it.
LEFT_OUT = {"dense", "given-layers", "quantized", "smaller-dense"}
#: Those that are run where they do not refuse, beside all of them among the slow tests.
FEW = {"laco", "llm-drop", "llm-pruner", "llm-streamline-layer", "replaceme", "shortgpt"}
#: Those that look into the layers.
INSIDE = {"2ssp", "laco", "laco-release", "llm-pruner", "replaceme", "slicegpt"}


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    """Calibration tokens, [4, 16]."""
    return torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_refuses_a_checkpoint_or_prunes_it(
    kind: str, few: bool, tokens: torch.Tensor, tmp_path: Path
) -> None:
    method, dense = build_method(kind), Decoder(tiny_model("llama", n_layers=5))
    sparsity = 0.1 if kind.endswith("attention") else 0.3
    with torch.no_grad():
        pruned = method.prune(dense, method.calibrate(dense, tokens), sparsity, tokens, 0)
    checkpoint.save(pruned, dense, tiny_tokenizer(), tmp_path / "model", {}, verify=False)
    decoder = Decoder(load_model(str(tmp_path / "model"), device="cpu", dtype="float32")[0])
    meta = Decoder(planned_model(str(tmp_path / "model")))
    assert decoder.n_parameters() == meta.n_parameters() == pruned.n_parameters(dense)
    refused = {}
    for name in sorted(set(available(METHODS)) - LEFT_OUT):
        other = build_method(name)
        reason = unsupported_reason(other, meta, 0.2)
        if reason is not None:
            assert unsupported_reason(other, decoder, 0.2) == reason
            refused[name] = reason
        if reason is not None or (few and name not in FEW):
            continue
        calibration = other.calibrate(decoder, tokens)
        again = other.prune(decoder, calibration, 0.2, tokens, 0)
        built = again.model or assemble(again.path(decoder))
        assert sum(p.numel() for p in built.parameters()) == again.n_parameters(decoder), name
        with torch.no_grad():
            assert built(tokens).logits.isfinite().all(), name
    inside = {name for name, reason in refused.items() if KINDS[kind] in reason}
    assert inside
    assert inside <= INSIDE or len(inside) == len(refused) > len(INSIDE)
    assert unsupported_reason(build_method("dense"), meta, 0.0) is None
