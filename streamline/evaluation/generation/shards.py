"""Generation by one process or by several, of which each continues every n-th prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from streamline.distributed.team import Shard, team
from streamline.distributed.work import scatter
from streamline.engine.paths import Path
from streamline.evaluation.generation.engine import Begun, Limits, Written, generate
from streamline.evaluation.generation.prompts import Prompt

__all__ = ["generate_shared"]

_AT_ONCE = 64  # prompts of each process between two exchanges, which a killed run may lose


def generate_shared(
    paths: Sequence[Path],
    prompts: Sequence[Prompt],
    tokenizer: Any,
    *,
    written: Written,
    begun: Begun | None = None,
    batch_tokens: int | None = None,
) -> None:
    """As :func:`streamline.evaluation.generation.engine.generate`, by all processes of the team.

    Args:
        paths: What generates, of one decoder.
        prompts: What to continue.
        tokenizer: Turns tokens into text to look for stop strings.
        written: Called with each text's tokens once: as soon as they are there where one process is
            alone, else after every few prompts.
        begun: Called as work goes on; of several processes after every few prompts, none begun.
        batch_tokens: Most tokens of prompts that are run together; None for what suits the device.
    """
    size = team().size
    if size == 1:
        limits = Limits.of(paths[0].decoder.device, batch_tokens)
        generate(paths, prompts, tokenizer, written=written, limits=limits, begun=begun)
        return
    for start in range(0, len(prompts), size * _AT_ONCE):
        some = prompts[start : start + size * _AT_ONCE]
        for found in scatter(_texts, paths, some, tokenizer, batch_tokens):
            for path, prompt, tokens in found:
                written(path, start + prompt, tokens)
        if begun is not None:
            begun(0.0)


def _texts(
    shard: Shard,
    paths: Sequence[Path],
    prompts: Sequence[Prompt],
    tokenizer: Any,
    batch_tokens: int | None,
    *,
    progress: Callable[..., None] | None,
) -> list[tuple[int, int, list[int]]]:
    """One process's tokens, with the numbers of path and prompt."""
    mine = shard.of(range(len(prompts)))
    found: dict[tuple[int, int], list[int]] = {}

    def written(path: int, prompt: int, tokens: list[int]) -> None:
        found[path, mine[prompt]] = tokens

    limits = Limits.of(paths[0].decoder.device, batch_tokens)
    if mine:
        generate(paths, [prompts[i] for i in mine], tokenizer, written=written, limits=limits)
    return [(path, prompt, tokens) for (path, prompt), tokens in found.items()]
