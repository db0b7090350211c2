"""Several sets of questions and several texts in one run of the engine.

A model whose layers are read one at a time reads each weight once for all of them; one in memory
gives each set as soon as it is done, so that it can be stored, and what it has of a set before that
is kept every few seconds (:mod:`streamline.evaluation.scoring.unfinished`). A set is packed into
batches when the last batch of the one before has begun: an accelerator does not wait for that.

Example::

    for number, found in answer_all(paths, [piqa, arc], [windows]):
        store(number, found)            # two lists of answers, then one of perplexities
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, MutableMapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from streamline.engine.forward import Job, OnProgress, run
from streamline.engine.memory import BatchLimit
from streamline.engine.paths import Path
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.scoring.perplexity import Perplexity, Windows, window_jobs
from streamline.evaluation.scoring.score import Likelihoods, RequestBatch, question_jobs
from streamline.evaluation.scoring.token_budget import TokenBudget
from streamline.evaluation.scoring.unfinished import Results, Unfinished

__all__ = ["answer_all"]


def answer_all(
    paths: Sequence[Path],
    questions: Sequence[Sequence[Request]],
    texts: Sequence[Tensor] = (),
    *,
    batch_tokens: int | TokenBudget | None = None,
    compiled: bool = False,
    progress: OnProgress | None = None,
    unfinished: Sequence[Unfinished] | None = None,
    used: MutableMapping[int, dict[str, int]] | None = None,
) -> Iterator[tuple[int, list[Any]]]:
    """Answer all questions and score all texts for every path.

    Args:
        paths: What to evaluate.
        questions: Sets of requests.
        texts: Windows of each text, [N, T], T at least 2.
        batch_tokens: Most tokens of a batch; a window is never cut. None suits the device, a budget
            finds what does.
        compiled: Whether layers are compiled first.
        progress: Called as batches, or layers, are done.
        unfinished: Where the results of each set and text are kept before they are complete; what
            lies there is not computed again.
        used: Filled with the tokens of each set's batches (:meth:`TokenBudget.used`).

    Yields:
        ``(number, results)`` for each set of questions and then each text, counted through: one
        :class:`Likelihoods`, or one :class:`Perplexity`, for each path.
    """
    budget = batch_tokens if isinstance(batch_tokens, TokenBudget) else TokenBudget(batch_tokens)
    sets: list[_Set] = [_Questions(requests, len(paths)) for requests in questions]
    sets += [_Text(windows, len(paths)) for windows in texts]
    places: Sequence[Unfinished | None] = unfinished or [None] * len(sets)
    used = {} if used is None else used
    jobs: dict[int, Sequence[Job]] = {}

    def made(number: int) -> Sequence[Job]:
        if number not in jobs:
            jobs[number] = sets[number].made(paths, budget, compiled, places[number])
            used[number] = budget.used()
        return jobs[number]

    limit = BatchLimit()
    found = run(
        paths,
        chain.from_iterable(map(made, range(len(sets)))),
        limit=limit,
        compiled=compiled,
        progress=progress,
        n_tokens=lambda: sum(own.n_tokens for own in sets),
    )
    for number, own in enumerate(sets):  # results come in the order of the jobs
        made(number)  # nothing of it may be left to do
        while not own.complete:
            own.put(*next(found))
        yield number, own.results()
    for _ in found:  # nothing is left; what follows its last result is still to run
        raise AssertionError("a result that belongs to no set")
    for own in sets:
        if own.was_split:
            budget.shrink(paths, own.width, limit.tokens)


class _Set(ABC):
    """A set of jobs and its results.

    Attributes:
        width: Tokens of its longest sequence.
        missing: What there are no results for yet.
        n_tokens: Of its jobs; about, before these are made.
        was_split: Whether memory ran out with one of its jobs.
    """

    width: int
    missing: int
    n_tokens: int
    was_split = False
    _jobs: Sequence[Job] = ()
    _place: Unfinished | None = None

    @property
    def complete(self) -> bool:
        return self.missing == 0

    def made(
        self, paths: Sequence[Path], budget: TokenBudget, compiled: bool, place: Unfinished | None
    ) -> Sequence[Job]:
        """Its jobs that have no results in a place of earlier ones."""
        self._jobs = self.jobs(paths, budget, compiled)
        self._place = place
        found = None if place is None else place.read()
        left = self._jobs if found is None else self.resume(self._jobs, found)
        self.n_tokens = sum(job.n_tokens for job in left)
        return left

    def put(self, part: Job, found: list[Any]) -> None:
        """The results of a job, or of a part of one."""
        self.was_split |= not any(part is job for job in self._jobs)
        self.keep(part, found)
        if self._place is not None and self._place.due and not self.complete:
            self._place.write(self.so_far())

    @abstractmethod
    def jobs(self, paths: Sequence[Path], budget: TokenBudget, compiled: bool) -> Sequence[Job]:
        """Jobs that suit the device."""

    @abstractmethod
    def keep(self, part: Any, found: list[Any]) -> None:
        """Keep results of some of its jobs."""

    @abstractmethod
    def so_far(self) -> list[Results]:
        """What was kept until now, for each path."""

    @abstractmethod
    def resume(self, jobs: Sequence[Any], found: list[Results]) -> Sequence[Job]:
        """Keep what was found before; the jobs that are left."""

    @abstractmethod
    def results(self) -> list[Any]:
        """One result for each path."""


class _Questions(_Set):
    """One set of requests and its answers."""

    def __init__(self, requests: Sequence[Request], n_paths: int) -> None:
        self.requests = requests
        self.answers = [Likelihoods.empty(len(requests)) for _ in range(n_paths)]
        self.answered = np.zeros(len(requests), dtype=np.bool_)
        self.width = max((len(r.context) + len(r.continuation) - 1 for r in requests), default=1)
        contexts = {request.doc_id: len(request.context) for request in requests}
        self.n_tokens = sum(contexts.values()) + sum(len(r.continuation) for r in requests)

    @property
    def missing(self) -> int:  # type: ignore[override]
        return int((~self.answered).sum())

    def jobs(self, paths: Sequence[Path], budget: TokenBudget, compiled: bool) -> Sequence[Job]:
        return question_jobs(paths, self.requests, budget, compiled=compiled)

    def keep(self, part: RequestBatch, found: list[Likelihoods]) -> None:
        for whole, answers in zip(self.answers, found, strict=True):
            whole.put(part.batch.requests, answers)
        self.answered[part.batch.requests] = True

    def so_far(self) -> list[Results]:
        items = np.flatnonzero(self.answered)
        return [
            (items, np.stack([a.loglikelihood, a.greedy, a.n_tokens], 1)[items])
            for a in self.answers
        ]

    def resume(self, jobs: Sequence[RequestBatch], found: list[Results]) -> Sequence[Job]:
        known = set.intersection(*(set(items.tolist()) for items, _ in found))
        left = [job for job in jobs if not known.issuperset(job.batch.requests.tolist())]
        self.answered[:] = True
        for job in left:
            self.answered[job.batch.requests] = False
        for whole, (items, values) in zip(self.answers, found, strict=True):
            part = Likelihoods(values[:, 0], values[:, 1] != 0, values[:, 2].astype(np.int64))
            whole.put(items, part)
        return left

    def results(self) -> list[Any]:
        return self.answers


class _Text(_Set):
    """One text and each of its windows' sums, in their order."""

    def __init__(self, windows: Tensor, n_paths: int) -> None:
        self.windows = windows
        self.sums = [np.zeros((n_paths, 0))]  # [paths, windows] of each batch
        self.missing, self.width = windows.shape
        self.n_tokens = windows.numel()

    def jobs(self, paths: Sequence[Path], budget: TokenBudget, compiled: bool) -> Sequence[Job]:
        return window_jobs(paths, self.windows, budget, compiled=compiled)

    def keep(self, part: Windows, found: list[NDArray[np.float64]]) -> None:
        self.sums.append(np.stack(found))
        self.missing -= len(part.tokens)

    def so_far(self) -> list[Results]:
        whole = np.concatenate(self.sums, axis=1)
        return [(np.arange(whole.shape[1]), path) for path in whole]

    def resume(self, jobs: Sequence[Windows], found: list[Results]) -> Sequence[Job]:
        known = min(len(items) for items, _ in found)
        starts = np.cumsum([0, *(len(job.tokens) for job in jobs)]).tolist()
        done = max(start for start in starts if start <= known)
        self.sums.append(np.stack([values[:done] for _, values in found]))
        self.missing -= done
        return jobs[starts.index(done) :]

    def results(self) -> list[Any]:
        whole = np.concatenate(self.sums, axis=1)
        return [Perplexity.of_windows(sums, self.width) for sums in whole]
