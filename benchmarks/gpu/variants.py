"""Row: the commonsense tasks on the dense model and twelve depth variants, evaluated jointly."""

from __future__ import annotations

from functools import lru_cache

from streamline.benchmarks.gpu import answers
from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.speed.common import Outcome
from streamline.benchmarks.speed.variants import METHODS
from streamline.calibration import measure
from streamline.engine.budget import mean_layer_parameters
from streamline.engine.paths import Path, PathTrie, dense_path

__all__ = ["run", "variants"]


@lru_cache(maxsize=1)
def variants(bench: Bench, sparsities: tuple[float, ...]) -> tuple[Path, ...]:
    """The dense path and four kinds at some sparsities, their replacements untrained.

    Args:
        bench: The model.
        sparsities: Of the layers alone, so that a large vocabulary leaves them in reach.
    """
    decoder = bench.decoder
    batches = bench.inputs.tokens(2, 512)
    calibration = measure(decoder, batches)
    paths = [dense_path(decoder)]
    layers = decoder.n_layers * mean_layer_parameters(decoder) / decoder.n_parameters()
    for sparsity in sparsities:
        for method in METHODS:
            pruned = method().prune(decoder, calibration, sparsity * layers, batches, seed=0)
            for module in pruned.modules.values():
                module.to(decoder.dtype).eval().requires_grad_(False)
            paths.append(pruned.path(decoder, f"{method.name}-{sparsity}"))
    return tuple(paths)


def run(bench: Bench) -> Outcome:
    """Time the row."""
    asked = bench.inputs.questions(bench.sizes.few)
    paths = variants(bench, bench.sizes.sparsities)
    size = bench.sizes.batch_sizes[len(bench.sizes.batch_sizes) // 2]
    peer = answers.FloatSoftmax(answers.whole_models(paths), bench.tokenizer, size)
    trie = PathTrie(paths)
    outcome = Outcome(
        name="variants",
        work=f"{len(paths)} models (dense and {len(paths) - 1} depth variants), "
        f"{len(asked.parts)} tasks, {bench.sizes.few} questions of each",
        against=f"a loop of lm-eval hf over the models, batch size {size}",
        target=20.0,
        facts={"layer_runs": trie.n_runs, "layer_runs_unshared": trie.n_naive_runs},
        notes=["Replacements are untrained: their weights do not change the work."],
    )
    answers.ours(bench, paths, asked)  # warm up
    return bench.race(
        outcome,
        1,
        lambda: answers.ours(bench, paths, asked),
        lambda: peer.answer(asked),
        lambda mine, other: answers.require_same(asked, mine, other, exact=bench.exact),
    )
