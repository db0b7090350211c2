"""How many tokens a batch may have: given, the device's default, or found by trial.

On an accelerator, work that is worth it is preceded by a trial: a batch of the worst kind is
doubled until memory runs out or nothing is gained any more. What was found is kept by device,
model, number format, branches and row length, so a run tries once. On a CPU the default stands:
a choice by the clock would let two runs of one command differ in the last digits. Answers depend
on the budget by rounding alone.

Example::

    budget = TokenBudget(None, folder=out / "cache" / "batch_tokens")
    score(paths, requests, batch_tokens=budget)
    budget.facts()              # {"trial: 13 models, rows of 512 tokens": 32768}
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch

from streamline.engine.decoder import Decoder
from streamline.engine.memory import free_memory, out_of_memory
from streamline.engine.paths import Path, tries_of
from streamline.evaluation.scoring.packing import Batch, Row
from streamline.hashing import content_key
from streamline.kept import kept_json, write_json

__all__ = ["TokenBudget", "default_batch_tokens", "doubled", "synthetic"]

logger = logging.getLogger(__name__)

Attempt = Callable[[Batch], object]
"""Runs one batch along all paths; raises if memory runs out."""

CPU_TOKENS = 2048
ACCELERATOR_TOKENS = 16384

FIRST_TOKENS = 2048  # tokens of the first attempt
MOST_TOKENS = 1 << 19
_GAIN = 1.05  # a doubling that is not at least this much faster is the last
_MARGIN = 0.8  # fraction of the last size that went well, where the next one did not
_WORTH = 8  # batches of the default size that make a trial worth its time


def default_batch_tokens(device: torch.device) -> int:
    """Tokens of a batch that keep a kind of device busy."""
    return CPU_TOKENS if device.type == "cpu" else ACCELERATOR_TOKENS


def can_try(decoder: Decoder) -> bool:
    """Whether a trial may choose for a model: not on a CPU, nor where layers come singly."""
    return decoder.device.type != "cpu" and decoder.layer_order is None


class TokenBudget:
    """Most tokens of a batch, for one run.

    Args:
        given: Tokens as given; None to choose.
        folder: Where findings are kept; None to keep them in memory only.
    """

    def __init__(self, given: int | None = None, folder: FilePath | None = None) -> None:
        self.given = given
        self.folder = folder
        self._found: dict[str, dict[str, Any]] = {}
        self._last: str | None = None

    def tokens(
        self,
        paths: Sequence[Path],
        *,
        work: int,
        width: int,
        attempt: Attempt,
        tree: bool = True,
    ) -> int:
        """The budget for a run.

        Args:
            paths: What will be run together.
            work: Tokens to be computed in all, so that a trial costs less than it saves.
            width: Length of the longest row.
            attempt: Runs a batch along all of them, for the trial.
            tree: Whether the trial's batch has a tree mask.

        Returns:
            Most tokens of a batch.
        """
        device = paths[0].decoder.device
        width = max(512, 1 << (width - 1).bit_length())
        facts = _facts(paths, width)
        key = content_key(facts)
        known = self._found.get(key) or self._kept(key)
        if known is None:
            default = default_batch_tokens(device)
            if self.given is not None:
                known = facts | {"source": "given", "batch_tokens": self.given}
            elif not can_try(paths[0].decoder) or work < _WORTH * default:
                return self._remember(key, facts | {"source": "default", "batch_tokens": default})
            else:
                start = time.perf_counter()
                known = facts | {"source": "trial"} | _trial(paths[0].decoder, width, attempt, tree)
                known["seconds"] = time.perf_counter() - start
                logger.info(
                    "batches of %d tokens, found by trial in %.1f s for %s",
                    known["batch_tokens"],
                    known["seconds"],
                    _label(known),
                )
                self._write(key, known)
        return self._remember(key, known)

    def shrink(self, paths: Sequence[Path], width: int, limit: int | None) -> None:
        """Keep to less from now on, because memory ran out; None changes nothing.

        Args:
            paths: What was run.
            width: As for :meth:`tokens`.
            limit: Most tokens that went well.
        """
        width = max(512, 1 << (width - 1).bit_length())
        facts = _facts(paths, width)
        key = content_key(facts)
        known = self._found.get(key)
        if limit is None or known is None or known["batch_tokens"] <= limit:
            return
        less = known | {"source": "halved", "batch_tokens": limit}
        self._remember(key, less)
        self._write(key, less)

    def facts(self) -> dict[str, int]:
        """What was used so far, for the record: how it was found, and the tokens."""
        return {_source(known): int(known["batch_tokens"]) for known in self._found.values()}

    def used(self) -> dict[str, int]:
        """What the last run used, as :meth:`facts` has it; nothing before the first."""
        known = None if self._last is None else self._found[self._last]
        return {} if known is None else {_source(known): int(known["batch_tokens"])}

    def _remember(self, key: str, known: dict[str, Any]) -> int:
        self._last = key
        self._found[key] = known
        return int(known["batch_tokens"])

    def _file(self, key: str) -> FilePath | None:
        return None if self.folder is None else self.folder / f"{key[:16]}.json"

    def _kept(self, key: str) -> dict[str, Any] | None:
        """A finding of an earlier process; against what is given only a failure counts."""
        file = self._file(key)
        known: dict[str, Any] | None = None if file is None else kept_json(file)
        if known is None or self.given is None:
            return known
        return known if known["batch_tokens"] < self.given and known["source"] == "halved" else None

    def _write(self, key: str, known: dict[str, Any]) -> None:
        file = self._file(key)
        if file is not None:
            write_json(file, known)


def _facts(paths: Sequence[Path], width: int) -> dict[str, Any]:
    """What decides how much memory a batch needs."""
    decoder = paths[0].decoder
    tries = [trie for trie, _ in tries_of(paths)]
    device, memory = str(decoder.device.type), None
    if decoder.device.type == "cuda":
        properties = torch.cuda.get_device_properties(decoder.device)
        device, memory = properties.name, int(properties.total_memory)
    return {
        "device": device,
        "memory_bytes": memory,
        "model": decoder.name,
        "parameters": sum(trie.decoder.n_parameters() for trie in tries),
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "paths": sum(len(trie.paths) for trie in tries),
        "branches": sum(trie.n_runs for trie in tries),
        "width": width,
        "streamed": decoder.layer_order is not None,
    }


def _source(known: dict[str, Any]) -> str:
    plain = known["source"] in ("given", "default")
    return str(known["source"] if plain else f"{known['source']}: {_label(known)}")


def _label(known: dict[str, Any]) -> str:
    models = f"{known['paths']} model{'s' if known['paths'] > 1 else ''}"
    return f"{models}, {known['branches']} layers, rows to {known['width']} tokens"


def _trial(decoder: Decoder, width: int, attempt: Attempt, tree: bool) -> dict[str, Any]:
    """Try batches of rising size on the device."""
    vocabulary = int(decoder.config.vocab_size)
    longest = decoder.max_length
    width = width if longest is None else min(width, longest)

    def seconds(n_tokens: int) -> float:
        batch = synthetic(n_tokens // width, width, vocabulary, tree)
        attempt(batch)  # the first time includes what is made once for each size
        start = time.perf_counter()
        attempt(batch)
        return time.perf_counter() - start

    start = max(width, FIRST_TOKENS // width * width)
    tried = list(doubled(seconds, start, MOST_TOKENS))
    free_memory()
    rates = [(n_tokens, rate) for n_tokens, rate in tried if rate is not None]
    if not rates:
        chosen = width
    elif tried[-1][1] is None:
        chosen = max(width, int(rates[-1][0] * _MARGIN) // width * width)
    else:
        best = max(rate for _, rate in rates)
        chosen = next(n_tokens for n_tokens, rate in rates if rate * _GAIN >= best)
    return {"batch_tokens": chosen, "tried": [list(pair) for pair in tried]}


def doubled(
    seconds: Callable[[int], float], start: int, most: int
) -> Iterator[tuple[int, float | None]]:
    """Double the size of a batch until memory runs out or no more speed is gained.

    Args:
        seconds: Time of a batch of some tokens.
        start: Tokens of the first one.
        most: Tokens that are never exceeded.

    Yields:
        Tokens, and tokens per second; None in the last pair if memory ran out.
    """
    n_tokens, last = start, 0.0
    while n_tokens <= most:
        try:
            rate = n_tokens / max(seconds(n_tokens), 1e-9)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            yield n_tokens, None
            return
        yield n_tokens, rate
        if rate < last * _GAIN:
            return
        n_tokens, last = 2 * n_tokens, rate


def synthetic(rows: int, width: int, vocabulary: int, tree: bool = True) -> Batch:
    """A batch of the worst kind: full rows, every token scored.

    Args:
        rows: Number of rows; at least one is made.
        width: Tokens of each.
        vocabulary: Token ids are below it.
        tree: Whether it is given a tree mask.
    """
    draw = np.random.default_rng(0)
    made = []
    for index in range(max(1, rows)):
        made.append(
            Row(
                tokens=draw.integers(vocabulary, size=width),
                positions=np.arange(width),
                ends=np.full(width, width),
                requests=np.array([index]),
                counts=np.array([width]),
                scored=np.arange(width),
                targets=draw.integers(vocabulary, size=width),
                n_naive_tokens=width,
            )
        )
    return Batch("trial", tuple(made), tree)
