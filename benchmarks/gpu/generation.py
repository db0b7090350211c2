"""Rows: GSM8K behind worked examples, answered by the dense model and four depth variants.

The dense model alone is held against transformers' continuous batching too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from streamline.benchmarks.gpu.answers import whole_models
from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.gpu.variants import variants
from streamline.benchmarks.speed.common import Disagreement, Outcome, require_equal
from streamline.benchmarks.speed.generation import Texts, Tokens, side_by_side
from streamline.engine.paths import dense_path
from streamline.evaluation import harness
from streamline.evaluation.generation.prompts import Prompt

__all__ = ["continuous", "regret", "run"]

_EXACT = 1e-2
_ROUNDED = 1.0
"""Largest regret of a token, by dtype: logits of a random model have a spread of about 10."""


@torch.no_grad()
def regret(model: Any, prompt: Prompt, tokens: Sequence[int]) -> float:
    """How far below the likeliest our worst token is, read by a plain model behind the others.

    Args:
        model: The whole model.
        prompt: What was continued.
        tokens: Our continuation; not empty.

    Returns:
        The largest difference of two logits; 0 for a text that the model would write itself.
    """
    read = torch.tensor([[*prompt.tokens, *tokens]], device=model.device)
    logits = model(read, use_cache=False, logits_to_keep=len(tokens) + 1).logits
    before = logits[0, :-1].float()  # [n, V], what predicts each token
    chosen = before.gather(1, read[0, -len(tokens) :, None])[:, 0]
    return float((before.max(-1).values - chosen).max())


def run(bench: Bench) -> Outcome:
    """Time the row."""
    n, new_tokens = bench.sizes.texts
    part = bench.inputs.texts(n, new_tokens)
    paths = variants(bench, bench.sizes.sparsities[1:2])
    models = whole_models(paths)
    longest = harness.max_length(bench.model.config, bench.tokenizer)
    prompts = harness.continuations(part, bench.tokenizer, max_length=longest)

    def ours() -> tuple[Texts, Tokens]:
        found = side_by_side(paths, prompts, bench.tokenizer)
        texts = [
            [harness.text_of(p, each[i], bench.tokenizer) for i, p in enumerate(prompts)]
            for each in found
        ]
        return texts, found

    def theirs() -> Texts:
        return [harness.generate(m, part, bench.tokenizer, batch_size=n) for m in models]

    def same(mine: tuple[Texts, Tokens], other: Texts) -> dict[str, Any]:
        texts, tokens = mine
        require_equal("numbers of texts", [len(t) for t in texts], [len(t) for t in other])
        worst = _worst(bench, models, prompts, tokens)
        pairs = [pair for a, b in zip(texts, other, strict=True) for pair in zip(a, b, strict=True)]
        return {
            "max_regret": worst,
            "texts": len(pairs),
            "texts_alike": sum(a == b for a, b in pairs),
            "new_tokens": sum(len(t) for found in tokens for t in found.values()),
        }

    outcome = Outcome(
        name="generation",
        work=f"{n} prompts, {new_tokens} new tokens, {len(paths)} models",
        against=f"a loop of lm-eval hf (generate_until) over the models, batch size {n}",
        target=6.0,
        notes=[
            "Every token of ours is compared with the likeliest of the plain model behind the same "
            "text; rounding turns near ties either way, so few long texts are equal in bfloat16."
        ],
    )
    side_by_side(paths[:1], prompts[:1], bench.tokenizer)  # warm up
    return bench.race(outcome, 1, ours, theirs, same)


def continuous(bench: Bench) -> Outcome:
    """Time the dense model against continuous batching."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    n, new_tokens = bench.sizes.texts
    part = bench.inputs.texts(n, new_tokens)
    path = dense_path(bench.decoder)
    longest = harness.max_length(bench.model.config, bench.tokenizer)
    prompts = [
        dataclasses.replace(prompt, stops=())
        for prompt in harness.continuations(part, bench.tokenizer, max_length=longest)
    ]
    how = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    # Left alone it makes a cache of most of the memory; on a CPU that is the machine's own.
    cache = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=512)
    room = None if bench.device.type == "cuda" else cache
    outcome = Outcome(
        name="continuous",
        work=f"{n} prompts, {new_tokens} new tokens, the dense model alone",
        against="transformers' continuous batching (generate_batch)",
        target=4.0,
        notes=["Both go on to the last token: neither looks for the ends of texts."],
    )

    def theirs(some: Sequence[Prompt]) -> list[list[int]]:
        found = bench.model.generate_batch(
            [list(p.tokens) for p in some],
            generation_config=how,
            continuous_batching_config=room,
        )
        return [list(one.generated_tokens) for one in found.values()]

    def same(mine: Tokens, other: list[list[int]]) -> dict[str, Any]:
        require_equal("numbers of tokens", len(mine[0]) * new_tokens, sum(map(len, other)))
        texts = {tuple(tokens) for tokens in other}
        alike = sum(tuple(tokens) in texts for tokens in mine[0].values())
        worst = _worst(bench, [bench.model], prompts, mine)
        return {"max_regret": worst, "texts": len(prompts), "texts_alike": alike}

    with _without_ends(bench.model):
        side_by_side([path], prompts[:1], bench.tokenizer)  # warm up
        theirs(prompts[:2])
        return bench.race(
            outcome,
            1,
            lambda: side_by_side([path], prompts, bench.tokenizer),
            lambda: theirs(prompts),
            same,
        )


@contextmanager
def _without_ends(model: Any) -> Iterator[None]:
    """Within it no token ends a text."""
    before = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = None
        yield
    finally:
        model.generation_config.eos_token_id = before


def _worst(bench: Bench, models: Sequence[Any], prompts: Sequence[Prompt], tokens: Tokens) -> float:
    """The largest regret of our texts.

    Raises:
        Disagreement: If a token is further below the likeliest than rounding explains.
    """
    worst = max(
        regret(model, prompts[i], continuation)
        for model, found in zip(models, tokens, strict=True)
        for i, continuation in found.items()
    )
    if not worst <= (_EXACT if bench.exact else _ROUNDED):
        raise Disagreement(
            f"a token of ours is {worst:.3g} below the likeliest logit; no time is reported"
        )
    return worst
