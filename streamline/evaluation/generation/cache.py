"""Keys and values of many paths that generate side by side, each kept once.

The cache follows the trie of the paths. A step is a module at its place in the trie; it keeps, for
every attention inside it, keys and values in three pieces: the prefix that all prompts have in
common (few-shot examples), once; each prompt's own rest, once for all paths below the step; and
what each row, a prompt on a path, has generated. Generating attends to the three in one softmax
without ever joining them (:mod:`streamline.evaluation.generation.rows`), so the common prefix is
read once for all rows.

Paths that run the same modules count as one. They are numbered depth first and rows lie path after
path, so a step's rows are a range. No module needs to know of the cache: it is filled and read by
the attention function, so a layer that is used twice is kept twice in the cache.

Example::

    trie = CacheTrie(PathTrie(paths))
    with trie.attention():
        trie.forward(decoder.enter(prefix), Prefix(), at_end=ignore)
        trie.forward(decoder.enter(prompts, mask, positions), Prompts(...), at_end=first_tokens)

Notation: R prompts, N rows, P tokens of the prefix, T of the longest prompt after it, H heads,
G heads of keys and values, d width of a head, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from streamline.engine.decoder import Decoder, Entry
from streamline.engine.paths import Branch, Node, PathTrie
from streamline.evaluation.scoring.tree_attention import own_attention, replaced_attention

__all__ = ["Attention", "CacheTrie", "Phase", "Slot", "Step"]

_NAME = "streamline_generation"
_FIRST = 16  # generated tokens that a fresh buffer holds


@dataclass
class Slot:
    """Keys and values of one attention: pairs of tensors, None before they are there.

    Attributes:
        prefix: Of the common prefix, [G, P, d].
        prompts: Of the prompts after it, [R, G, T, d].
        rows: Of the generated tokens, [N, G, size, d].
    """

    prefix: tuple[Tensor, Tensor] | None = None
    prompts: tuple[Tensor, Tensor] | None = None
    rows: tuple[Tensor, Tensor] | None = None

    def put_prompts(self, key: Tensor, value: Tensor, start: int, shape: tuple[int, int]) -> None:
        """Keep some prompts, [r, G, t, d], from number ``start`` on, of R with T tokens."""
        n, heads, length, width = key.shape
        if (n, length) == shape:
            self.prompts = key.contiguous(), value.contiguous()
            return
        if self.prompts is None:
            size = (shape[0], heads, shape[1], width)
            self.prompts = key.new_zeros(size), value.new_zeros(size)
        for kept, new in zip(self.prompts, (key, value), strict=True):
            kept[start : start + n, :, :length] = new

    def put_token(self, key: Tensor, value: Tensor, index: int) -> None:
        """Keep the token that every row generated as number ``index``, [N, G, 1, d]."""
        if self.rows is None or index >= self.rows[0].shape[2]:
            n, heads, _, width = key.shape
            size = max(_FIRST, 2 * index)
            grown = key.new_empty(n, heads, size, width), value.new_empty(n, heads, size, width)
            for new, old in zip(grown, self.rows or (), strict=False):
                new[:, :, :index] = old[:, :, :index]
            self.rows = grown
        for kept, new in zip(self.rows, (key, value), strict=True):
            kept[:, :, index] = new[:, :, 0]


@dataclass
class Step:
    """A module at its place in the trie.

    Attributes:
        node: The module; None at the root.
        paths: The range of paths that run it, first and end.
        end: The path that ends after it, if one does.
        children: What follows it.
        slots: What its attentions keep, in the order in which they run.
    """

    node: Node | None
    paths: tuple[int, int] = (0, 0)
    end: int | None = None
    children: list[Step] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)


@dataclass(frozen=True)
class Attention:
    """How a module computes its attention.

    Attributes:
        own: The model's own function: query [B, H, n, d], key and value [B, G, m, d] and an
            additive mask, or None for causal, to [B, n, H, d].
        scale: What the products of queries and keys are multiplied by.
        softcap: What they are kept below, or None.
    """

    own: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    scale: float
    softcap: float | None


class Phase(Protocol):
    """What a batch is: the prefix, the prompts, or one token of every row."""

    @property
    def offsets(self) -> Sequence[int] | None:
        """Where each path's rows begin, and their number; None if all paths run all rows."""

    def attend(
        self,
        step: Step,
        slot: Slot,
        states: tuple[Tensor, Tensor, Tensor],
        attention: Attention,
    ) -> Tensor:
        """Keep keys and values and attend: states [B, H or G, n, d] to [B, n, H, d]."""


