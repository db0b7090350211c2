"""Generation for many paths side by side, greedy unless a prompt has a temperature.

Prompts that begin alike (few-shot examples) are run together: their common prefix is run once,
the rest of each prompt once along the trie of all paths, and from then on every prompt on every
path is a row. A step gives one token to all rows in one forward pass: a layer that several
paths share runs once on all their rows. Rows leave when they are done. An accelerator begins the
next step before the last one's tokens are looked at: it works while the host searches for the ends
of texts, and does one step too many. The tokens are those that ``generate(do_sample=False)`` gives
on each model by itself, one prompt at a time, as far as rounding goes. A drawn token depends on its
prompt's seed and its own number alone.

Example::

    prompts = [Prompt(tuple(ids), stops=("Question:",), max_new_tokens=512) for ids in encoded]
    generate(paths, prompts, tokenizer, written=lambda path, prompt, tokens: store(...))

Notation: see :mod:`streamline.evaluation.generation.cache`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any

import torch
from torch import Tensor

from streamline.engine.head import drawn, likeliest
from streamline.engine.kernels import fast
from streamline.engine.memory import BatchLimit, free_memory, room
from streamline.engine.paths import Path, tries_of
from streamline.engine.transfer import Later, onto
from streamline.evaluation.generation.cache import CacheTrie, Phase
from streamline.evaluation.generation.phases import Prefix, Prompts
from streamline.evaluation.generation.prompts import Prompt, Stops, alike
from streamline.evaluation.generation.rows import Rows
from streamline.evaluation.generation.slots import bytes_per_token
from streamline.evaluation.scoring.token_budget import default_batch_tokens

__all__ = ["CPU_CACHE", "ROWS", "Begun", "Limits", "Written", "generate"]

Written = Callable[[int, int, list[int]], None]
"""Called with the numbers of path and prompt and the new tokens, as soon as a row is done.

A last token of -1 says that the model's logits were not finite there."""

Begun = Callable[[float], None]
"""Called after every step with the texts that are begun and not done, each as the share that is
there of the most tokens that it may have."""

