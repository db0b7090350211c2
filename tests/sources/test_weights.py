"""Reading weights from safetensors: exact, counted, and refusing what is damaged."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from streamline.errors import AssetError
from streamline.sources.weights import WeightSource


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, 5, generator=generator),
        "b": torch.randn(7, generator=generator).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "ids": torch.arange(4),
        "empty": torch.zeros(0, 3),
    }


def single(folder: Path) -> Path:
    save_file(tensors(), folder / "model.safetensors")
    return folder


def sharded(folder: Path) -> Path:
    mapping = {}
    for number, (name, tensor) in enumerate(tensors().items()):
        file = f"model-{number}.safetensors"
        save_file({name: tensor}, folder / file)
        mapping[name] = file
    index = {"metadata": {}, "weight_map": mapping}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def pickled(folder: Path) -> Path:
    torch.save(tensors(), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("write", [single, sharded, pickled])
def test_reads_what_was_written(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with WeightSource(write(tmp_path)) as source:
        for name, tensor in tensors().items():
            found = source.read(name)
            assert found.dtype == tensor.dtype and torch.equal(found, tensor)
        assert set(source) == set(tensors()) and "c" not in source
        assert set(source.reads.values()) == {1}
        assert source.bytes_read == sum(t.numel() * t.element_size() for t in tensors().values())


def test_converts_floating_point_only(tmp_path: Path) -> None:
    with WeightSource(single(tmp_path)) as source:
        assert torch.equal(source.read("b", torch.float32), tensors()["b"].float())
        assert source.read("ids", torch.float32).dtype == torch.int64


class Evil:
    """Something whose unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="holds no weights: give a folder with model.safetensors"):
        WeightSource(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"x")
    with pytest.raises(AssetError, match=r"It holds \.gguf files, which are not read"):
        WeightSource(tmp_path)


def test_numbers_that_do_not_lie_in_order_are_read(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    kept = {"turned": whole.T, "part": whole[1:, 2:4], "whole": whole, "none": whole[:0]}
    torch.save(kept, tmp_path / "pytorch_model.bin")
    with WeightSource(tmp_path) as source:
        for name, tensor in kept.items():
            assert torch.equal(source.read(name), tensor)


def test_what_is_no_plain_file_of_weights_is_refused_unrun(tmp_path: Path) -> None:
    file, made = tmp_path / "pytorch_model.bin", tmp_path / "made"
    damaged = b"x", b"", pickle.dumps({"a": 1}), pickled(tmp_path) and file.read_bytes()[:300]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(AssetError, match="cannot be read as weights alone"):
            WeightSource(tmp_path)
    for thing in ({"a": Evil(made)}, [tensors()], {"a": 3}, {"state_dict": tensors()}):
        torch.save(thing, file)
        with pytest.raises(AssetError, match="cannot be read as weights alone"):
            WeightSource(tmp_path)
    torch.save(tensors(), file, _use_new_zipfile_serialization=False)
    with pytest.raises(AssetError, match=r"no plain tensor of a file of torch 1\.6"):
        WeightSource(tmp_path)
    assert not made.exists()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-1.safetensors").unlink()
    with pytest.raises(AssetError, match=r"model-1\.safetensors cannot be opened"):
        WeightSource(tmp_path)


def test_an_index_that_names_too_much_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path) / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    found["weight_map"]["more"] = "model-0.safetensors"
    index.write_text(json.dumps(found))
    with pytest.raises(AssetError, match="disagree: 'more' is not in model-0.safetensors"):
        WeightSource(tmp_path)
    index.write_text("[]")
    with pytest.raises(AssetError, match="not an index"):
        WeightSource(tmp_path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    file = single(tmp_path) / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    with pytest.raises(AssetError, match="damaged or cut short"):
        WeightSource(tmp_path)
    file.write_bytes(b"not a file of weights")
    with pytest.raises(AssetError, match="is not a safetensors file"):
        WeightSource(tmp_path)
    file.write_bytes((9).to_bytes(8, "little") + b'{"a": {}}')
    with pytest.raises(AssetError, match="damaged header"):
        WeightSource(tmp_path)


def test_a_file_cut_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = single(tmp_path) / "model.safetensors"
    with WeightSource(tmp_path) as source:
        with file.open("r+b") as stream:
            stream.truncate(source["a"].start + 4)
        with pytest.raises(AssetError, match="ends in the middle of 'a'"):
            source.read("a")


def test_quantised_formats_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(AssetError, match="F8_E4M3; reading takes"):
        WeightSource(tmp_path)