class CacheTrie:
    """The steps of paths that enter one model, and the forward pass along them.

    Args:
        trie: The paths of one decoder.

    Attributes:
        paths: For each distinct path the indices of the given paths that are equal to it.
        steps: All steps, depth first, without the root.
    """

    def __init__(self, trie: PathTrie) -> None:
        self.decoder: Decoder = trie.decoder
        self.paths: list[list[int]] = []
        self.steps: list[Step] = []
        self._root = self._step(trie.root)

    def modules(self) -> list[nn.Module]:
        """The modules of all steps, each once."""
        nodes = (step.node for step in self.steps)
        return list({id(n.module): n.module for n in nodes if n is not None}.values())

    def forget(self, *, prefix: bool = False) -> None:
        """Drop what is kept of prompts and rows, and of the common prefix too if wanted."""
        for slot in (slot for step in self.steps for slot in step.slots):
            slot.prompts = slot.rows = None
            slot.prefix = None if prefix else slot.prefix

    @contextmanager
    def attention(self) -> Iterator[None]:
        """Within it the modules' attention fills and reads the cache."""
        with replaced_attention(self.modules(), _NAME, _forward) as original:
            token = _running.set(_Running(original))
            try:
                yield
            finally:
                _running.reset(token)

    def forward(self, entry: Entry, phase: Phase, at_end: Callable[[int, Tensor], None]) -> None:
        """Run a batch along every path.

        Args:
            entry: The batch, from the decoder's ``enter``.
            phase: What it is.
            at_end: Called once per path, in their order, with its number and its hidden states
                after the last module, which may be shared between paths.
        """
        offsets = phase.offsets
        todo = [(self._root, entry.hidden, 0)]
        while todo:
            step, hidden, origin = todo.pop()
            rows = None
            if offsets is not None:
                rows = slice(offsets[step.paths[0]], offsets[step.paths[1]])
                if rows.start == rows.stop:
                    continue
                hidden = hidden[rows.start - origin : rows.stop - origin]
                origin = rows.start
            if step.node is not None:
                hidden = self._run(step, hidden, entry, phase, rows)
            if step.end is not None and offsets is None:
                at_end(step.end, hidden)
            elif step.end is not None and offsets is not None:
                at_end(step.end, hidden[: offsets[step.end + 1] - origin])
            todo += [(child, hidden, origin) for child in reversed(step.children)]

    def _run(
        self, step: Step, hidden: Tensor, entry: Entry, phase: Phase, rows: slice | None
    ) -> Tensor:
        """One module on a step's rows of the batch, or on all of it."""
        node, running = step.node, _running.get()
        assert node is not None and running is not None
        call = entry.calls[node.layer]
        n = len(entry.hidden)
        if rows is not None and rows.stop - rows.start < n:
            call = _rows(call, rows, n)
        running.step, running.phase, running.calls = step, phase, 0
        return self.decoder.run(node.module, hidden, Entry(hidden, [call]), 0)

    def _step(self, branch: Branch) -> Step:
        """A branch of the trie with its paths numbered and its steps listed, depth first."""
        start = len(self.paths)
        step = Step(branch.node)
        if branch.node is not None:
            self.steps.append(step)
        if branch.ends:
            step.end = start
            self.paths.append(branch.ends)
        step.children = [self._step(child) for child in branch.children.values()]
        step.paths = start, len(self.paths)
        return step


@dataclass
class _Running:
    """What the attention function needs to know of the pass it is called in."""

    original: dict[int, str]
    step: Step | None = None
    phase: Phase | None = None
    calls: int = 0


_running: ContextVar[_Running | None] = ContextVar("streamline_generation", default=None)


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one module: query [B, H, n, d], key and value [B, G, n, d] -> [B, n, H, d]."""
    running = _running.get()
    assert running is not None and running.step is not None and running.phase is not None
    slots = running.step.slots
    if running.calls == len(slots):
        slots.append(Slot())
    slot = slots[running.calls]
    running.calls += 1
    scale = kwargs.get("scaling")
    attention = Attention(
        own=own_attention(module, running.original[id(module.config)], kwargs),
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        softcap=kwargs.get("softcap"),
    )
    return running.phase.attend(running.step, slot, (query, key, value), attention), None


def _rows(value: Any, rows: slice, n: int) -> Any:
    """Some rows of every tensor with n of them, in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and len(value) == n else value
    if isinstance(value, (tuple, list)):
        return type(value)(_rows(item, rows, n) for item in value)
    if isinstance(value, dict):
        return {key: _rows(item, rows, n) for key, item in value.items()}
    return value
