"""Tensors travel beside the pickled structure, never in it."""

from __future__ import annotations

import pytest
import torch

from streamline.distributed.packed import Packed, n_bytes, unpacked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_value_comes_with_its_tensors_beside_it(dtype: torch.dtype) -> None:
    whole = torch.arange(60_000).reshape(200, 300).to(dtype)
    value = {
        "a": [whole.T, (3, "x")],
        "again": whole,
        "none": torch.empty(0, 4),
        "one": whole[3, 5],
    }
    value["twice"] = value["again"]
    packed = Packed(value)
    assert len(packed.head[0]) < 1_000
    assert n_bytes(packed.head) == len(packed.memory())
    found = unpacked(packed.head, packed.memory())
    assert found["a"][1] == (3, "x") and found["twice"] is found["again"]
    pairs = [
        (found["a"][0], value["a"][0]),
        *((found[k], value[k]) for k in ("again", "none", "one")),
    ]
    for there, here in pairs:
        assert there.dtype == here.dtype and torch.equal(there, here)
