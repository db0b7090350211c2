"""Checkpoints written from a streamed model: the same as those from memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from streamline.checkpoints.checkpoint import save
from streamline.checkpoints.streamed import check_written, write_weights
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.errors import AssetError
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.methods.sublayers import remove_sublayer
from streamline.plan import Plan, Span, Step
from streamline.sources.weights import WeightSource
from streamline.streaming.decoder import StreamedDecoder
from streamline.streaming.opening import open_streamed
from streamline.testing.models import tiny_model


def streamed(family: str, folder: Path, tied: bool) -> tuple[Decoder, StreamedDecoder]:
    """A model in memory and the same one streamed from a folder of several shards."""
    model = tiny_model(family, n_layers=4, tied=tied)
    model.save_pretrained(folder, max_shard_size="20KB")
    decoder = open_streamed(folder, model.config)
    decoder.model.set_attn_implementation(model.config._attn_implementation)
    return Decoder(model), decoder


def weights(folder: Path) -> dict[str, Tensor]:
    with WeightSource(folder) as source:
        return {name: source.read(name) for name in source}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def drop(decoder: Decoder) -> Pruned:
    return Pruned(Plan.drop(4, [1]))


def ffn(decoder: Decoder) -> Pruned:
    module = make("ffn", Decoder(tiny_model("llama", n_layers=4)), Span(1, 3))
    return Pruned(Plan.replace(4, Span(1, 3), "ffn"), {1: module})


def sublayers(decoder: Decoder) -> Pruned:
    steps = (Step(0, "no-attention"), Step(1, "no-mlp"), Step(3))
    modules = {0: remove_sublayer(decoder, 0, "attention"), 1: remove_sublayer(decoder, 1, "mlp")}
    return Pruned(Plan(4, steps), modules)


CASES: list[tuple[str, bool, Callable[[Decoder], Pruned]]] = [
    ("llama", False, drop),
    ("qwen3", True, drop),
    ("opt", True, sublayers),
    ("gpt2", True, drop),
    ("gemma2", True, sublayers),
    ("gemma3_text", True, drop),
    ("mixtral", False, drop),
    ("qwen3_moe", False, sublayers),
    ("gpt_neox", False, drop),
    ("gpt_neox", False, sublayers),
    ("llama", False, ffn),
]


@pytest.mark.parametrize(("family", "tied", "prune"), CASES)
def test_the_checkpoint_is_that_of_the_model_in_memory(
    family: str, tied: bool, prune: Callable[[Decoder], Pruned], tmp_path: Path
) -> None:
    whole, decoder = streamed(family, tmp_path / "model", tied)
    pruned = prune(whole)
    wanted = save(pruned, whole, None, tmp_path / "wanted", {"method": "x"}, verify=False)
    with decoder.source as source:
        source.reads.clear()
        again = prune(decoder)
        if prune is ffn:
            again = Pruned(pruned.plan, pruned.modules)
        found = save(again, decoder, None, tmp_path / "found", {"method": "x"}, verify=False)
        assert max(source.reads.values()) == 2  # written, and run for the self-test
    assert same(weights(found), weights(wanted))
    for name in ("config.json", "plan.json", "provenance.json"):
        assert (found / name).read_text() == (wanted / name).read_text()
    assert {p.name for p in found.iterdir()} == {p.name for p in wanted.iterdir()}


def test_what_was_streamed_is_found_again(tmp_path: Path, compared_here: Any) -> None:
    folders = []
    for family, tied, prune in (CASES[0], CASES[2]):
        _, decoder = streamed(family, tmp_path / f"{family}-model", tied)
        with decoder.source:
            folders.append(save(prune(decoder), decoder, None, tmp_path / family, {}, verify=False))
    for report in compared_here(*folders):
        assert report["same_continuation"] and report["max_logit_difference"] < 1e-4
        assert [depth for depth, _ in report["layers"]] == [1, 2, 3]
        assert report["bytes_in_memory"] == 0  # each weight comes when it is used


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    whole, decoder = streamed("llama", tmp_path / "model", False)
    pruned = assemble(drop(decoder).path(decoder))
    with decoder.source:
        write_weights(pruned, decoder, tmp_path / "found", shard_bytes=30_000)
    files = sorted(p.name for p in (tmp_path / "found").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "found" / name).stat().st_size < 60_000 for name in files)
    wanted = assemble(drop(whole).path(whole))
    assert same(weights(tmp_path / "found"), dict(wanted.state_dict()))


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, decoder = streamed("llama", tmp_path / "model", False)

    def broken(name: str, dtype: torch.dtype | None = None) -> Tensor:
        raise AssetError("the disk is gone")

    with decoder.source:
        monkeypatch.setattr(decoder.source, "read", broken)
        with pytest.raises(AssetError, match="the disk is gone"):
            save(drop(decoder), decoder, None, tmp_path / "found", {}, verify=False)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_written_folder_is_accounted_for(tmp_path: Path) -> None:
    tiny_model("llama", n_layers=2).save_pretrained(tmp_path)
    check_written(tmp_path, torch.float32)
    with pytest.raises(AssetError, match=r"of another dtype than torch.bfloat16: \['lm_head"):
        check_written(tmp_path, torch.bfloat16)
    tensors = weights(tmp_path)
    tensors["more"] = tensors.pop("lm_head.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(AssetError, match="missing: 'lm_head.weight'; left over: 'more'"):
        check_written(tmp_path, torch.float32)
