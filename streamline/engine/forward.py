"""The engine: any paths, any jobs, each distinct computation once.

A :class:`Job` is one batch and what is to be found out of it: what the model is entered with, what
is in force while layers run on it, what is kept of the states at a path's end, and what is made of
that. Scoring, perplexity, losses, calibration and the teacher of training are jobs. How they are
run is decided here and nowhere else:

* paths of one model share their layers (:class:`streamline.engine.paths.PathTrie`);
* a model in memory runs each batch through all layers, one whose layers are read one at a time
  runs all batches through each layer (:attr:`streamline.engine.decoder.Decoder.layer_order`);
* a batch for which memory runs out is split, where the model is in memory
  (:mod:`streamline.engine.memory`);
* what an accelerator has to say of a batch is read while it works on the next one, and the one
  after that is made then (:mod:`streamline.engine.transfer`);
* several processes share the batches (:mod:`streamline.distributed`); no batch is cut for that, so
  their number changes no result.

Example::

    for job, answers in run(paths, [Windows(tokens) for tokens in torch.split(windows, 4)]):
        totals += answers                   # one for each path, in the order of the paths
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from streamline.distributed.team import Shard, interleaved, team
from streamline.distributed.work import scatter
from streamline.engine.budget import path_weights
from streamline.engine.decoder import Decoder, Entry
from streamline.engine.kernels import CompiledLayers, FastLinears, FusedNorms, fast
from streamline.engine.memory import BatchLimit
from streamline.engine.meter import counted
from streamline.engine.paths import Path, PathTrie, tries_of
from streamline.engine.transfer import Later, read
from streamline.errors import UnsupportedModelError

__all__ = ["Depths", "Inputs", "Job", "OnProgress", "TokenJob", "attempt", "run"]

Inputs = tuple[Tensor, Tensor | None, Tensor | None]
"""Token ids, attention mask and positions, as :meth:`streamline.engine.decoder.Decoder.enter`."""
OnProgress = Callable[[int, int], None]
"""Called with what is done and what there is in all: tokens, or layers where these come singly."""


class Job(ABC):
    """One batch and what is to be found out of it."""

    #: Whether :meth:`answer` uses the final norm and the head.
    needs_head: ClassVar[bool] = True
    #: Whether the results enter a computation with gradients; kernels are then left to the caller.
    for_training: bool = False

    @property
    @abstractmethod
    def n_tokens(self) -> int:
        """Tokens computed, padding included."""

    @abstractmethod
    def inputs(self, decoder: Decoder) -> Inputs:
        """What the model is entered with; made anew at each call, so that masks are not kept."""

    def enter(self, decoder: Decoder) -> Entry:
        """The batch as it stands before the first layer."""
        return decoder.enter(*self.inputs(decoder))

    def around(
        self, decoder: Decoder, modules: Iterable[nn.Module]
    ) -> AbstractContextManager[None]:
        """What must be in force while some modules run on the batch."""
        return nullcontext()

    def keep(self, hidden: Tensor) -> Tensor:
        """What the answer needs of the states after a path's last module, [B, T, D]."""
        return hidden

    def answer(self, decoder: Decoder, kept: Tensor) -> Any:
        """The result for one path, from what :meth:`keep` gave."""
        return kept

    def combine(self, answers: list[Any]) -> Any:
        """The job's result, from the answers for all paths, in their order.

        A :class:`~streamline.engine.transfer.Later` stands for one that is made on the host.
        """
        return answers

    def without_gradients(self) -> AbstractContextManager[None]:
        """No gradients; states that training uses further are no inference tensors."""
        off: AbstractContextManager[None] = (
            torch.no_grad() if self.for_training else torch.inference_mode()
        )
        return off

    def split(self) -> Sequence[Job]:
        """The same in smaller jobs, for when memory runs out; empty if it cannot be divided."""
        return ()

    def describe(self) -> str:
        """A job that cannot be divided, in words."""
        return f"a batch of {self.n_tokens} tokens"


