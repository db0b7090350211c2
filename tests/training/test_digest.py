from __future__ import annotations

import torch

from streamline.training.digest import digest


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


def test_digest_sees_where_words_stand_in_long_tensors() -> None:
    long = torch.arange(3 << 18, dtype=torch.int32)
    first, second, third = long.chunk(3)
    moved = [torch.cat([second, first, third]), torch.cat([first, third, second]), long.flip(0)]
    changed = long.clone()
    changed[-1] += 1
    assert len({digest([t]) for t in (long, changed, *moved)}) == 5
    odd = torch.tensor([1, 2, 3], dtype=torch.uint8)
    assert digest([odd]) != digest([odd[:2]])
    assert digest([torch.empty(0)]) != digest([torch.empty(0, 2)])