#: Most rows that generate together, on an accelerator and elsewhere.
ROWS = {True: 512, False: 64}
#: Most bytes of keys and values where no accelerator says how much is free.
CPU_CACHE = 2 << 30
_CLOSE_UP = 8  # rows are closed up when one in so many is done


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much is done at once.

    Attributes:
        batch_tokens: Most tokens of prompts that are run together.
        rows: Most rows that generate together; a prompt's paths are never parted.
        cache_bytes: Most memory for keys and values, as far as it can be foretold.
    """

    batch_tokens: int
    rows: int
    cache_bytes: int

    @classmethod
    def of(cls, device: torch.device, batch_tokens: int | None = None) -> Limits:
        """What suits a device: on an accelerator, half of the memory that is free now."""
        tokens = batch_tokens or default_batch_tokens(device)
        if device.type == "cuda":
            free_memory()  # memory that was reserved earlier counts as used otherwise
            return cls(batch_tokens=tokens, rows=ROWS[True], cache_bytes=room(device) // 2)
        return cls(batch_tokens=tokens, rows=ROWS[False], cache_bytes=CPU_CACHE)


def generate(
    paths: Sequence[Path],
    prompts: Sequence[Prompt],
    tokenizer: Any,
    *,
    written: Written,
    limits: Limits | None = None,
    begun: Begun | None = None,
) -> None:
    """Continue every prompt along every path.

    Args:
        paths: What generates; paths of one decoder share what they have in common. None may be one
            that must generate by itself (:mod:`streamline.evaluation.generation.alone`).
        prompts: What to continue, in any order.
        tokenizer: Makes text of tokens to look for stop strings.
        written: Called with each text's tokens once, the end-of-text token included; a batch that
            ran out of memory is done again, and may then be given twice.
        limits: How much to do at once; None for what suits the device.
        begun: Called as work goes on.
    """
    groups = tries_of(paths)
    stops = Stops(prompts, tokenizer)
    for trie, members in groups:
        cached = CacheTrie(trie)
        here = limits or Limits.of(cached.decoder.device)
        run = _Run(cached, members, prompts, stops, here, written, begun or (lambda texts: None))
        kernels = fast(trie.modules(), trie.decoder.model)
        limit = BatchLimit()
        with kernels.active(), torch.inference_mode():
            for n_prefix, together in alike(prompts):
                run.begin(prompts[together[0]].tokens[:n_prefix])
                for batch in run.batches(together):
                    limit.apply(_Batch(run, batch), run.work)
            cached.forget(prefix=True)


class _Run:
    """All prompts along the paths of one model.

    Args:
        trie: The paths.
        members: For each of them its number among all.
        prompts: All prompts.
        stops: Their stop strings.
        limits: How much to do at once.
        written: Called with what is done.
        begun: Called with how much of the rest there is.
    """

    def __init__(
        self,
        trie: CacheTrie,
        members: Sequence[int],
        prompts: Sequence[Prompt],
        stops: Stops,
        limits: Limits,
        written: Written,
        begun: Begun,
    ) -> None:
        self.trie, self.decoder = trie, trie.decoder
        self.members, self.prompts = members, prompts
        self.stops, self.limits = stops, limits
        self.written, self.begun = written, begun
        self.done: set[tuple[int, int]] = set()  # path and prompt of each text that was given
        settings: Any = self.decoder.model.generation_config
        ends = getattr(settings, "eos_token_id", None)
        self.ends = set(ends) if isinstance(ends, (list, tuple)) else {ends} - {None}
        self.draws = any(prompt.temperature for prompt in prompts)
        self.n_prefix = 0

    def begin(self, tokens: Sequence[int]) -> None:
        """Run the common prefix of the prompts that follow."""
        self.trie.forget(prefix=True)
        self.n_prefix = len(tokens)
        if tokens:
            self._forward(torch.tensor([list(tokens)]), 0, Prefix(), lambda path, hidden: None)

    def batches(self, together: Sequence[int]) -> Iterator[list[int]]:
        """Prompts in batches, the longest first."""
        paths, each = len(self.trie.paths), bytes_per_token(self.decoder)
        most = max(1, self.limits.rows // paths)
        batch: list[int] = []
        used = 0
        for index in sorted(together, key=lambda i: (-len(self.prompts[i].tokens), i)):
            prompt = self.prompts[index]
            rest = len(prompt.tokens) - self.n_prefix
            cost = each * sum(
                rest + prompt.max_new_tokens * (end - first)
                for step in self.trie.steps
                for first, end in step.ranges
            )
            if batch and (len(batch) == most or used + cost > self.limits.cache_bytes):
                yield batch
                batch, used = [], 0
            batch.append(index)
            used += cost
        if batch:
            yield batch

    def work(self, batch: _Batch) -> None:
        """Continue some prompts along all paths."""
        try:
            self._continue(batch.prompts)
        finally:
            self.trie.forget()

    def _continue(self, batch: list[int]) -> None:
        lengths = [len(self.prompts[i].tokens) - self.n_prefix for i in batch]
        tokens = self._read(batch, lengths)
        rows = Rows(self.trie, lengths, self.n_prefix, self.decoder.device)
        texts: list[list[int]] = [[] for _ in range(rows.n)]
        wanted = [self.prompts[batch[i]] for i in rows.prompt.tolist()]
        places = zip(rows.path.tolist(), rows.prompt.tolist(), strict=True)
        names = [(path, batch[place]) for path, place in places]
        live = list(range(rows.n))  # the texts that are not done
        held = list(range(rows.n))  # the text of each row, those that are done included
        while True:
            asked = Later([tokens], lambda found: found[0].tolist())
            together = self.trie.together
            after = self._step(rows, tokens, self._asking(wanted, held)) if together else None
            values = dict(zip(held, asked.value(), strict=True))
            for text in live:
                texts[text].append(values[text])
            numbers = [text for text in live if texts[text][-1] >= 0]
            stopped = self.stops.found([(wanted[text], texts[text]) for text in numbers])
            stop = dict.fromkeys(live, True) | dict(zip(numbers, stopped, strict=True))
            going = []
            for text in live:
                new = texts[text]
                if stop[text] or new[-1] in self.ends or len(new) == wanted[text].max_new_tokens:
                    path, prompt = names[text]
                    self.done.add(names[text])
                    for member in self.trie.paths[path]:
                        self.written(self.members[member], prompt, new)
                else:
                    going.append(text)
            live = going
            begun = [text for text in live if names[text] not in self.done]  # some are done again
            members = [len(self.trie.paths[names[text][0]]) for text in begun]
            shares = [len(texts[text]) / wanted[text].max_new_tokens for text in begun]
            self.begun(sum(map(mul, members, shares)))
            if not live:
                return
            # A text that is as long as it may be goes nowhere: its model may know no such position.
            full = any(wanted[text].max_new_tokens <= len(texts[live[0]]) for text in held)
            if full or (len(held) - len(live)) * _CLOSE_UP >= len(held):
                left = set(live)
                kept = [row for row, text in enumerate(held) if text in left]
                rows.keep(kept)
                which, held = onto(torch.tensor(kept), tokens.device), live
                tokens = tokens[which]
                after = None if after is None else after[which]
            if after is None:
                after = self._step(rows, tokens, self._asking(wanted, held))
            tokens = after

    def _asking(self, wanted: Sequence[Prompt], held: Sequence[int]) -> list[Prompt]:
        """The prompts of some texts, if any token is drawn."""
        return [wanted[text] for text in held] if self.draws else []

    def _step(self, rows: Rows, tokens: Tensor, asking: Sequence[Prompt]) -> Tensor:
        """Give every row its token, [N]; the next ones, [N], as their prompts ask for them."""
        out: list[Tensor] = [tokens] * len(self.trie.paths)
        self._forward(tokens[:, None].clamp_min(0), rows.positions(), rows, out.__setitem__)
        device = self.decoder.device  # paths may end on several
        counts = zip(out, rows.counts(), strict=True)
        ended = [states[:, -1].to(device) for states, n in counts if n]
        rows.next()
        return self._next(torch.cat(ended), asking, rows.index)

    def _next(self, states: Tensor, asking: Sequence[Prompt], number: int) -> Tensor:
        """The new tokens of a number after states [N, D], as their prompts ask for them, [N]."""
        if not self.draws:
            return likeliest(self.decoder, states)
        heat = torch.tensor([prompt.temperature for prompt in asking])
        places = torch.tensor([prompt.place(number) for prompt in asking], dtype=torch.float64)
        return drawn(self.decoder, states, heat, places)

    def _read(self, batch: list[int], lengths: list[int]) -> Tensor:
        """Run the prompts; their first new tokens, path after path, [paths * R]."""
        longest, device = max(lengths), self.decoder.device
        first = torch.empty(len(self.trie.paths), len(batch), dtype=torch.int64, device=device)
        most = max(1, self.limits.batch_tokens // self.trie.width)
        start = 0
        while start < len(batch):
            width = max(lengths[start:])
            n = min(len(batch) - start, max(1, most // width))
            width = max(lengths[start : start + n])
            part = torch.zeros(n, width, dtype=torch.int64)
            for row, index in enumerate(batch[start : start + n]):
                rest = self.prompts[index].tokens[self.n_prefix :]
                part[row, : len(rest)] = torch.tensor(rest)
            last = torch.tensor(lengths[start : start + n]) - 1
            where = slice(start, start + n)

            def at_end(
                path: int, hidden: Tensor, last: Tensor = last, where: slice = where
            ) -> None:
                rows = torch.arange(len(last), device=hidden.device)
                states = hidden[rows, onto(last, hidden.device)]
                asking = [self.prompts[index] for index in batch[where]]
                first[path, where] = self._next(states, asking, 0)

            phase = Prompts(start, (len(batch), longest), self._mask(width))
            self._forward(part, self.n_prefix, phase, at_end)
            start += n
        return first.flatten()

    def _mask(self, width: int) -> Tensor | None:
        """What prompts see after the common prefix, [1, 1, t, P + t]; None if there is none."""
        if not self.n_prefix:
            return None
        dtype = self.decoder.dtype
        unseen = torch.ones(width, width, dtype=torch.bool).triu(1)
        own = torch.zeros(width, width, dtype=dtype).masked_fill(unseen, torch.finfo(dtype).min)
        mask = torch.cat([torch.zeros(width, self.n_prefix, dtype=dtype), own], dim=1)
        return onto(mask[None, None], self.decoder.device)

    def _forward(
        self,
        tokens: Tensor,
        positions: Tensor | int,
        phase: Phase,
        at_end: Callable[[int, Tensor], None],
    ) -> None:
        """Run tokens [B, T] at some positions [B, T], or counted from a number, along all paths."""
        n, length = tokens.shape
        if isinstance(positions, int):
            positions = (torch.arange(length) + positions).expand(n, length)
        # Attention here brings its own mask; this one only keeps the model from making one.
        one = torch.zeros((), dtype=self.decoder.dtype, device=self.decoder.device)
        mask = one.expand(n, 1, length, length)
        entry = self.decoder.enter(tokens, mask, positions)
        with self.trie.attention():
            self.trie.forward(entry, phase, at_end)


@dataclass(frozen=True)
class _Batch:
    """Prompts that are continued together, by their numbers."""

    run: _Run
    prompts: list[int]

    @property
    def n_tokens(self) -> int:
        """Tokens whose keys and values may be kept."""
        run = self.run
        wanted = [run.prompts[index] for index in self.prompts]
        new = len(run.trie.paths) * sum(prompt.max_new_tokens for prompt in wanted)
        return new + sum(len(prompt.tokens) - run.n_prefix for prompt in wanted)

    def split(self) -> list[_Batch]:
        """The batch in two, or nothing for one prompt."""
        middle = math.ceil(len(self.prompts) / 2)
        parts = (self.prompts[:middle], self.prompts[middle:])
        return [_Batch(self.run, part) for part in parts] if parts[1] else []

    def describe(self) -> str:
        """The prompt that stands alone."""
        n_tokens = len(self.run.prompts[self.prompts[0]].tokens)
        return f"one prompt of {n_tokens} tokens on {len(self.run.trie.paths)} paths"
