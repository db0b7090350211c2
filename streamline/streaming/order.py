"""The order of a model whose layers come one at a time: layers outside, batches inside.

A model in memory runs each batch through all layers; here each layer runs all batches, because it
comes only once. A node of the trie runs while the layer whose weights it uses is there; modules
that are in memory anyway (replacements) run right after the node before them. States at the ends of
paths are kept, cut to what their answers need, until the head comes. Several processes share the
batches, and each reads all layers.

:mod:`streamline.engine.forward` calls :func:`layer_by_layer` for decoders that name it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from streamline.distributed.team import Shard, interleaved, team
from streamline.distributed.work import scatter
from streamline.engine.decoder import Entry, submodule
from streamline.engine.forward import Job, OnProgress
from streamline.engine.kernels import FastLinears
from streamline.engine.paths import Branch, PathTrie
from streamline.engine.transfer import onto, read
from streamline.errors import PlanError
from streamline.streaming.states import StateStore

__all__ = ["EMBEDDING", "HEAD", "layer_by_layer"]

EMBEDDING, HEAD = "embedding", "head"
"""The groups of weights beside the layers, which are named by their index."""


class Streamed(Protocol):
    """What the order needs of a decoder beside :class:`streamline.engine.decoder.Decoder`."""

    model: Any
    device: torch.device
    enter: Callable[..., Entry]
    again: Callable[..., Entry]
    run: Callable[..., Tensor]
    layers_of: Callable[[nn.Module], set[int]]
    states: Callable[[], StateStore]
    note: Callable[[StateStore], None]

    def each(self, groups: Sequence[Hashable]) -> Generator[Any, None, None]:
        """Bring groups of weights into memory, one after the other."""


def layer_by_layer(
    trie: PathTrie, jobs: Sequence[Job], progress: OnProgress | None = None
) -> Iterator[tuple[Any, Any]]:
    """Run every path on every batch, each weight of the model read once by each process.

    Args:
        trie: Paths that enter one streamed decoder.
        jobs: The batches.
        progress: Called with steps done and in all: the embeddings, each layer, the head.

    Yields:
        Each job with what its ``combine`` gave, when the last layer is done.

    Raises:
        PlanError: If a path needs a layer again after a later one, or two layers at once.
        AssetError: If a weight cannot be read.
    """
    if team().size == 1:
        yield from _one_by_one(trie, jobs, progress)
        return

    def part(shard: Shard, *, progress: OnProgress | None) -> list[Any]:
        return [result for _, result in _one_by_one(trie, shard.of(jobs), progress)]

    yield from zip(jobs, interleaved(scatter(part, progress=progress)), strict=True)


def _one_by_one(
    trie: PathTrie, jobs: Sequence[Job], progress: OnProgress | None
) -> Iterator[tuple[Any, Any]]:
    """The layers one by one, for this process's batches; none are read where it has none."""
    decoder: Any = trie.decoder
    turns = _Turns(trie, decoder)
    if not jobs:
        return
    groups = [EMBEDDING, *turns.layers, *([HEAD] if any(j.needs_head for j in jobs) else [])]
    results: dict[int, Any] = {}
    with decoder.states() as store:
        with closing(decoder.each(groups)) as arrivals:
            for done, group in enumerate(arrivals):
                if group == HEAD:
                    head = submodule(decoder.model, decoder.family.head)
                    with _at_work(decoder, [head], jobs[0]):
                        for number, job in enumerate(jobs):
                            if job.needs_head:
                                results[number] = _answers(turns, store, number, job)
                else:
                    turn = -1 if group == EMBEDDING else group
                    with _at_work(decoder, turns.modules[turn], jobs[0]):
                        for number, job in enumerate(jobs):
                            _advance(turns, store, number, job, turn)
                if progress is not None:
                    progress(done + 1, len(groups))
        decoder.note(store)
        for number, job in enumerate(jobs):
            if number not in results:
                with job.without_gradients():
                    results[number] = _answers(turns, store, number, job)
            yield job, read(results.pop(number))


@contextmanager
def _at_work(decoder: Any, modules: Sequence[nn.Module], job: Job) -> Iterator[None]:
    """Kernels that suit some modules, as in memory: not where the results are for training."""
    kernels = FastLinears([] if job.for_training else modules, decoder.model)
    with kernels.active(), job.without_gradients():
        yield


