from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamline.baselines._sizes import LADDERS, smaller_releases
from streamline.baselines.smaller_dense import SmallerDense
from streamline.calibration import Calibration
from streamline.checkpoints import checkpoint
from streamline.engine.decoder import Decoder
from streamline.errors import UnsupportedModelError
from streamline.registry import build_method
from streamline.sources.model_table import MODEL_TABLE
from streamline.sources.models import load_config, load_model
from streamline.testing.models import tiny_model, tiny_tokenizer
from streamline.testing.snapshot import differences, snapshot

TOKENS = torch.arange(16).view(2, 8)
NOTHING = Calibration(torch.zeros(7, 7), torch.zeros(7, 7), 16, 2)


def packaged(name: str) -> Decoder:
    return Decoder.from_config(load_config(name))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders: a dense model, two smaller ones, and one with another tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    for name, n_layers, seed in (("dense", 6, 0), ("small", 3, 1), ("tiny", 1, 2), ("odd", 3, 3)):
        tiny_model("llama", n_layers=n_layers, seed=seed).save_pretrained(folder / name)
        tokenizer = tiny_tokenizer()
        if name == "odd":
            tokenizer.backend_tokenizer.pre_tokenizer = None
            tokenizer.backend_tokenizer.add_tokens(["the"])
        tokenizer.save_pretrained(folder / name)
    return folder


def test_every_family_falls_in_size_and_is_one_kind_of_model():
    for ladder in LADDERS:
        assert len(set(ladder)) == len(ladder) > 1
        assert len({MODEL_TABLE[name].model_type for name in ladder}) == 1
        counts = [packaged(name).n_parameters() for name in ladder]
        assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("dense", "sparsity", "chosen", "count"),
    [
        ("opt-6.7b", 0.25, "opt-2.7b", 2_651_596_800),  # the next smaller one, whatever the target
        ("opt-6.7b", 0.8, "opt-1.3b", 1_315_758_080),
        ("opt-13b", 0.25, "opt-6.7b", 6_658_473_984),
        ("opt-1.3b", 0.25, "opt-350m", 331_196_416),
        ("llama3.1-8b", 0.5, "llama3.2-3b", 3_212_749_824),
        ("pythia-1.4b", 0.25, "pythia-1b", 1_011_781_632),
    ],
)
def test_the_nearest_size_is_known_from_configs_alone(dense, sparsity, chosen, count):
    decoder = packaged(dense)
    assert SmallerDense().choose(decoder, sparsity) == (chosen, count)
    size = SmallerDense().size(decoder, sparsity)
    assert (size.dense, size.pruned, size.n_removed) == (decoder.n_parameters(), count, None)
    assert SmallerDense().size(decoder, 0.0).pruned == decoder.n_parameters()


def test_hub_ids_and_short_names_are_one_family():
    assert smaller_releases("facebook/opt-1.3b") == smaller_releases("opt-1.3b")
    assert smaller_releases("smollm2-135m-instruct") == ()
    assert smaller_releases("some-org/some-model") is None


def test_what_has_no_smaller_sibling_is_refused_in_words(tiny_opt):
    smallest = SmallerDense().unsupported(packaged("smollm2-135m-instruct"))
    assert smallest is not None
    assert "smollm2-135m-instruct is the smallest of its family" in smallest
    unknown = SmallerDense().unsupported(Decoder(tiny_opt(n_layers=2)))
    assert unknown is not None and "opt has no known family; name one with" in unknown
    assert SmallerDense().unsupported(packaged("opt-1.3b")) is None
    named = build_method("smaller-dense+model=opt-125m")
    assert named.unsupported(packaged("smollm2-135m-instruct")) is None


def test_the_smaller_model_replaces_all_layers(models, tmp_path):
    model, tokenizer = load_model(str(models / "dense"))
    decoder, before = Decoder(model), snapshot(model)
    state = torch.get_rng_state()
    method = build_method(f"smaller-dense+model={models / 'small'}")
    pruned = method.prune(decoder, NOTHING, 0.25, TOKENS, 0)
    assert not differences(before, snapshot(model))
    assert torch.equal(state, torch.get_rng_state())
    small = tiny_model("llama", n_layers=3, seed=1)
    count = sum(p.numel() for p in small.parameters())
    assert pruned.n_parameters(decoder) == count == method.size(decoder, 0.25).pruned
    assert pruned.plan.removed_layers == list(range(6)) and pruned.plan.kept_layers == []
    assert pruned.notes["parameters"] == count
    assert pruned.notes["asked_parameters"] == round(0.75 * decoder.n_parameters())
    assert pruned.model is not None
    with torch.no_grad():
        expected = small(TOKENS).logits
        torch.testing.assert_close(pruned.model(TOKENS).logits, expected)
    checkpoint.save(pruned, decoder, tokenizer, tmp_path / "out", {}, verify=False)
    loaded, _, info = checkpoint.load(tmp_path / "out")
    assert info.plain and info.plan == pruned.plan
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, expected)
    assert method.prune(decoder, NOTHING, 0.0, TOKENS, 0).plan.is_dense


@pytest.mark.parametrize(
    ("dense", "model", "reason"),
    [
        ("dense", "odd", "the tokenizer of .*odd is not that of .*dense; name another"),
        ("small", "dense", "needs a model smaller than .*small with its .*dense has"),
        ("dense", "nowhere", "cannot read the size of .*nowhere: There is no model folder"),
    ],
)
def test_a_model_that_cannot_replace_it_is_refused(models, dense, model, reason):
    decoder = Decoder(load_model(str(models / dense))[0])
    method = SmallerDense(model=str(models / model))
    with pytest.raises(UnsupportedModelError, match=reason):
        method.prune(decoder, NOTHING, 0.25, TOKENS, 0)


def test_weights_that_cannot_be_had_are_a_refusal(models):
    """The size is packaged, the weights are on the hub, and there is none here."""
    model, _ = load_model(str(models / "dense"))
    model.config.name_or_path = "opt-1.3b"
    decoder = Decoder(model)
    method = SmallerDense(model=str(models / "small"))
    with pytest.raises(UnsupportedModelError, match="cannot load .*small to replace opt-1.3b"):
        method.prune(decoder, NOTHING, 0.25, TOKENS, 0)
