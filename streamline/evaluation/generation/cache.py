"""Keys and values of many paths that generate side by side, each kept once.

The cache follows the trie of the paths. A step is a module at one or more of its places in the
trie; it keeps, for every attention inside it, keys and values in three pieces: the prefix that all
prompts have in common (few-shot examples), once for each place; each prompt's own rest, once for
all paths that run a place; and what each row, a prompt on a path, has generated
(:mod:`streamline.evaluation.generation.slots`). Generating attends to the three in one softmax
without ever joining them (:mod:`streamline.evaluation.generation.rows`), so the common prefix is
read once for all rows.

On a CPU each place is a step, one branch after the other; on an accelerator the places of one
module that paths come to at the same time are one step, so that the number of kernel launches is
bounded by the number of layers, not by that of paths. The numbers are the same up to rounding.

Paths that run the same modules count as one. They are numbered depth first and rows lie path after
path, so the rows of a place are a range. No module needs to know of the cache: it is filled and
read by the attention function, so a layer that is used twice is kept twice in the cache.

Example::

    trie = CacheTrie(PathTrie(paths))
    with trie.attention():
        trie.forward(decoder.enter(prefix), Prefix(), at_end=ignore)
        trie.forward(decoder.enter(prompts, mask, positions), Prompts(...), at_end=first_tokens)

Notation: S places of a step, R prompts, N rows, P tokens of the prefix, T of the longest prompt
after it, H heads, G heads of keys and values, d width of a head, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder, Entry
from streamline.engine.paths import Branch, Node, PathTrie
from streamline.engine.transfer import repeated
from streamline.evaluation.generation.slots import Range, Slot
from streamline.evaluation.scoring.tree_attention import own_attention, replaced_attention

__all__ = ["Attention", "CacheTrie", "Phase", "Place", "Step"]

_NAME = "streamline_generation"


@dataclass
class Place:
    """A branch of the trie.

    Attributes:
        node: The module that runs there; None at the root.
        paths: The range of paths that run it.
        end: The path that ends after it, if one does.
        children: What follows it.
    """

    node: Node | None
    paths: Range = (0, 0)
    end: int | None = None
    children: list[Place] = field(default_factory=list)


@dataclass
class Step:
    """A module at one or more of its places in the trie, which are run together.

    Attributes:
        node: The module.
        places: Where, in the order of their paths.
        slots: What its attentions keep, in the order in which they run.
    """

    node: Node
    places: list[Place]
    slots: list[Slot] = field(default_factory=list)

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The range of paths of each place."""
        return tuple(place.paths for place in self.places)


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
        together: Whether the places of one module are run together; None for what suits the device.

    Attributes:
        paths: For each distinct path the indices of the given paths that are equal to it.
        steps: All steps, in the order in which they run.
        together: Whether the places of one module are run together.
    """

    def __init__(self, trie: PathTrie, together: bool | None = None) -> None:
        self.decoder: Decoder = trie.decoder
        self.together = self.decoder.device.type != "cpu" if together is None else together
        self.paths: list[list[int]] = []
        self._root = self._place(trie.root)
        order = _levels if self.together else _branches
        self.steps = [
            Step(places[0].node, places) for places in order(self._root) if places[0].node
        ]

    @property
    def width(self) -> int:
        """The most places of a step."""
        return max((len(step.places) for step in self.steps), default=1)

    def modules(self) -> list[nn.Module]:
        """The modules of all steps, each once."""
        return list({id(step.node.module): step.node.module for step in self.steps}.values())

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
            at_end: Called once per path that has rows, with its number and its hidden states after
                the last module, which may be shared between paths.
        """
        offsets = phase.offsets
        waiting: dict[int, Tensor] = {}
        parts: dict[tuple[int, tuple[Range, ...]], Tensor] = {}

        def settle(place: Place, hidden: Tensor) -> None:
            if place.end is not None and len(hidden):
                stop = None if offsets is None else offsets[place.end + 1] - offsets[place.end]
                at_end(place.end, hidden[:stop])
            for child in place.children:
                part = hidden
                if offsets is not None:
                    first, stop = (offsets[path] - offsets[place.paths[0]] for path in child.paths)
                    part = hidden[first:stop]
                waiting[id(child)] = part

        settle(self._root, entry.hidden)
        for step in self.steps:
            states = [waiting.pop(id(place)) for place in step.places]
            sizes = [len(hidden) for hidden in states]
            if sum(sizes):
                rows = None
                if offsets is not None:
                    rows = tuple((offsets[first], offsets[stop]) for first, stop in step.ranges)
                output = self._run(step, states, entry, phase, rows, parts)
                states = list(torch.split(output, sizes)) if len(states) > 1 else [output]
            for place, hidden in zip(step.places, states, strict=True):
                settle(place, hidden)

    def _run(
        self,
        step: Step,
        states: Sequence[Tensor],
        entry: Entry,
        phase: Phase,
        rows: tuple[Range, ...] | None,
        parts: dict[tuple[int, tuple[Range, ...]], Tensor],
    ) -> Tensor:
        """One module on the rows of a step's places, or on all of the batch for each of them."""
        running = _running.get()
        assert running is not None
        call, n = entry.calls[step.node.layer], len(entry.hidden)
        hidden = states[0]
        if len(states) > 1:
            hidden = torch.cat([state.to(hidden.device) for state in states])
        if rows is not None:
            call = _rows(call, rows, n, parts)
        elif len(states) > 1:
            call = repeated(call, len(states), n)
        running.step, running.phase, running.calls = step, phase, 0
        return self.decoder.run(step.node.module, hidden, Entry(hidden, [call]), 0)

    def _place(self, branch: Branch) -> Place:
        """A branch of the trie with its paths numbered, depth first."""
        start = len(self.paths)
        place = Place(branch.node)
        if branch.ends:
            place.end = start
            self.paths.append(branch.ends)
        place.children = [self._place(child) for child in branch.children.values()]
        place.paths = start, len(self.paths)
        return place


def _branches(root: Place) -> Iterator[list[Place]]:
    """Each place by itself, one branch to its end before the next."""
    todo = [root]
    while todo:
        place = todo.pop()
        todo += reversed(place.children)
        yield [place]


def _levels(root: Place) -> Iterator[list[Place]]:
    """The places of one module to which paths have come, the shallowest layer first."""
    waiting: dict[tuple[int, int], list[Place]] = {}
    places = [root]
    while places:
        yield places
        for child in (child for place in places for child in place.children):
            assert child.node is not None
            waiting.setdefault(child.node.key, []).append(child)
        key = min(waiting, key=lambda key: key[1], default=None)
        places = [] if key is None else sorted(waiting.pop(key), key=lambda place: place.paths)


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


def _rows(
    value: Any, rows: tuple[Range, ...], n: int, made: dict[tuple[int, tuple[Range, ...]], Tensor]
) -> Any:
    """Some ranges of rows of every tensor with n of them, in nested tuples, lists and dicts.

    Layers are called with the same tensors, so what was made of one is kept.
    """
    if isinstance(value, Tensor):
        if not value.dim() or len(value) != n or rows == ((0, n),):
            return value
        key = id(value), rows
        if key not in made:
            some = [value[first:stop] for first, stop in rows]
            made[key] = some[0] if len(some) == 1 else torch.cat(some)
        return made[key]
    if isinstance(value, (tuple, list)):
        return type(value)(_rows(item, rows, n, made) for item in value)
    if isinstance(value, dict):
        return {key: _rows(item, rows, n, made) for key, item in value.items()}
    return value
