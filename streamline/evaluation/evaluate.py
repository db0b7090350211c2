"""Evaluate many paths on many tasks, keeping every answer as soon as it is there.

Questions are scored for all paths in one forward pass, task by task. Each path's answers to a task
go to the answer store at once, so a killed evaluation asks only what is missing; what is evaluated
jointly changes no number by more than rounding.

Example::

    questions = prepare(["commonsense"], tokenizer, max_length=2048)
    results = evaluate({"dense": dense_path(decoder), "short": path}, questions, tokenizer, store)
    results["short"].tasks["piqa"]["value"]
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from streamline.engine.paths import Path as LayerPath
from streamline.evaluation.answer_store import AnswerStore
from streamline.evaluation.generation.answers import answer_texts
from streamline.evaluation.part import Part
from streamline.evaluation.questions import Questions, Text
from streamline.evaluation.scoring.perplexity import Perplexity, perplexity
from streamline.evaluation.scoring.score import score
from streamline.evaluation.scoring.together import answer_all
from streamline.evaluation.scoring.token_budget import TokenBudget
from streamline.evaluation.task_results import combine, finish
from streamline.progress import Progress, Silent, portions
from streamline.results.assess import CellResult

__all__ = ["evaluate", "stored"]


def evaluate(
    paths: Mapping[str, LayerPath],
    questions: Questions,
    tokenizer: Any,
    store: AnswerStore,
    *,
    batch_tokens: TokenBudget | None = None,
    compiled: bool = False,
    progress: Progress | None = None,
) -> dict[str, CellResult]:
    """Answer everything for every path that has no answer yet.

    Args:
        paths: Key to path; all paths enter the same decoder.
        questions: What is asked.
        tokenizer: The model's tokenizer.
        store: Where answers are kept, under the paths' keys.
        batch_tokens: Most tokens of a batch; None suits the device.
        compiled: Whether layers are compiled for scoring.
        progress: Where to report what is being done.

    Returns:
        Each path's results, with the seconds that they took: its part of what was shared.

    Raises:
        UnsupportedModelError: If a path cannot be evaluated.
    """
    progress = progress or Silent()
    budget = batch_tokens or TokenBudget()
    if next(iter(paths.values())).decoder.streamed:
        missing = {k: p for k, p in paths.items() if not store.has(k, questions.names)}
        if missing:
            _in_one_pass(missing, questions, store, budget, progress)
    places = portions(questions.tokens)
    for part, place in zip(questions.parts, places, strict=False):
        missing = {k: p for k, p in paths.items() if not store.has(k, part.name)}
        if missing:
            with place:
                _answer(part, missing, tokenizer, store, budget, compiled, progress)
    for text, place in zip(questions.texts, places[len(questions.parts) :], strict=True):
        missing = {k: p for k, p in paths.items() if not store.has(k, text.name)}
        if missing:
            with place:
                _measure(text, missing, store, budget, progress)
    return {key: stored(key, questions, store) for key in paths}


def _answer(
    part: Part,
    paths: Mapping[str, LayerPath],
    tokenizer: Any,
    store: AnswerStore,
    budget: TokenBudget,
    compiled: bool,
    progress: Progress,
) -> None:
    """Put a task's questions to paths."""
    progress.stage(f"{part.name}: {part.n_docs} questions, {_models(paths)}")
    start = time.perf_counter()
    if part.generates:
        answers: Iterable[Any] = answer_texts(
            paths,
            part,
            tokenizer,
            files={key: store.path(key, f"{part.name}.texts") for key in paths},
            batch_tokens=budget.given,
            progress=progress.step,
        )
    else:
        answers = score(
            list(paths.values()),
            part.requests,
            batch_tokens=budget,
            compiled=compiled,
            progress=progress.step,
        )
    _keep(part, paths, answers, (time.perf_counter() - start) / len(paths), store)


def _measure(
    text: Text,
    paths: Mapping[str, LayerPath],
    store: AnswerStore,
    budget: TokenBudget,
    progress: Progress,
) -> None:
    """Measure a text's perplexity under paths."""
    progress.stage(f"perplexity of {text.name}: {_models(paths)}")
    start = time.perf_counter()
    found = perplexity(
        list(paths.values()), text.windows, batch_tokens=budget, progress=progress.step
    )
    _keep_perplexity(text, paths, found, (time.perf_counter() - start) / len(paths), store)


def _models(paths: Mapping[str, LayerPath]) -> str:
    return "1 model" if len(paths) == 1 else f"{len(paths)} models"


def stored(key: str, questions: Questions, store: AnswerStore) -> CellResult:
    """A path's results as they lie on disk; all its answers must be there."""
    blocks = {part.name: store.read(key, part.name) for part in questions.parts}
    texts = {text.name: store.read(key, text.name) for text in questions.texts}
    tasks: dict[str, dict[str, Any]] = {}
    for entry in questions.entries:
        names = [part.name for part in questions.parts if part.entry.name == entry.name]
        if names:
            row = combine(entry, [blocks[name][0] for name in names])
            facts = {"protocol": entry.protocol, "shots": entry.shots}
            tasks[entry.name] = row | facts | {"subtasks": names}
    frames = [store.samples(key, part.name) for part in questions.parts]
    return CellResult(
        tasks,
        pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(),
        {name: block for name, (block, _) in texts.items()},
        sum(seconds for _, seconds in (*blocks.values(), *texts.values())),
    )


def _in_one_pass(
    paths: Mapping[str, LayerPath],
    questions: Questions,
    store: AnswerStore,
    budget: TokenBudget,
    progress: Progress,
) -> None:
    """Answer everything for paths through a streamed model, its weights read once."""
    n_docs = sum(part.n_docs for part in questions.parts)
    progress.stage(f"one pass: {n_docs} questions, {_models(paths)}")
    start = time.perf_counter()
    found = list(
        answer_all(
            list(paths.values()),
            [part.requests for part in questions.parts],
            [text.windows for text in questions.texts],
            batch_tokens=budget,
            progress=progress.step,
        )
    )
    seconds = (time.perf_counter() - start) / len(paths) / len(questions.names)
    n_parts = len(questions.parts)
    for number, answers in found:
        if number < n_parts:
            _keep(questions.parts[number], paths, answers, seconds, store)
        else:
            _keep_perplexity(questions.texts[number - n_parts], paths, answers, seconds, store)


def _keep(
    part: Part, keys: Iterable[str], answers: Iterable[Any], seconds: float, store: AnswerStore
) -> None:
    """Write every path's answers to a task."""
    for key, answer in zip(keys, answers, strict=True):
        block, rows = finish(part, answer)
        store.write(key, part.name, block, seconds, rows)


def _keep_perplexity(
    text: Text,
    keys: Iterable[str],
    found: Iterable[Perplexity],
    seconds: float,
    store: AnswerStore,
) -> None:
    """Write every path's perplexity of a text."""
    for key, result in zip(keys, found, strict=True):
        block = {
            "value": result.value if math.isfinite(result.value) else None,
            "mean_nll": result.mean_nll if math.isfinite(result.mean_nll) else None,
            "n_tokens": result.n_tokens,
            "window": text.windows.shape[1],
        }
        store.write(key, text.name, block, seconds)
