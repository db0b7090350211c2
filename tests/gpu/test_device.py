"""On an accelerator: the numbers of the CPU, whatever the order, and the table in small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamline.benchmarks.gpu.__main__ import main
from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.gpu.variants import variants
from streamline.engine.paths import PathTrie
from streamline.evaluation.scoring.score import score

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator on this machine"),
]
SPARSITIES = (0.15, 0.25)


@pytest.fixture(scope="module")
def there() -> Bench:
    return Bench.build("tiny", torch.device("cuda"), torch.float32, inputs="made-up")


def ends(bench: Bench, order: str) -> dict[int, Tensor]:
    """The states at the ends of all variants' paths."""
    trie = PathTrie(variants(bench, SPARSITIES))
    found: dict[int, Tensor] = {}
    with torch.inference_mode():
        entry = bench.decoder.enter(bench.inputs.tokens(2, 24))
        getattr(trie, order)(entry, lambda index, hidden: found.update({index: hidden.cpu()}))
    return found


def test_level_by_level_equals_depth_first(there: Bench) -> None:
    by_level, by_depth = ends(there, "level_by_level"), ends(there, "depth_first")
    assert by_level.keys() == by_depth.keys() == set(range(9))
    for index, states in by_depth.items():
        torch.testing.assert_close(by_level[index], states, rtol=1e-4, atol=1e-4)


def test_scores_are_those_of_the_cpu(there: Bench) -> None:
    asked = there.inputs.questions(4).requests
    paths = variants(there, SPARSITIES)
    on_device = score(paths, asked)
    modules = {node.module for path in paths for node in path.nodes}
    try:
        for module in (there.model, *modules):
            module.to("cpu")
        on_cpu = score(paths, asked)
    finally:
        for module in (there.model, *modules):
            module.to("cuda")
    for ours, theirs in zip(on_device, on_cpu, strict=True):
        assert ours.loglikelihood == pytest.approx(theirs.loglikelihood, abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_row_runs_and_agrees(dtype: str, tmp_path: Path) -> None:
    place = ["--shape", "tiny", "--device", "cuda", "--dtype", dtype, "--out", str(tmp_path)]
    assert main(place) == 0
