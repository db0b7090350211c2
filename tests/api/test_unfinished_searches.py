"""A search that is killed goes on where it stopped, and finds what it would have found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamline.api.pruning import prune
from streamline.api.variants import Dense, Failure, Target, Variant
from streamline.baselines.evopress import Search
from streamline.baselines.prune_and_comp import PruneAndComp
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.methods import unfinished
from streamline.methods.loss_search import LossSearch
from streamline.progress import Silent
from streamline.registry import build_method
from streamline.testing.models import tiny_model, tiny_tokenizer

SEARCHES = {
    "sleb+search_share=0.6": (LossSearch, "least"),
    "sleb+search_share=0.0": (LossSearch, "least"),
    "blockpruner+search_share=0.6": (LossSearch, "least"),
    "blockpruner+search_share=0.0+width=3": (LossSearch, "least"),
    "evopress+offspring=4+initial=4+tokens=[16,64]": (Search, "_generation"),
    "prune-and-comp": (PruneAndComp, "_next"),
    "2ssp+power=50": (LossSearch, "least"),
}


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(seed))


def pruned(spec: str, folder: Path) -> Variant | Failure:
    decoder = Decoder(tiny_model("llama", n_layers=8))
    dense = Dense(name="tiny", decoder=decoder, tokenizer=tiny_tokenizer(), fingerprint="f")
    target = Target(label="one", method=build_method(spec), sparsity=0.5)
    (found,) = prune([target], dense, tokens, folder, Silent())
    return found


def logits(found: Variant) -> Tensor:
    decoder = Decoder(tiny_model("llama", n_layers=8))
    with torch.no_grad():
        return assemble(found.pruned.path(decoder))(tokens(1)).logits


class Killed(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("spec", SEARCHES)
def test_a_killed_search_goes_on(tmp_path, monkeypatch, spec):
    owner, name = SEARCHES[spec]
    real, calls = getattr(owner, name), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == stop:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    stop = -1
    whole = pruned(spec, tmp_path / "whole")
    assert isinstance(whole, Variant)
    total, calls[0], stop = calls[0], 0, 3
    assert total > 3
    with pytest.raises(Killed):
        pruned(spec, tmp_path / "cut")
    (left,) = (tmp_path / "cut").rglob("*.search.json")
    calls[0], stop = 0, -1
    again = pruned(spec, tmp_path / "cut")
    assert isinstance(again, Variant)
    assert calls[0] == total - 2
    flops = whole.costs.get("calibrate_flops")
    assert again.costs.get("calibrate_flops") == flops
    assert (flops or 0) > 0 or spec == "prune-and-comp", "it runs the model by loops of its own"
    assert again.costs["calibrate_s"] > whole.costs["calibrate_s"] / 4
    assert again.pruned.plan == whole.pruned.plan and again.pruned.notes == whole.pruned.notes
    made = whole.pruned.model is not None
    assert left.exists() == made, "a model is not kept, and what it is made of is"
    calls[0], third = 0, pruned(spec, tmp_path / "cut")
    assert isinstance(third, Variant) and calls[0] == 0, "nothing is searched again"
    assert third.costs.get("calibrate_flops") == flops
    assert torch.equal(logits(third), logits(whole))


def test_a_search_is_kept_where_its_model_is_not(tmp_path, monkeypatch):
    real, calls = LossSearch.least, []
    monkeypatch.setattr(LossSearch, "least", lambda *args: calls.append(1) or real(*args))
    first = pruned("2ssp", tmp_path)
    assert isinstance(first, Variant) and first.pruned.model is not None and calls
    calls.clear()
    again = pruned("2ssp", tmp_path)
    assert isinstance(again, Variant) and not calls
    assert again.pruned.notes == first.pruned.notes
    assert again.costs["calibrate_flops"] == first.costs["calibrate_flops"]


def test_a_damaged_state_is_set_aside(tmp_path):
    file = tmp_path / "one.search.json"
    with pytest.raises(Killed), unfinished.resuming(file):
        unfinished.keep_unfinished({"round": 1})
        raise Killed
    file.write_bytes(file.read_bytes()[:-3])
    with unfinished.resuming(file):
        assert unfinished.unfinished() is None
        assert file.with_name(f"{file.name}.damaged").exists()


def test_without_a_place_nothing_is_kept():
    unfinished.keep_unfinished({"round": 1})
    assert unfinished.unfinished() is None
