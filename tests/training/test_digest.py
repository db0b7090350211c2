from __future__ import annotations

import pytest
import torch

from streamline.training.digest import checksums, digest


def test_digest_sees_values_shapes_and_dtypes() -> None:
    a = torch.arange(6.0)
    keys = {
        digest([a]),
        digest([a.view(2, 3)]),
        digest([a.bfloat16()]),
        digest([a + 1]),
        digest([a, torch.tensor(1.0)]),
    }
    assert len(keys) == 5
    assert digest([a]) == digest([a.clone()])


def _key(tensor: torch.Tensor) -> str:
    return str((tensor.shape, tensor.dtype, checksums(tensor)))


@pytest.mark.parametrize("key", [lambda tensor: digest([tensor]), _key])
def test_a_key_sees_where_words_stand_in_long_tensors(key) -> None:  # type: ignore[no-untyped-def]
    long = torch.arange(3 << 18, dtype=torch.int32)
    first, second, third = long.chunk(3)
    moved = [torch.cat([second, first, third]), torch.cat([first, third, second]), long.flip(0)]
    changed = long.clone()
    changed[-1] += 1
    assert len({key(tensor) for tensor in (long, changed, *moved)}) == 5
    odd = torch.tensor([1, 2, 3], dtype=torch.uint8)
    assert key(odd) != key(odd[:2])
    assert key(torch.empty(0)) != key(torch.empty(0, 2))
    assert key(long.clone()) == key(long)