@dataclass(frozen=True)
class TokenJob(Job):
    """Some sequences of equal length, entered as they are.

    Attributes:
        tokens: Token ids, [B, T].
    """

    tokens: Tensor

    @property
    def n_tokens(self) -> int:
        """Tokens computed."""
        return self.tokens.numel()

    def inputs(self, decoder: Decoder) -> Inputs:
        """The tokens alone."""
        return self.tokens, None, None

    def halves(self) -> Sequence[Self]:
        """The same job on half of the sequences each; nothing for one sequence."""
        parts = self.tokens.chunk(2) if len(self.tokens) > 1 else ()
        return [replace(self, tokens=part) for part in parts]


@dataclass(frozen=True)
class Depths(TokenJob):
    """Some sequences, [B, T]: the hidden states at the ends of the paths, [B, T, D] each.

    Attributes:
        entered: The batch, if it was entered already.
    """

    entered: Entry | None = None
    for_training: bool = False
    needs_head: ClassVar[bool] = False

    def enter(self, decoder: Decoder) -> Entry:
        """The batch as it was entered, or now."""
        return super().enter(decoder) if self.entered is None else self.entered


AnyJob = TypeVar("AnyJob", bound=Job)
Outcome = tuple[AnyJob, Any]
_AT_ONCE = 32  # jobs of each process between two exchanges


def run(
    paths: Sequence[Path],
    jobs: Iterable[AnyJob],
    *,
    limit: BatchLimit | None = None,
    compiled: bool = False,
    progress: OnProgress | None = None,
    n_tokens: Callable[[], int] | None = None,
) -> Iterator[Outcome[AnyJob]]:
    """Run jobs along paths.

    Args:
        paths: Any paths; those of one decoder share what they have in common.
        jobs: The batches, in the order in which results are wanted; all need the head, or none.
        limit: Keeps what was learnt of memory from one call to the next.
        compiled: Whether layers are compiled first (:class:`CompiledLayers`).
        progress: Called as jobs, or layers, are done.
        n_tokens: The tokens of all jobs, as far as is known; with it a job is asked for when the
            last one has begun, where one process has the model in memory.

    Yields:
        Each job, or each part of one that was split, with what its ``combine`` gave, as soon as it
        can be had: what is read from an accelerator, when the next job has begun.

    Raises:
        UnsupportedModelError: If paths through a streamed model are mixed with others.
        PlanError: If such a path cannot be run layer by layer.
        StreamlineError: If memory runs out with a job that cannot be split, or another process
            failed.
    """
    limit = BatchLimit() if limit is None else limit
    if n_tokens is None:
        jobs = list(jobs)
        n_tokens = partial(sum, [job.n_tokens for job in jobs])
    size = cache(partial(path_weights, paths))
    with counted() as count:

        def each() -> Iterator[AnyJob]:
            for job in jobs:
                count(job.n_tokens, partial(size, job.needs_head))
                yield job

        if any(path.decoder.layer_order is not None for path in paths):
            yield from _layer_by_layer(paths, list(each()), progress)
        elif team().size == 1:
            batches = _batch_by_batch(paths, each(), n_tokens, limit, compiled, progress)
            yield from chain.from_iterable(batches)
        else:
            yield from _shared(paths, list(each()), limit, compiled, progress)


def attempt(paths: Sequence[Path], job: Job, *, compiled: bool = False) -> Any:
    """One job at once, in this process: to try whether it fits, and its time."""
    return read(_Runner(paths, job, compiled).attempt(job))


class _Runner:
    """Paths of models in memory, with the kernels that suit them.

    Args:
        paths: Any paths.
        job: The first of what will be run.
        compiled: Whether layers are compiled.
    """

    def __init__(self, paths: Sequence[Path], job: Job, compiled: bool) -> None:
        def kernels(trie: PathTrie) -> CompiledLayers | FastLinears | FusedNorms:
            if compiled:
                return CompiledLayers(trie.modules(head=False))
            modules = [] if job.for_training else trie.modules(head=job.needs_head)
            return fast(modules, trie.decoder.model)

        self._n_paths = len(paths)
        self._tries = tries_of(paths)
        self._kernels = [kernels(trie) for trie, _ in self._tries]

    def attempt(self, job: Job) -> Any:
        """The job's result, which may come :class:`Later`; its tensors go when it fails."""
        answers: list[Any] = [None] * self._n_paths
        with job.without_gradients():
            for (trie, members), kernels in zip(self._tries, self._kernels, strict=True):
                with kernels.active():
                    self._forward(trie, members, job, answers)
            return job.combine(answers)

    def _forward(
        self, trie: PathTrie, members: Sequence[int], job: Job, answers: list[Any]
    ) -> None:
        decoder = trie.decoder

        def at_end(index: int, hidden: Tensor) -> None:
            answers[members[index]] = job.answer(decoder, job.keep(hidden))

        entry = job.enter(decoder)
        with job.around(decoder, trie.modules(head=False)):
            trie.forward(entry, at_end)


