"""Rows: level by level against depth first, on SLEB's trials and on twelve variants.

Both are our engine; "ours" is level by level, the way of an accelerator, and "theirs" depth first,
that of a CPU. A fact beside tells how the time depends on the most tokens that meet one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from streamline.benchmarks.gpu import answers
from streamline.benchmarks.gpu import sleb as sleb_row
from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.gpu.variants import variants as variant_paths
from streamline.benchmarks.speed.common import Outcome
from streamline.engine.decoder import Entry
from streamline.engine.paths import AtEnd, PathTrie
from streamline.evaluation.scoring.score import Likelihoods, score

__all__ = ["sleb", "variants"]

_MOST_TOKENS = (1 << 13, 1 << 15, 1 << 17, 1 << 19)


@contextmanager
def _order(forward: Callable[[PathTrie, Entry, AtEnd], None]) -> Iterator[None]:
    """Run every trie in one order, whatever the device."""
    with mock.patch.object(PathTrie, "forward", forward):
        yield


def _ordered(forward: Callable[..., None], work: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with _order(forward):
            return work()

    return run


def _race(
    bench: Bench,
    outcome: Outcome,
    work: Callable[[], Any],
    compare: Callable[[Any, Any], dict[str, Any]],
) -> Outcome:
    """The two orders against each other, and the first with several numbers of tokens."""
    by_level = _ordered(PathTrie.level_by_level, work)
    by_depth = _ordered(PathTrie.depth_first, work)
    by_level()  # warm up
    bench.race(outcome, 2, by_level, by_depth, compare)

    def limited(most: int) -> Callable[[PathTrie, Entry, AtEnd], None]:
        return lambda trie, entry, at_end: trie.level_by_level(entry, at_end, most)

    outcome.facts["seconds_by_most_tokens"] = {
        str(most): bench.seconds(_ordered(limited(most), work), repeats=1) for most in _MOST_TOKENS
    }
    return outcome


def sleb(bench: Bench) -> Outcome:
    """Time the search."""
    n, length = bench.sizes.trial_tokens
    tokens = bench.inputs.tokens(n, length)
    outcome = Outcome(
        name="levels-sleb",
        work=f"SLEB, {bench.sizes.removed} of {bench.decoder.n_layers} layers, {n} x {length} "
        "tokens a trial: level by level",
        against="depth first, the same engine",
    )
    return _race(
        bench,
        outcome,
        lambda: sleb_row.search(bench, tokens, bench.sizes.removed),
        lambda mine, other: sleb_row.same(mine, other, exact=bench.exact),
    )


def variants(bench: Bench) -> Outcome:
    """Time the scoring of the variants."""
    asked = bench.inputs.questions(bench.sizes.few)
    paths = variant_paths(bench, bench.sizes.sparsities)
    outcome = Outcome(
        name="levels-variants",
        work=f"scoring {len(paths)} models, {len(asked.requests):,} requests: level by level",
        against="depth first, the same engine",
    )

    def work() -> list[Likelihoods]:
        return score(paths, asked.requests, batch_tokens=bench.budget)

    return _race(
        bench,
        outcome,
        work,
        lambda mine, other: answers.require_same(asked, mine, other, exact=bench.exact),
    )
