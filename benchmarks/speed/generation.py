"""Row: GSM8K behind four worked examples, answered by the dense model and four depth variants."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

import torch

from streamline.benchmarks.speed.common import (
    Disagreement,
    Options,
    Outcome,
    contest,
    loaded,
    require_equal,
)  # fmt: skip
from streamline.benchmarks.speed.questions import task_parts
from streamline.benchmarks.speed.scoring_row import KINDS, replaced
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, dense_path
from streamline.evaluation import harness
from streamline.evaluation.generation.engine import generate
from streamline.evaluation.generation.prompts import Prompt
from streamline.plan import Span

__all__ = ["QUESTIONS", "run"]

QUESTIONS = {"quick": 2, "default": 6, "full": 128}
"""Questions over all repetitions."""
NEW_TOKENS = {"quick": 16, "default": 64, "full": 512}
"""Longest answer; the task's own limit is 512."""
BATCH_SIZES = (8, 16)
TIE = 1e-3
"""Logits nearer than this are a tie, which rounding may turn either way."""

Texts = list[list[str]]


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = loaded(options.model)
    n_each = max(1, QUESTIONS[options.size] // options.repeats)
    new_tokens = NEW_TOKENS[options.size]
    (part,) = task_parts(["streamline_gsm8k"], tokenizer, model, n_each * options.repeats)
    parts = [_some(part, i * n_each, (i + 1) * n_each, new_tokens) for i in range(options.repeats)]
    decoder = Decoder(model)
    n = decoder.n_layers
    span = Span(2 * n // 5, 2 * n // 5 + max(1, n // 6))
    paths = [dense_path(decoder), *(replaced(decoder, span, kind) for kind in KINDS)]
    models = [model, *(assemble(path) for path in paths[1:])]
    longest = harness.max_length(model.config, tokenizer)
    prompts = [harness.continuations(each, tokenizer, max_length=longest) for each in parts]
    size, seconds = best_batch_size(model, parts[0], tokenizer)
    done: list[list[dict[int, list[int]]]] = []

    def ours(index: int) -> Texts:
        tokens = side_by_side(paths, prompts[index], tokenizer)
        done.append(tokens)
        return [
            [harness.text_of(p, each[i], tokenizer) for i, p in enumerate(prompts[index])]
            for each in tokens
        ]

    def theirs(index: int) -> Texts:
        return [harness.generate(m, parts[index], tokenizer, batch_size=size) for m in models]

    def compare(results: dict[str, Any]) -> dict[str, Any]:
        asked = prompts[len(done) - 1]
        return same_texts(results["ours"], results["theirs"], done[-1], asked, models, tokenizer)

    side_by_side(paths[:1], [dataclasses.replace(prompts[0][0], max_new_tokens=2)], tokenizer)
    outcome = Outcome(
        name="generation",
        work=f"GSM8K, 4 examples, {n_each * options.repeats} questions, at most {new_tokens} new "
        "tokens, dense + 4 depth variants",
        against="a loop of lm-eval hf (generate_until) over the 5 models",
        target=None,
    )
    outcome.races = contest(options.repeats, {"ours": ours, "theirs": theirs}, compare)
    outcome.facts |= {
        "batch_size": size,
        "batch_size_seconds": seconds,
        "prompt_tokens": sum(len(p.tokens) for each in prompts for p in each),
        "new_tokens": sum(len(t) for run in done for each in run for t in each.values()),
        "texts": sum(race.facts["texts"] for race in outcome.races),
        "texts_parted_by_a_tie": sum(race.facts["ties"] for race in outcome.races),
    }
    outcome.notes += [
        "Each repetition asks other questions. Replacements are untrained: their texts run to the "
        "limit.",
        "Texts are compared first; one that differs is let through only where it parts at two "
        f"logits within {TIE:g} of each other, and is counted.",
    ]
    outcome.again = lambda: side_by_side(paths, prompts[0], tokenizer)
    return outcome


def side_by_side(
    paths: Sequence[Path], prompts: Sequence[Prompt], tokenizer: Any
) -> list[dict[int, list[int]]]:
    """Each path's new tokens by the number of the prompt."""
    found: list[dict[int, list[int]]] = [{} for _ in paths]

    def written(path: int, prompt: int, tokens: list[int]) -> None:
        found[path][prompt] = list(tokens)

    generate(paths, prompts, tokenizer, written=written)
    return found


def best_batch_size(model: Any, part: harness.Part, tokenizer: Any) -> tuple[int, dict[str, float]]:
    """The faster of lm-eval's batch sizes, on a few tokens behind each of the part's prompts.

    A size beyond the number of questions is not tried: the batches would be the same.
    """
    sizes = [s for s in BATCH_SIZES if s <= part.n_docs] or [part.n_docs]
    seconds = {}
    sample = _some(part, 0, sizes[-1], 8)
    for size in sizes if len(sizes) > 1 else ():
        started = time.perf_counter()
        harness.generate(model, sample, tokenizer, batch_size=size)
        seconds[str(size)] = time.perf_counter() - started
    best = min(seconds, key=lambda size: seconds[size]) if seconds else str(sizes[0])
    return int(best), seconds


def same_texts(
    ours: Texts,
    theirs: Texts,
    tokens: Sequence[dict[int, list[int]]],
    prompts: Sequence[Prompt],
    models: Sequence[Any],
    tokenizer: Any,
) -> dict[str, int]:
    """Refuse texts that differ by more than a tie; count the ties.

    Raises:
        Disagreement: If a text parts from the peer's where the likeliest token is clear.
    """
    require_equal("numbers of texts", [len(t) for t in ours], [len(t) for t in theirs])
    ties = 0
    for model, mine, other, found in zip(models, ours, theirs, tokens, strict=True):
        for i, (text, wanted) in enumerate(zip(mine, other, strict=True)):
            if text == wanted:
                continue
            gap = _gap(model, prompts[i], found[i], wanted, tokenizer)
            if gap > TIE:
                raise Disagreement(
                    f"texts of prompt {i} differ (ours {text!r}, theirs {wanted!r}), with logits "
                    f"{gap:.3g} apart where they part; no time is reported"
                )
            logging.getLogger(__name__).info("a tie within %.2g parts a text", gap)
            ties += 1
    return {"texts": sum(len(each) for each in ours), "ties": ties}


@torch.no_grad()
def _gap(model: Any, prompt: Prompt, tokens: list[int], wanted: str, tokenizer: Any) -> float:
    """How far the two best logits are apart where our tokens leave the peer's text."""
    same = 0
    while same < len(tokens) and wanted.startswith(
        tokenizer.decode(tokens[: same + 1], skip_special_tokens=True)
    ):
        same += 1
    read = [*prompt.tokens, *tokens[:same]]
    best = model(torch.tensor([read])).logits[0, -1].float().topk(2).values
    return float(best[0] - best[1])


def _some(part: harness.Part, start: int, stop: int, new_tokens: int) -> harness.Part:
    """Some of a part's questions, with a limit to the answers."""
    instances = []
    for instance in part.instances[start:stop]:
        one = copy.copy(instance)
        context, settings = instance.args
        one.arguments = (context, {**settings, "max_gen_toks": new_tokens})
        instances.append(one)
    return dataclasses.replace(part, instances=tuple(instances), n_docs=len(instances))