def _batch_by_batch(
    paths: Sequence[Path],
    jobs: Iterable[AnyJob],
    n_tokens: Callable[[], int],
    limit: BatchLimit,
    compiled: bool,
    progress: OnProgress | None,
) -> Iterator[list[Outcome[AnyJob]]]:
    """Each batch through all layers; the parts of each with their results."""
    runner: _Runner | None = None
    done = 0
    waiting: deque[tuple[AnyJob, list[Outcome[AnyJob]]]] = deque()
    for job in chain(jobs, [None]):
        if job is not None:
            runner = runner or _Runner(paths, job, compiled)
            waiting.append((job, limit.apply(job, runner.attempt)))
        while waiting and (job is None or len(waiting) > 1 or not _owed(waiting[0][1])):
            first, parts = waiting.popleft()
            yield [(part, read(result)) for part, result in parts]
            done += first.n_tokens
            if progress is not None:
                progress(done, n_tokens())


def _owed(parts: Sequence[Outcome[AnyJob]]) -> bool:
    """Whether the device still has to say something of a job."""
    return any(isinstance(result, Later) and result.owed for _, result in parts)


def _layer_by_layer(
    paths: Sequence[Path], jobs: Sequence[AnyJob], progress: OnProgress | None
) -> Iterator[Outcome[AnyJob]]:
    """All batches through each layer, while its weights are there."""
    decoder = next(path.decoder for path in paths if path.decoder.layer_order is not None)
    other = [path.name for path in paths if path.decoder is not decoder]
    if other:
        raise UnsupportedModelError(
            f"{other[0]!r} is a model of its own and cannot be run together with the streamed "
            f"{decoder.name}; evaluate it by itself"
        )
    assert decoder.layer_order is not None
    yield from decoder.layer_order(PathTrie(paths), jobs, progress)


def _shared(
    paths: Sequence[Path],
    jobs: list[AnyJob],
    limit: BatchLimit,
    compiled: bool,
    progress: OnProgress | None,
) -> Iterator[Outcome[AnyJob]]:
    """The jobs divided among the processes, some at a time, so that results can be stored."""
    size = team().size * _AT_ONCE
    total, before = sum(job.n_tokens for job in jobs), 0
    for start in range(0, len(jobs), size):
        some = jobs[start : start + size]
        n_tokens = sum(job.n_tokens for job in some)

        def partly(done: int, of: int, before: int = before, n_tokens: int = n_tokens) -> None:
            if progress is not None:
                progress(before + n_tokens * done // of, total)

        shards = scatter(_shard, paths, some, limit, compiled, progress=partly)
        before += n_tokens
        for _, tokens in shards:
            limit.lower(tokens)
        parts_of = interleaved([found for found, _ in shards])
        for job, parts in zip(some, parts_of, strict=True):
            for part, result in parts:
                yield job if part is None else part, result


def _shard(
    shard: Shard,
    paths: Sequence[Path],
    jobs: Sequence[AnyJob],
    limit: BatchLimit,
    compiled: bool,
    *,
    progress: OnProgress | None,
) -> tuple[list[list[tuple[AnyJob | None, Any]]], int | None]:
    """One process's jobs: the parts of each (None for the whole) with their results."""
    mine = shard.of(jobs)
    n_tokens = partial(sum, [job.n_tokens for job in mine])
    found = _batch_by_batch(paths, mine, n_tokens, limit, compiled, progress)
    named = [
        [(None if part is job else part, result) for part, result in parts]
        for job, parts in zip(mine, found, strict=True)
    ]
    return named, limit.tokens
