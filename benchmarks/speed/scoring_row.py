"""The common part of the scoring rows: our paths against a loop of lm-eval's ``hf`` model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from streamline.benchmarks.speed.common import Outcome, contest
from streamline.benchmarks.speed.peers import LmEval, answer, best_batch_size, same_answers
from streamline.benchmarks.speed.questions import Questions
from streamline.decoder import Decoder
from streamline.evaluation.packing import pack
from streamline.llm_streamline import (
    StreamlineFFN,
    StreamlineLayer,
    StreamlineNone,
    StreamlineSwiGLU,
)
from streamline.method import Pruned
from streamline.paths import Path, PathTrie, dense_path
from streamline.plan import Plan, Span
from streamline.replacement import make
from streamline.surgery import assemble

__all__ = ["KINDS", "METHODS", "frozen", "race_scoring", "replaced", "sharing"]

KINDS = (None, "ffn", "swiglu", "layer")
"""What stands in a span's place: nothing, or one of three networks."""
METHODS = (StreamlineNone, StreamlineFFN, StreamlineSwiGLU, StreamlineLayer)
"""The same four kinds as pruning methods."""


def frozen(pruned: Pruned) -> Pruned:
    """Its modules ready for use, as after training."""
    for module in pruned.modules.values():
        module.eval().requires_grad_(False)
    return pruned


def replaced(decoder: Decoder, span: Span, kind: str | None) -> Path:
    """A model with a span dropped, or replaced by an untrained network of a kind."""
    name = f"{kind or 'none'}-{span.start}-{span.stop}"
    if kind is None:
        return Pruned(Plan.drop(decoder.n_layers, span.layers)).path(decoder, name)
    plan = Plan.replace(decoder.n_layers, span, kind)
    init = "first" if kind == "layer" else "random"
    module = make(kind, decoder, span, init=init, seed=0).to(decoder.dtype)
    return frozen(Pruned(plan, modules={span.start: module})).path(decoder, name)


def sharing(paths: Sequence[Path], questions: Questions) -> dict[str, Any]:
    """Counts that explain a ratio: layer runs and tokens, with and without sharing."""
    trie = PathTrie(paths)
    batches = pack(questions.requests, batch_tokens=2048)
    return {
        "layer_runs": trie.n_runs,
        "layer_runs_unshared": trie.n_naive_runs,
        "tokens": sum(batch.n_tokens for batch in batches),
        "tokens_unshared": questions.n_tokens,
    }


def race_scoring(
    outcome: Outcome,
    paths: Sequence[Path],
    tokenizer: Any,
    parts: Sequence[Questions],
    *,
    extra: dict[str, Callable[[int], Any]] | None = None,
    look: Callable[[dict[str, Any], int], dict[str, Any]] | None = None,
) -> Outcome:
    """Race our scorer against lm-eval's ``hf`` model on each part and fill an outcome.

    Args:
        outcome: The row; changed and returned.
        paths: The models, all of one decoder.
        tokenizer: Their tokenizer.
        parts: The questions of each repetition.
        extra: Further contestants, timed beside and not compared strictly.
        look: What to note of the further contestants: given the results by name and the number of
            the repetition.
    """
    models = [
        path.decoder.model if path.nodes == dense_path(path.decoder).nodes else assemble(path)
        for path in paths
    ]
    size, seconds = best_batch_size(models[0], tokenizer, parts[0])
    peer = LmEval(models, tokenizer, size)
    small = min(parts, key=lambda part: part.n_tokens)
    warm = Questions(small.instances[:8], small.requests[:8], small.grade)
    answer(paths[:1], warm, tokenizer)
    done = 0

    def compare(results: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        facts = same_answers(parts[done], results["ours"], results["theirs"])
        facts |= look(results, done) if look else {}
        done += 1
        return facts

    runs: dict[str, Callable[[int], Any]] = {
        "ours": lambda i: answer(paths, parts[i], tokenizer),
        "theirs": lambda i: peer.answer(parts[i]),
        **(extra or {}),
    }
    outcome.again = lambda: answer(paths, parts[0], tokenizer)
    outcome.races = contest(len(parts), runs, compare)
    outcome.facts |= {
        "batch_size": size,
        "batch_size_seconds": seconds,
        "max_difference": max(race.facts["max_difference"] for race in outcome.races),
        "accuracy": totals([race.facts["right"] for race in outcome.races]),
        "sharing": [sharing(paths, part) for part in parts],
    }
    outcome.notes.append(
        "Each repetition asks other questions, so none is asked twice; lm-eval's batch size of 8, "
        "16 or 32 is the fastest on about 64 inputs of the first repetition."
    )
    return outcome


def totals(grades: Sequence[dict[str, list[int]]]) -> dict[str, dict[str, float]]:
    """Accuracy by task over all repetitions, from pairs of right and asked."""
    out = {}
    for task in grades[0]:
        right, asked = (sum(g[task][k] for g in grades) for k in (0, 1))
        out[task] = {"accuracy": right / asked, "n": asked}
    return out
