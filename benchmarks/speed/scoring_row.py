"""The common part of the scoring rows: our paths against a loop of lm-eval's ``hf`` model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from streamline.benchmarks.speed.bf16 import effect, in_bfloat16, merged
from streamline.benchmarks.speed.common import Options, Outcome, contest, counted
from streamline.benchmarks.speed.peers import LmEval, answer, best_batch_size, same_answers
from streamline.benchmarks.speed.questions import Questions
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, PathTrie, dense_path
from streamline.evaluation.scoring.packing import pack
from streamline.method import Pruned
from streamline.methods.llm_streamline import (
    StreamlineFFN,
    StreamlineLayer,
    StreamlineNone,
    StreamlineSwiGLU,
)
from streamline.methods.replacement import make
from streamline.plan import Plan, Span

__all__ = [
    "KINDS",
    "METHODS",
    "frozen",
    "quick_batch",
    "race_scoring",
    "replaced",
    "sharing",
    "subset",
]

KINDS = (None, "ffn", "swiglu", "layer")
"""What stands in a span's place: nothing, or one of three networks."""
METHODS = (StreamlineNone, StreamlineFFN, StreamlineSwiGLU, StreamlineLayer)
"""The same four kinds as pruning methods."""
Half = Literal["ours", "both"] | None


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
    half: Half = None,
    batch_size: int | None = None,
) -> Outcome:
    """Race our scorer against lm-eval's ``hf`` model on each part and fill an outcome.

    Args:
        outcome: The row; changed and returned.
        paths: The models, all of one decoder.
        tokenizer: Their tokenizer.
        parts: The questions of each repetition.
        half: Whether to time our scorer in bfloat16 beside (``ours``), or lm-eval's model too
            (``both``); their answers are compared with those in float32, not required to agree.
        batch_size: lm-eval's; None tries 8, 16 and 32 on a sample and takes the fastest.
    """
    models = [_whole(path) for path in paths]
    size, costs = batch_size, None
    if size is None:
        size, costs = best_batch_size(models[0], tokenizer, parts[0])
    peer = LmEval(models, tokenizer, size)
    small = min(parts, key=lambda part: part.n_tokens)
    warm = Questions(small.instances[:8], small.requests[:8], small.grade)
    answer(paths[:1], warm, tokenizer)
    runs: dict[str, Callable[[int], Any]] = {
        "ours": lambda i: answer(paths, parts[i], tokenizer),
        "theirs": lambda i: peer.answer(parts[i]),
    }
    if half is not None:
        light = in_bfloat16(paths)
        answer(light[:1], warm, tokenizer)
        runs["ours_bf16"] = lambda i: answer(light, parts[i], tokenizer)
    if half == "both":
        other = LmEval([_whole(path) for path in light], tokenizer, size)
        other.answer(warm)
        runs["theirs_bf16"] = lambda i: other.answer(parts[i])
    done = 0

    def compare(results: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        facts = same_answers(parts[done], results["ours"], results["theirs"])
        for name, exact in (("ours_bf16", "ours"), ("theirs_bf16", "theirs")):
            if name in results:
                facts[name] = effect(parts[done], results[exact], results[name])
        done += 1
        return facts

    outcome.again = lambda: answer(paths, parts[0], tokenizer)
    outcome.races = contest(len(parts), runs, compare)
    worst = max((race.facts for race in outcome.races), key=lambda facts: facts["max_difference"])
    outcome.facts |= {
        "batch_size": size,
        "batch_size_us_per_token": costs,
        "max_difference": worst["max_difference"],
        "sum_there": worst["sum_there"],
        "accuracy": totals([race.facts["right"] for race in outcome.races]),
        "sharing": [sharing(paths, part) for part in parts],
    }
    if half is not None:
        outcome.facts["bf16"] = _half_facts(outcome)
    outcome.notes.append("Each repetition asks other questions, so none is asked twice.")
    if costs is None:
        outcome.notes.append(
            f"At this size lm-eval's batch size is not tried but taken as {size}, the best of 8, "
            "16 and 32 where they were tried."
        )
    return outcome


def quick_batch(options: Options, size: int) -> int | None:
    """lm-eval's batch size where trying costs more than the row: the best one found before."""
    return size if options.size == "quick" else None


def subset(asked: int, full: int) -> list[str]:
    """The note of a row that asks fewer questions of each task than the table."""
    if asked >= full:
        return []
    return [
        f"Both sides answer the first {counted(asked, 'question')} of each task instead of {full}, "
        f"so that the peer fits the time; nothing is extrapolated. --full asks {full}."
    ]


def _whole(path: Path) -> Any:
    """The path as one model, for lm-eval."""
    dense = path.nodes == dense_path(path.decoder).nodes
    return path.decoder.model if dense else assemble(path)


def _half_facts(outcome: Outcome) -> dict[str, Any]:
    """What the repetitions say of bfloat16."""
    ours = [race.facts["ours_bf16"] for race in outcome.races]
    facts = merged(ours) | {
        "ratio": outcome.ratio_of("ours_bf16"),
        "against": "lm-eval hf in float32",
        "accuracy": totals([found["right"] for found in ours]),
    }
    if "theirs_bf16" in outcome.races[0].facts:
        facts["ratio_against_bf16"] = outcome.ratio_of("ours_bf16", peer="theirs_bf16")
        facts["theirs"] = merged([race.facts["theirs_bf16"] for race in outcome.races])
    return facts


def totals(grades: Sequence[dict[str, list[int]]]) -> dict[str, dict[str, float]]:
    """Accuracy by task over all repetitions, from pairs of right and asked."""
    out = {}
    for task in grades[0]:
        right, asked = (sum(g[task][k] for g in grades) for k in (0, 1))
        out[task] = {"accuracy": right / asked, "n": asked}
    return out