class _Turns:
    """When each node of a trie runs: the turn of a layer, or -1 for that of the embeddings."""

    def __init__(self, trie: PathTrie, decoder: Streamed) -> None:
        self.root = trie.root
        self.n_paths = len(trie.paths)
        self.decoder = decoder
        self.of: dict[int, int] = {id(trie.root): -1}
        self.last = [trie.root] if trie.root.ends else []
        self.waiting: dict[int, list[Branch]] = {}
        self.modules: dict[int, list[nn.Module]] = {-1: []}
        self.joint: set[tuple[int, int]] = set()  # job and branch whose end is a state that goes on
        todo = [trie.root]
        while todo:
            branch = todo.pop()
            turn = self.of[id(branch)]
            later = set()
            for child in branch.children.values():
                assert child.node is not None
                mine = self.of[id(child)] = self._turn(child, turn)
                self.modules.setdefault(mine, []).append(child.node.module)
                if mine > turn:
                    later.add(mine)
                if child.ends:
                    self.last.append(child)
                todo.append(child)
            for mine in later:
                self.waiting.setdefault(mine, []).append(branch)
        self.layers = sorted(turn for turn in self.modules if turn >= 0)

    def children(self, branch: Branch, turn: int) -> list[Branch]:
        """The nodes after one that run in a turn."""
        return [child for child in branch.children.values() if self.of[id(child)] == turn]

    def uses(self, branch: Branch) -> int:
        """In how many later turns a node's output is needed."""
        turns = {self.of[id(child)] for child in branch.children.values()}
        return len(turns - {self.of[id(branch)]})

    def _turn(self, branch: Branch, before: int) -> int:
        assert branch.node is not None
        needs = self.decoder.layers_of(branch.node.module)
        if not needs:
            return before
        if len(needs) > 1:
            raise PlanError(
                f"the module at layer {branch.node.layer} holds weights of layers {sorted(needs)}, "
                "and a streamed model has one layer in memory at a time"
            )
        (turn,) = needs
        if turn < before:
            raise PlanError(
                f"a path runs layer {turn} after layer {before}; a streamed model's layers come "
                "once, in their order"
            )
        return turn


def _advance(turns: _Turns, store: StateStore, number: int, job: Job, turn: int) -> None:
    """Run on one batch all nodes whose turn it is."""
    decoder: Any = turns.decoder
    inputs = job.inputs(decoder)
    entry = decoder.enter(*inputs) if turn < 0 else decoder.again(*inputs)
    with job.around(decoder, turns.modules[turn]):
        if turn < 0:
            _settle(turns, store, number, job, turns.root, entry.hidden, entry)
        for parent in turns.waiting.get(turn, []):
            hidden = store.take((number, id(parent)))
            for branch in turns.children(parent, turn):
                _run(turns, store, number, job, branch, hidden, entry)


def _run(
    turns: _Turns,
    store: StateStore,
    number: int,
    job: Job,
    branch: Branch,
    hidden: Tensor,
    entry: Entry,
) -> None:
    assert branch.node is not None
    output = turns.decoder.run(branch.node.module, hidden, entry, branch.node.layer)
    _settle(turns, store, number, job, branch, output, entry)


def _settle(
    turns: _Turns,
    store: StateStore,
    number: int,
    job: Job,
    branch: Branch,
    hidden: Tensor,
    entry: Entry,
) -> None:
    """Keep a node's output for later turns and run what follows in the same one."""
    uses = turns.uses(branch)
    if branch.ends:
        kept = job.keep(hidden)
        if kept is hidden and uses:  # one state serves both
            turns.joint.add((number, id(branch)))
            uses += 1
        else:
            store.put((number, id(branch), HEAD), kept)
    if uses:
        store.put((number, id(branch)), hidden, uses)
    for child in turns.children(branch, turns.of[id(branch)]):
        _run(turns, store, number, job, child, hidden, entry)


def _answers(turns: _Turns, store: StateStore, number: int, job: Job) -> Any:
    """One job's result, which may come later, from what was kept at the ends of the paths."""
    decoder: Any = turns.decoder
    answers: list[Any] = [None] * turns.n_paths
    for branch in turns.last:
        key = (number, id(branch))
        kept = onto(store.take(key if key in turns.joint else (*key, HEAD)), decoder.device)
        for index in branch.ends:
            answers[index] = job.answer(decoder, kept)
    return job.combine(answers)
