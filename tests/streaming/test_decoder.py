"""A streamed model: one group of weights at a time, and the numbers of a model in memory."""

from __future__ import annotations

import gc
import time
import weakref
from contextlib import closing
from pathlib import Path

import pytest
import torch
from families import THREE
from torch import Tensor
from transformers import PreTrainedModel

from streamline.calibration import measure
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.errors import AssetError, UnsupportedModelError
from streamline.streaming.decoder import EMBEDDING, HEAD, StreamedDecoder
from streamline.streaming.opening import open_streamed
from streamline.testing.models import tiny_model

KINDS = [(family, tied) for family in THREE for tied in (False, True)]


def stored(model: PreTrainedModel, folder: Path, shard: str = "1GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def opened(model: PreTrainedModel, folder: Path, **options: object) -> StreamedDecoder:
    attention = model.config._attn_implementation
    decoder = open_streamed(folder, model.config, scratch=folder, **options)  # type: ignore[arg-type]
    decoder.model.set_attn_implementation(attention)
    return decoder


def ids(n: int = 6, length: int = 24) -> Tensor:
    return torch.randint(0, 256, (n, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("family", "tied"), KINDS)
def test_calibration_is_that_of_the_model_in_memory(
    family: str, tied: bool, tmp_path: Path
) -> None:
    model = tiny_model(family, n_layers=3, tied=tied)
    folder = stored(model, tmp_path, "1GB" if tied else "20KB")
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (not tied)
    decoder = opened(model, folder, state_bytes=30_000)
    with decoder.source as source:
        wanted, found = (measure(d, ids(), batch_tokens=48) for d in (Decoder(model), decoder))
        assert torch.equal(found.cosine, wanted.cosine)
        assert torch.equal(found.angle, wanted.angle)
        assert set(source.reads.values()) == {1}
        assert decoder.peak_state_bytes <= 30_000 < decoder.state_file_bytes + 30_000


def test_each_weight_is_read_once_a_pass(tmp_path: Path) -> None:
    model = tiny_model("qwen3", n_layers=4)
    decoder = opened(model, stored(model, tmp_path, "20KB"))
    with decoder.source as source:
        measure(decoder, ids(), batch_tokens=24)
        assert set(source.reads) == {n for n in source if n != "lm_head.weight"}
        assert set(source.reads.values()) == {1}
        assert source.bytes_read == sum(
            source[n].stop - source[n].start for n in source if n != "lm_head.weight"
        )
        measure(decoder, ids(), batch_tokens=24)
        assert source.reads["model.layers.3.mlp.up_proj.weight"] == 2
        assert source.reads["model.norm.weight"] == 1


@pytest.mark.parametrize("tied", [False, True])
def test_at_most_two_groups_are_in_memory(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", n_layers=5, tied=tied)
    decoder = opened(model, stored(model, tmp_path))
    read = decoder.source.read
    alive: list[tuple[str, weakref.ref[torch.UntypedStorage]]] = []
    counts = []

    def counted(name: str, dtype: torch.dtype | None = None) -> Tensor:
        value = read(name, dtype)
        group = name.split(".")[2] if ".layers." in name else name
        alive.append((group, weakref.ref(value.untyped_storage())))
        counts.append(len({group for group, ref in alive if ref() is not None}))
        return value

    monkeypatch.setattr(decoder.source, "read", counted)
    n_weights = len(list(decoder.layers[0].parameters()))
    with decoder.source, closing(decoder.each([EMBEDDING, *range(5), HEAD])) as groups:
        for group in groups:
            time.sleep(0.01)  # time for the next one to be read
            own = n_weights if isinstance(group, int) else int(not tied)
            resident = [p for p in decoder.model.parameters() if not p.is_meta]
            assert len(resident) == own + 1 + tied  # and the final norm, and tied embeddings
            if isinstance(group, int):
                assert decoder.layers_of(decoder.layers[group]) == {group}
    assert max(counts) == 2


def test_a_walk_leaves_no_weight_behind(tmp_path: Path) -> None:
    model = tiny_model("llama", n_layers=3)
    decoder = opened(model, stored(model, tmp_path))
    with decoder.source:
        for group in decoder.each([EMBEDDING, 0, 1]):
            if group == 1:
                weight = weakref.ref(decoder.layers[1].mlp.up_proj.weight.untyped_storage())
        gc.collect()
        assert weight() is None
        assert [n for n, p in decoder.model.named_parameters() if not p.is_meta] == [
            "model.norm.weight"
        ]


def test_a_failed_read_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", n_layers=4)
    decoder = opened(model, stored(model, tmp_path), state_bytes=0)
    before = sorted(tmp_path.iterdir())
    read = decoder.source.read

    def broken(name: str, dtype: torch.dtype | None = None) -> Tensor:
        if name == "model.layers.2.mlp.up_proj.weight":
            raise AssetError("the disk is gone")
        return read(name, dtype)

    with decoder.source:
        monkeypatch.setattr(decoder.source, "read", broken)
        with pytest.raises(AssetError, match="the disk is gone"):
            measure(decoder, ids())
        assert sum(not p.is_meta for p in decoder.model.parameters()) == 1
        assert sorted(tmp_path.iterdir()) == before
        monkeypatch.setattr(decoder.source, "read", read)
        found = measure(decoder, ids())
    assert torch.equal(found.cosine, measure(Decoder(model), ids()).cosine)


def test_nothing_runs_outside_a_walk(tmp_path: Path) -> None:
    model = tiny_model("llama", n_layers=2)
    decoder = opened(model, stored(model, tmp_path))
    with decoder.source:
        there = "the embeddings of .* is not in memory.* perplexity, sums over states and single"
        with pytest.raises(UnsupportedModelError, match=there):
            decoder.enter(ids())
        entry = decoder.again(ids())
        with pytest.raises(UnsupportedModelError, match="layer 1 of .* without --stream"):
            decoder.run(decoder.layers[1], torch.zeros(6, 24, 32), entry, 1)
        with pytest.raises(UnsupportedModelError, match="the head"):
            decoder.leave(torch.zeros(1, 32))


def test_counts_are_those_of_the_model_in_memory(tmp_path: Path) -> None:
    model = tiny_model("opt", n_layers=3, tied=True)
    decoder = opened(model, stored(model, tmp_path))
    with decoder.source:
        whole = Decoder(model)
        assert decoder.n_parameters() == whole.n_parameters()
        assert dense_path(decoder).n_parameters() == whole.n_parameters()
        assert decoder.layer_parameters(1) == whole.layer_parameters(1)
        assert (decoder.device.type, decoder.dtype) == ("cpu", torch.float32)


def test_the_calls_are_made_again_as_they_were(tmp_path: Path) -> None:
    model = tiny_model("llama", n_layers=2)
    decoder = opened(model, stored(model, tmp_path))
    mask = torch.ones(6, 24, dtype=torch.int64)
    mask[:, 20:] = 0
    with decoder.source:
        wanted = Decoder(model).enter(ids(), mask).calls
        found = decoder.again(ids(), mask).calls
    for (_, a), (_, b) in zip(wanted, found, strict=True):
        assert torch.equal(a["attention_mask"], b["attention_mask"])
        assert all(map(torch.equal, a["position_embeddings"], b["position_embeddings"]))
