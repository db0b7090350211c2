"""The walk of a streamed model: layers outside, batches inside.

A model in memory takes each batch through all layers (:mod:`streamline.engine.paths`); here each
layer takes all batches, because it comes only once. A node of the trie runs while the layer whose
weights it uses is there; modules that are in memory anyway (replacements) run right behind the node
before them. Paths that end are kept, cut to what their answers need, until the head comes.

Example::

    walk(PathTrie(paths), jobs)          # jobs: see streamline.evaluation.streamed
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext

import torch
from torch import Tensor, nn

from streamline.engine.decoder import Entry, submodule
from streamline.engine.kernels import FastLinears
from streamline.engine.paths import Branch, PathTrie
from streamline.errors import PlanError
from streamline.streaming.decoder import EMBEDDING, HEAD, StreamedDecoder
from streamline.streaming.states import StateStore

__all__ = ["Job", "depths", "walk"]

Inputs = tuple[Tensor, Tensor | None, Tensor | None]
"""Token ids, attention mask and positions, as a decoder is entered with."""


class Job(ABC):
    """One batch and what is to be found out of it."""

    @abstractmethod
    def inputs(self) -> Inputs:
        """What the model is entered with; made anew at each call, so that masks are not kept."""

    def around(self, modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
        """What must be in force while some modules run on the batch."""
        return nullcontext()

    @abstractmethod
    def keep(self, hidden: Tensor) -> Tensor:
        """What the answers need of the states after a path's last module, [B, T, D]."""

    @abstractmethod
    def finish(self, index: int, kept: Tensor) -> None:
        """Answer for one path, with final norm and head in memory.

        Args:
            index: The path.
            kept: What :meth:`keep` returned for it.
        """


@torch.inference_mode()
def walk(
    trie: PathTrie,
    jobs: Sequence[Job],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Run every path on every batch, each weight of the model read once.

    Args:
        trie: Paths that enter one streamed decoder.
        jobs: The batches.
        progress: Called with stages done and in all: the embeddings, each layer, the head.

    Raises:
        PlanError: If a path needs a layer again after a later one, or two layers at once.
        AssetError: If a weight cannot be read.
    """
    decoder = trie.decoder
    assert isinstance(decoder, StreamedDecoder)
    turns = _Turns(trie, decoder)
    groups = [EMBEDDING, *turns.layers, HEAD]
    with decoder.states() as store, closing(decoder.each(groups)) as arrivals:
        for done, group in enumerate(arrivals):
            if group == HEAD:
                head = submodule(decoder.model, decoder.family.head)
                with FastLinears([head], decoder.model).active():
                    for number, job in enumerate(jobs):
                        for branch in turns.last:
                            kept = store.take((number, id(branch), HEAD)).to(decoder.device)
                            for index in branch.ends:
                                job.finish(index, kept)
            else:
                turn = -1 if group == EMBEDDING else group
                modules = turns.modules[turn]
                with FastLinears(modules, decoder.model).active():
                    for number, job in enumerate(jobs):
                        _advance(turns, store, number, job, turn)
            if progress is not None:
                progress(done + 1, len(groups))
        decoder.note(store)


class _Turns:
    """When each node of a trie runs: the turn of a layer, or -1 for that of the embeddings."""

    def __init__(self, trie: PathTrie, decoder: StreamedDecoder) -> None:
        self.root = trie.root
        self.decoder = decoder
        self.of: dict[int, int] = {id(trie.root): -1}
        self.last = [trie.root] if trie.root.ends else []
        self.waiting: dict[int, list[Branch]] = {}
        self.modules: dict[int, list[nn.Module]] = {-1: []}
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
        """The nodes behind one that run in a turn."""
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
    decoder, inputs = turns.decoder, job.inputs()
    entry = decoder.enter(*inputs) if turn < 0 else decoder.again(*inputs)
    with job.around(turns.modules[turn]):
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
    if branch.ends:
        store.put((number, id(branch), HEAD), job.keep(hidden))
    uses = turns.uses(branch)
    if uses:
        store.put((number, id(branch)), hidden, uses)
    for child in turns.children(branch, turns.of[id(branch)]):
        _run(turns, store, number, job, child, hidden, entry)


@torch.no_grad()
def depths(
    decoder: StreamedDecoder, chunks: Sequence[Tensor]
) -> Iterator[Iterator[tuple[int, Tensor]]]:
    """The states at every depth of the dense path, for batch after batch.

    All batches go through each layer while it is there, and the states of all depths wait until
    the last layer is done; those beyond the decoder's budget wait on disk.

    Args:
        decoder: The model.
        chunks: Token ids, [B, T] each.

    Yields:
        For each batch an iterator of ``(depth, hidden [B, T, D])`` in rising order.
    """
    last = decoder.n_layers
    with decoder.states() as store:
        groups = [EMBEDDING, *range(last)]
        with closing(decoder.each(groups)) as arrivals:
            for group in arrivals:
                if group == EMBEDDING:
                    for number, tokens in enumerate(chunks):
                        store.put((number, 0), decoder.enter(tokens).hidden, uses=2)
                    continue
                with FastLinears([decoder.layers[group]], decoder.model).active():
                    for number, tokens in enumerate(chunks):
                        hidden = store.take((number, group))
                        entry = decoder.again(tokens)
                        hidden = decoder.run(decoder.layers[group], hidden, entry, group)
                        depth = group + 1
                        store.put((number, depth), hidden, uses=1 if depth == last else 2)
        decoder.note(store)
        for number in range(len(chunks)):
            yield (
                (depth, store.take((number, depth)).to(decoder.device)) for depth in range(last + 1)
            )
