from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from streamline.engine.decoder import Decoder
from streamline.evaluation.scoring.packing import Request, Row, pack
from streamline.evaluation.scoring.tree_attention import (
    block_attention,
    blocks_of,
    split,
    tree_mask,
)
from streamline.testing.models import tiny_model


def forest(n: int, branches: int, longest: int, seed: int = 0) -> Row:
    rng = random.Random(seed)
    known: list[tuple[int, ...]] = [()]
    requests = []
    for i in range(n):
        stem = rng.choice(known[-branches:]) + tuple(
            rng.randrange(9) for _ in range(rng.randint(1, longest))
        )
        known.append(stem)
        requests.append(Request("t", i, 0, stem, (1, 2)))
    (batch,) = pack(requests, batch_tokens=100_000)
    (row,) = batch.rows
    return row


@pytest.mark.parametrize("limit", [1, 8, 40, 10_000])
@pytest.mark.parametrize(("n", "branches", "longest"), [(40, 3, 9), (30, 30, 20), (6, 1, 30)])
def test_blocks_hold_every_key_that_the_mask_shows(
    n: int, branches: int, longest: int, limit: int
) -> None:
    row = forest(n, branches, longest)
    wanted = tree_mask(torch.from_numpy(row.ends)[None], torch.float32)[0, 0] == 0
    got = torch.zeros_like(wanted)
    covered = np.zeros(len(row), dtype=int)
    for block in blocks_of(split(row.ends, limit), row.ends, torch.zeros(1)):
        covered[block.start : block.stop] += 1
        ranges = (*block.outside, (block.start, block.stop))
        keys = torch.cat([torch.arange(a, b) for a, b in ranges])
        n_queries = block.stop - block.start
        own = torch.ones(n_queries, len(keys), dtype=torch.bool).tril()
        seen = own if block.mask is None else block.mask[0, 0] == 0
        got[block.start : block.stop, keys] = seen
    assert (covered == 1).all()
    assert torch.equal(got, wanted)


def test_small_trees_make_few_blocks() -> None:
    ends = np.repeat(np.arange(1, 11) * 20, 20)
    assert len(split(ends, 40)) == 5
    assert split(ends, 1000) == [(0, 200, ())]


def test_configs_come_back_after_an_error() -> None:
    model = tiny_model("llama", n_layers=1)
    decoder = Decoder(model)
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), block_attention(decoder.layers, []):
        assert model.config._attn_implementation != before
        raise RuntimeError("stop")
    assert model.config._attn_implementation == before
