"""Row: GSM8K behind four worked examples, answered by the dense model and four depth variants."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from streamline.benchmarks.speed import common, questions, variants
from streamline.benchmarks.speed.common import (
    Disagreement,
    Options,
    Outcome,
    contest,
    require_equal,
)
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path
from streamline.evaluation import harness
from streamline.evaluation.generation.engine import generate
from streamline.evaluation.generation.prompts import Prompt
from streamline.evaluation.part import Part

__all__ = ["NEW_TOKENS", "QUESTIONS", "run", "same_texts"]

QUESTIONS = {"quick": 2, "default": 6, "full": 128}
"""Questions over all repetitions."""
NEW_TOKENS = {"quick": 16, "default": 64, "full": 512}
"""Longest answer; the task's own limit is 512."""
SPARSITY = 0.15
TIE = 1e-3
"""Logits nearer than this are a tie, which rounding may turn either way."""

Tokens = list[dict[int, list[int]]]
"""By model, and by the number of the prompt: the new tokens."""
Texts = list[list[str]]


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = common.loaded(options.model)
    n_each = max(1, QUESTIONS[options.size] // options.repeats)
    new_tokens = NEW_TOKENS[options.size]
    (part,) = questions.task_parts(["streamline_gsm8k"], tokenizer, model, n_each * options.repeats)
    parts = [
        _shortened(questions.cut(part, i * n_each, (i + 1) * n_each), new_tokens)
        for i in range(options.repeats)
    ]
    paths = variants.variants(Decoder(model), tokenizer, (SPARSITY,))
    models = [model, *(assemble(path) for path in paths[1:])]
    longest = harness.max_length(model.config, tokenizer)
    prompts = [harness.continuations(each, tokenizer, max_length=longest) for each in parts]

    def ours(index: int) -> tuple[Texts, Tokens]:
        found = side_by_side(paths, prompts[index], tokenizer)
        texts = [
            [harness.text_of(p, each[i], tokenizer) for i, p in enumerate(prompts[index])]
            for each in found
        ]
        return texts, found

    def theirs(index: int) -> Texts:
        return [
            harness.generate(m, parts[index], tokenizer, batch_size=min(16, n_each)) for m in models
        ]

    order = iter(prompts)
    outcome = Outcome(
        name="generation",
        work=f"GSM8K, 4 examples, {n_each * options.repeats} questions, at most {new_tokens} new "
        "tokens, dense and 4 depth variants",
        against="a loop of lm-eval hf (generate_until) over the 5 models",
        notes=[
            "Each repetition asks other questions. Replacements are untrained: their texts run to "
            "the limit.",
            "A text that differs is let through only where it leaves the peer's at two logits "
            f"within {TIE:g} of each other, and is counted.",
        ],
    )
    side_by_side(paths[:1], [dataclasses.replace(prompts[0][0], max_new_tokens=2)], tokenizer)
    outcome.races = contest(
        options.repeats,
        ours,
        theirs,
        lambda found, texts: same_texts(*found, texts, next(order), models, tokenizer),
    )
    return outcome


def side_by_side(paths: Sequence[Path], prompts: Sequence[Prompt], tokenizer: Any) -> Tokens:
    """New tokens of all models at once."""
    found: Tokens = [{} for _ in paths]

    def written(path: int, prompt: int, tokens: list[int]) -> None:
        found[path][prompt] = list(tokens)

    generate(paths, prompts, tokenizer, written=written)
    return found


def same_texts(
    ours: Texts,
    tokens: Tokens,
    theirs: Texts,
    prompts: Sequence[Prompt],
    models: Sequence[Any],
    tokenizer: Any,
) -> dict[str, int]:
    """Refuse texts that differ by more than a tie; count texts, new tokens and ties.

    Raises:
        Disagreement: If a text leaves the peer's where the likeliest token is clear.
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
            ties += 1
    return {
        "texts": sum(len(each) for each in ours),
        "new_tokens": sum(len(t) for each in tokens for t in each.values()),
        "ties": ties,
    }


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


def _shortened(part: Part, new_tokens: int) -> Part:
    """A part whose answers have at most so many tokens."""
    instances = []
    for instance in part.instances:
        one = copy.copy(instance)
        context, settings = instance.args
        one.arguments = (context, {**settings, "max_gen_toks": new_tokens})
        instances.append(one)
    return dataclasses.replace(part, instances=tuple(instances))
