"""What is made ready before anything is pruned: the questions and texts of every model of a run.

A set of questions that cannot be had is found out here and ends the run, not hours later. What is
made for the first model is handed on to its run.

Example::

    with prepared(config, sources, progress):
        records = executor.run(config, progress)        # run_model calls `preparation`
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from typing import Any

from streamline.api.named import read_models
from streamline.distributed.team import leads
from streamline.distributed.work import shared
from streamline.errors import AssetError, StreamlineError, reason
from streamline.evaluation.answer_store import AnswerStore
from streamline.evaluation.evaluate import batch_facts
from streamline.evaluation.harness import max_length
from streamline.evaluation.questions import Questions, Text, heldout_text, lacking_error, prepare
from streamline.progress import Prefixed, Progress, Silent
from streamline.results.record import Record
from streamline.results.record_file import find
from streamline.run.cell import CellJob, cell_job, expand
from streamline.run.config import RunConfig
from streamline.run.folder import is_done
from streamline.run.inputs import Sources, fingerprint_of, shared_inputs
from streamline.run.measuring.texts import HELDOUT, try_texts
from streamline.run.planning.asked import counted
from streamline.run.planning.hours import expecting, left_of
from streamline.run.shards.part import WHOLE, Part
from streamline.sources.batches import TokenBatches
from streamline.sources.hub.failures import HubError
from streamline.sources.models import check_access, load_config, load_tokenizer

__all__ = [
    "Preparation",
    "cell_facts",
    "finished",
    "heard",
    "loading",
    "preparation",
    "prepared",
    "todo",
]

log = logging.getLogger(__name__)

_TRIED = 8  # questions of each set that every further model's tokenizer is tried on


@dataclass(frozen=True)
class Preparation:
    """What the cells of a model are made with and asked.

    Attributes:
        batches: The model's token batches.
        longest: Positions of the model.
        questions: The questions and texts.
    """

    batches: TokenBatches
    longest: int
    questions: Questions


_READY: ContextVar[dict[str, Preparation] | None] = ContextVar("ready", default=None)


def todo(
    config: RunConfig, name: str, sources: Sources, part: Part = WHOLE
) -> tuple[str, list[CellJob], list[CellJob]]:
    """A model's fingerprint, its cells, and those of them that are not done.

    Of a part of the run the dense cell comes first all the same, since the others are measured
    against it; it is undone only where it belongs to the part.

    Args:
        config: The run, as the model has it.
        name: The model.
        sources: What the names in its settings mean.
        part: The part of the run whose cells are meant.

    Raises:
        StreamlineError: If the model, a method or a text is not there.
    """
    fingerprint = fingerprint_of(name, config)
    inputs = shared_inputs(config, fingerprint, sources)
    cells = [cell for cell in expand(config, name) if cell.is_dense or part.has(cell)]
    jobs = [cell_job(cell, inputs) for cell in cells]
    records = part.records(config.out)
    found = [(job, find(records, *job.cell.identity)) for job in jobs if part.has(job.cell)]
    undone = [job for job, one in found if one is None or not is_done(config.out, job, one)]
    return fingerprint, jobs, undone


def finished(config: RunConfig, sources: Sources) -> bool:
    """Whether no cell of a run is left to be done, as far as that can be known.

    Args:
        config: The run.
        sources: What the names in its settings mean.
    """
    try:
        return not any(todo(config.for_model(name), name, sources)[2] for name in config.models)
    except Exception:  # the run itself will say what is wrong
        log.debug("it cannot be told what is left to be done", exc_info=True)
        return False


def loading(config: RunConfig) -> dict[str, Any]:
    """How a run loads its models: what :func:`streamline.api.variants.load_dense` takes."""
    names = ("device", "dtype", "device_map", "stream", "trust_remote_code")
    return {name: getattr(config, name) for name in names}


def heard(progress: Progress | None) -> Progress:
    """Where a process reports: of several, the first alone."""
    return progress if progress is not None and leads() else Silent()


@contextmanager
def prepared(
    config: RunConfig,
    sources: Sources,
    progress: Progress,
    again: Sequence[Record] = (),
    part: Part = WHOLE,
) -> Iterator[None]:
    """Within it, every model of a run that has something to do can be asked all questions.

    The questions of the first one are built and handed on. Of the others, whose questions come
    from the same sources, a few of each set are built, and the texts whole: what fails with their
    tokenizers or lengths fails now. Where no more are asked, they are handed on too. Models that
    the hub does not give are found out first, all at once; one that cannot be read for another
    reason is left to its own run.

    Args:
        config: The run.
        sources: What the names in its settings mean.
        progress: Where to report what is left out.
        again: Records of cells that are done again.
        part: The part of the run that is meant.

    Raises:
        AssetError: If a model on the hub, a set of questions or a text cannot be had and is not to
            be left out.
    """
    if sources.origins.missing and not config.skip_missing:
        raise lacking_error(sources.origins.missing)
    ready: dict[str, Preparation] = {}
    built: list[tuple[Any, ...]] = []
    tried: set[str] = set()
    several = len(config.models) > 1
    asking = _to_ask(config, sources, again, part)
    for name, (own, tokenizer, longest, undone) in asking.items():
        if ready and own.skip_missing:
            continue  # what it cannot be asked is left out in its own run
        told = Prefixed(progress, name) if several else progress
        asked = (own.tasks, own.include_path, own.limit, own.prompting)
        fewer = asked in built and (own.limit or _TRIED) >= _TRIED
        try:
            made = _made(
                own, tokenizer, longest, sources, told, limit=_TRIED if fewer else own.limit
            )
            try_texts(own, undone, made.batches, tried, told)
        except StreamlineError as error:
            raise AssetError(f"{name}: {error}" if several else str(error)) from error
        built.append(asked)
        if not ready or (own.limit or _TRIED) < _TRIED:  # so few are no load
            ready[name] = made
    asked_first = next((counted(made.questions) for made in ready.values()), None)
    redone = {record.identity for record in again}
    left = {
        name: [cell for cell in part.of(expand(own, name)) if cell.identity in redone]
        + [job.cell for job in undone if job.cell.identity not in redone]
        for name, (own, _, _, undone) in asking.items()
    }
    token = _READY.set(ready)
    try:
        with expecting(left_of(config, left, asked_first)):
            yield
    finally:
        _READY.reset(token)


def _to_ask(
    config: RunConfig, sources: Sources, again: Sequence[Record], part: Part
) -> dict[str, tuple[RunConfig, Any, int, list[CellJob]]]:
    """The models with something to do: the run as each has it, its tokenizer, positions, cells.

    Raises:
        AssetError: If the hub does not give some of them, or models that their methods name.
    """
    found: dict[str, tuple[RunConfig, Any, int, list[CellJob]]] = {}
    refused: dict[str, str] = {}
    for name in config.models:
        own = config.for_model(name)
        try:
            undone = todo(own, name, sources, part)[2]
            if not undone and all(record.model != name for record in again):
                continue
            others = (read_models(j.target.method, name, j.cell.sparsity) for j in undone)
            for needed in dict.fromkeys([name, *chain.from_iterable(others)]):
                try:
                    check_access(needed)
                except HubError as error:
                    refused[needed] = str(error)
            tokenizer = load_tokenizer(name, trust_remote_code=own.trust_remote_code)
            known = load_config(name, trust_remote_code=own.trust_remote_code)
            found[name] = own, tokenizer, max_length(known, tokenizer), undone
        except HubError as error:
            refused[name] = str(error)
        except Exception:  # of this model: its cells fail with it, and the others go on
            log.debug("%s cannot be prepared", name, exc_info=True)
    if refused and not config.skip_missing:
        raise AssetError(
            f"{len(refused)} of the models cannot be had: "
            + " ".join(f"{name}: {why}" for name, why in refused.items())
            + " Nothing was computed. Mend this, name other models, or go on with the others with "
            "--skip-missing: their cells fail."
        )
    return found


def preparation(
    config: RunConfig,
    name: str,
    tokenizer: Any,
    longest: int,
    sources: Sources,
    progress: Progress,
) -> Preparation:
    """What a model's cells are made with and asked, as :func:`prepared` made it or made now.

    Args:
        config: The run, as the model has it.
        name: The model.
        tokenizer: Its tokenizer.
        longest: Its positions.
        sources: What the names in its settings mean.
        progress: Where to report what is left out.

    Raises:
        AssetError: If a set of questions or a text cannot be had and is not to be left out.
    """
    made: list[Preparation] = []

    def by_the_first() -> Questions:
        ready = (_READY.get() or {}).pop(name, None)
        if ready is None or ready.longest != longest:
            ready = _made(config, tokenizer, longest, sources, progress, limit=config.limit)
        made.append(ready)
        return ready.questions.asked()

    asked = shared(by_the_first)
    return made[0] if made else Preparation(TokenBatches(tokenizer, {}), longest, asked)


def _made(
    config: RunConfig,
    tokenizer: Any,
    longest: int,
    sources: Sources,
    progress: Progress,
    *,
    limit: int | None,
) -> Preparation:
    text, missing = config.perplexity, dict[str, str]()
    batches = TokenBatches(tokenizer, sources.revisions)
    heldout: Text | None = None
    try:
        heldout = heldout_text(batches, text.texts, text.n_tokens, text.length)
    except Exception as error:  # readers of texts and tokenizers raise anything
        log.debug("no held-out text", exc_info=True)
        missing[HELDOUT] = reason(error)
    questions = prepare(
        config.tasks,
        tokenizer,
        max_length=longest,
        limit=limit,
        include_path=config.include_path,
        origins=sources.origins,
        heldout=heldout,
        missing=missing,
        generates=not config.stream,
        prompting=config.prompting,
        skip_missing=config.skip_missing,
        unsafe_code=config.confirm_run_unsafe_code,
        progress=progress,
    )
    return Preparation(batches, longest, questions)


def cell_facts(
    job: CellJob, ready: Preparation, store: AnswerStore, *, compiled: bool
) -> dict[str, Any]:
    """Content hashes of a cell's questions, and how they were scored, for its record.

    Args:
        job: The cell.
        ready: What the model's cells are made with.
        store: Where its answers are kept.
        compiled: Whether layers are compiled for scoring.
    """
    return {
        **ready.questions.facts(),
        "scoring": {
            "batch_tokens": batch_facts(job.model_key, ready.questions, store),
            "compiled": compiled,
        },
    }
