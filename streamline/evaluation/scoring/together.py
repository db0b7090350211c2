"""Several sets of questions and several texts in one run of the engine.

A model whose layers are read one at a time reads each weight once for all of them; one in memory
gives each set as soon as it is done, so that it can be stored.

Example::

    for number, found in answer_all(paths, [piqa, arc], [windows]):
        store(number, found)            # two lists of answers, then one of perplexities
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from streamline.engine.forward import Job, OnProgress, run
from streamline.engine.memory import BatchLimit
from streamline.engine.paths import Path
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.scoring.perplexity import Perplexity, Windows, window_jobs
from streamline.evaluation.scoring.score import Likelihoods, RequestBatch, question_jobs
from streamline.evaluation.scoring.token_budget import TokenBudget

__all__ = ["answer_all"]


def answer_all(
    paths: Sequence[Path],
    questions: Sequence[Sequence[Request]],
    texts: Sequence[Tensor] = (),
    *,
    batch_tokens: int | TokenBudget | None = None,
    compiled: bool = False,
    progress: OnProgress | None = None,
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

    Yields:
        ``(number, results)`` for each set of questions and then each text, counted through: one
        :class:`Likelihoods`, or one :class:`Perplexity`, for each path.
    """
    budget = batch_tokens if isinstance(batch_tokens, TokenBudget) else TokenBudget(batch_tokens)
    sets: list[_Set] = [_Questions(requests, len(paths)) for requests in questions]
    sets += [_Text(windows, len(paths)) for windows in texts]
    jobs = [job for own in sets for job in own.made(paths, budget, compiled)]
    limit = BatchLimit()
    found = run(paths, jobs, limit=limit, compiled=compiled, progress=progress)
    for number, own in enumerate(sets):  # results come in the order of the jobs
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
        was_split: Whether memory ran out with one of its jobs.
    """

    width: int
    missing: int
    was_split = False
    _jobs: Sequence[Job] = ()

    @property
    def complete(self) -> bool:
        return self.missing == 0

    def made(self, paths: Sequence[Path], budget: TokenBudget, compiled: bool) -> Sequence[Job]:
        """Its jobs."""
        self._jobs = self.jobs(paths, budget, compiled)
        return self._jobs

    def put(self, part: Job, found: list[Any]) -> None:
        """The results of a job, or of a part of one."""
        self.was_split |= not any(part is job for job in self._jobs)
        self.keep(part, found)

    @abstractmethod
    def jobs(self, paths: Sequence[Path], budget: TokenBudget, compiled: bool) -> Sequence[Job]:
        """Jobs that suit the device."""

    @abstractmethod
    def keep(self, part: Any, found: list[Any]) -> None:
        """Keep results of some of its jobs."""

    @abstractmethod
    def results(self) -> list[Any]:
        """One result for each path."""


class _Questions(_Set):
    """One set of requests and its answers."""

    def __init__(self, requests: Sequence[Request], n_paths: int) -> None:
        self.requests = requests
        self.answers = [Likelihoods.empty(len(requests)) for _ in range(n_paths)]
        self.missing = len(requests)
        self.width = max((len(r.context) + len(r.continuation) - 1 for r in requests), default=1)

    def jobs(self, paths: Sequence[Path], budget: TokenBudget, compiled: bool) -> Sequence[Job]:
        return question_jobs(paths, self.requests, budget, compiled=compiled)

    def keep(self, part: RequestBatch, found: list[Likelihoods]) -> None:
        for whole, answers in zip(self.answers, found, strict=True):
            whole.put(part.batch.requests, answers)
        self.missing -= len(part.batch.requests)

    def results(self) -> list[Any]:
        return self.answers


class _Text(_Set):
    """One text and the sums over its windows."""

    def __init__(self, windows: Tensor, n_paths: int) -> None:
        self.windows = windows
        self.nlls = np.zeros(n_paths)
        self.missing, self.width = windows.shape

    def jobs(self, paths: Sequence[Path], budget: TokenBudget, compiled: bool) -> Sequence[Job]:
        return window_jobs(paths, self.windows, budget, compiled=compiled)

    def keep(self, part: Windows, found: list[float]) -> None:
        self.nlls += found
        self.missing -= len(part.tokens)

    def results(self) -> list[Any]:
        n, length = self.windows.shape
        return [Perplexity(float(nll), n * (length - 1)) for nll in self.nlls]
