from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from streamline.kept import (
    Damaged,
    kept_json,
    kept_tensors,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)

_TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "n": torch.tensor(3),
    "one": torch.ones(4, 4, dtype=torch.float64)[:1, :1].as_strided((1, 1), (7, 0)),
}


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    value = {"sum": 12.5, "names": ["ü", None]}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == kept_json(tmp_path / "v.json") == value
    write_tensors(tmp_path / "t.safetensors", _TENSORS, {"step": "3"})
    found, metadata = read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"step": "3"}
    assert all(torch.equal(found[name], _TENSORS[name]) for name in _TENSORS)


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert kept_json(tmp_path / "v.json") is None
    assert kept_tensors(tmp_path / "t.safetensors") is None
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "v.json")


def test_any_flipped_bit_of_tensors_is_found(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, _TENSORS, {"step": "3"})
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(Damaged, match=r"its checksum|not the safetensors"):
            read_tensors(path)


def test_any_flipped_bit_of_json_is_found(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    write_json(path, {"sum": 12.5, "done": [1, 2]})
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert read_json(path) == {"sum": 12.5, "done": [1, 2]}  # white space
        except Damaged:
            continue


@pytest.mark.parametrize("damage", [b"", b"{}", b"null", b"[1]", b"\xff\xfe", b"\0" * 64])
def test_what_is_damaged_is_set_aside_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    for name, read in (("v.json", kept_json), ("t.safetensors", kept_tensors)):
        path = tmp_path / name
        path.write_bytes(damage)
        assert read(path) is None
        assert not path.exists()
        assert (tmp_path / f"{name}.damaged").read_bytes() == damage
        assert str(path) in caplog.text


def test_a_number_that_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "v.json", {"sum": float("nan")})
    assert json.dumps(list(tmp_path.iterdir())) == "[]"
