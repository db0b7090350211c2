"""Evaluate many paths on many tasks, keeping every answer as soon as it is there.

All tasks and texts that the same paths lack are scored in one run of the engine. Each path's
answers to a task go to the answer store as soon as they are there, so a killed evaluation does only
what is missing; what is evaluated jointly changes no number by more than rounding.

Example::

    questions = prepare(["commonsense"], tokenizer, max_length=2048)
    results = evaluate({"dense": dense_path(decoder), "short": path}, questions, tokenizer, store)
    results["short"].tasks["piqa"]["value"]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from streamline.distributed.work import shared
from streamline.engine.paths import Path as LayerPath
from streamline.errors import NotFiniteError
from streamline.evaluation.answer_store import AnswerStore
from streamline.evaluation.finite import require_likelihoods, require_perplexity
from streamline.evaluation.generation.answers import answer_texts
from streamline.evaluation.part import Part
from streamline.evaluation.questions import Questions, Text
from streamline.evaluation.scoring.perplexity import Perplexity
from streamline.evaluation.scoring.together import answer_all
from streamline.evaluation.scoring.token_budget import TokenBudget
from streamline.evaluation.scoring.unfinished import Unfinished
from streamline.evaluation.task_results import combine, finish
from streamline.progress import Progress, Silent, portions
from streamline.results.assess import CellResult

__all__ = ["batch_facts", "evaluate", "stored"]

_BATCHES = "batch_tokens"


def evaluate(
    paths: Mapping[str, LayerPath],
    questions: Questions,
    tokenizer: Any,
    store: AnswerStore,
    *,
    batch_tokens: TokenBudget | None = None,
    compiled: bool = False,
    progress: Progress | None = None,
    kept: Callable[[str, Sequence[str]], None] | None = None,
) -> dict[str, CellResult | NotFiniteError]:
    """Answer everything for every path that has no answer yet.

    Args:
        paths: Key to path; all paths enter the same decoder.
        questions: The questions and texts.
        tokenizer: The model's tokenizer.
        store: Where answers are kept, under the paths' keys.
        batch_tokens: Most tokens of a batch; None suits the device.
        compiled: Whether layers are compiled for scoring.
        progress: Where to report what is being done.
        kept: Told the name of each set whose answers were kept, and for which keys.

    Returns:
        Each path's results, with their seconds: its part of the shared time. Of a path whose
        answers are not all finite, the error; what it answered elsewhere is kept.

    Raises:
        UnsupportedModelError: If a path cannot be evaluated.
    """
    progress = progress or Silent()
    budget = batch_tokens or TokenBudget()
    scored, generated = _missing(paths, questions, store)
    tokens = dict(zip(questions.names, questions.tokens, strict=True))
    weights = [
        sum(tokens[name] for name in [*(p.name for p in parts), *(t.name for t in texts)])
        for _, parts, texts in scored
    ]
    places = iter(portions([*weights, *(tokens[part.name] for _, part in generated)]))
    failed: dict[str, NotFiniteError] = {}
    for keys, parts, texts in scored:
        own = {key: paths[key] for key in keys if key not in failed}
        with next(places):
            failed |= _score(
                own,
                parts,
                texts,
                store,
                budget=budget,
                compiled=compiled,
                progress=progress,
                kept=kept,
            )
    for keys, part in generated:
        own = {key: paths[key] for key in keys if key not in failed}
        with next(places):
            failed |= _generate(own, part, tokenizer, store, budget, progress)
        if kept is not None:
            kept(part.name, [key for key in own if key not in failed])
    return shared(lambda: {k: failed.get(k) or stored(k, questions, store) for k in paths})


def _models(paths: Mapping[str, LayerPath]) -> str:
    return "1 model" if len(paths) == 1 else f"{len(paths)} models"


def stored(key: str, questions: Questions, store: AnswerStore) -> CellResult:
    """A path's results as they lie on disk; all its answers must be there."""
    blocks = {part.name: store.read(key, part.place) for part in questions.parts}
    texts = {text.name: store.read(key, text.place) for text in questions.texts}
    tasks: dict[str, dict[str, Any]] = {}
    for entry in questions.entries:
        names = [part.name for part in questions.parts if part.entry.name == entry.name]
        if names:
            row = combine(entry, [_figures(blocks[name][0]) for name in names])
            shots = next(part.shots for part in questions.parts if part.entry.name == entry.name)
            facts: dict[str, Any] = {"protocol": entry.protocol, "shots": shots}
            if questions.prompting.words and entry.protocol == "lm-eval":
                facts["prompts"] = questions.prompting.words
            tasks[entry.name] = row | facts | {"subtasks": names}
    places = [part.place for part in questions.parts]
    return CellResult(
        tasks,
        store.samples(key, places) if places else pd.DataFrame(),
        {name: _figures(block) for name, (block, _) in texts.items()},
        sum(seconds for _, seconds in (*blocks.values(), *texts.values())),
    )


def _figures(block: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != _BATCHES}


def batch_facts(key: str, questions: Questions, store: AnswerStore) -> dict[str, int]:
    """Tokens of the batches that a path's answers come from, by how they were chosen."""
    found: dict[str, int] = {}
    for place in questions.places:
        found |= store.read(key, place)[0].get(_BATCHES, {})
    return found


def _missing(
    paths: Mapping[str, LayerPath], questions: Questions, store: AnswerStore
) -> tuple[list[tuple[list[str], list[Part], list[Text]]], list[tuple[list[str], Part]]]:
    """What has no answers yet, with the keys of the paths: what is scored, what generates."""
    scored: dict[tuple[str, ...], tuple[list[Part], list[Text]]] = {}
    generated: list[tuple[list[str], Part]] = []

    lacking = shared(
        lambda: {
            place: [key for key in paths if not store.has(key, place)] for place in questions.places
        }
    )
    for part in questions.parts:
        keys = lacking[part.place]
        if part.generates:
            generated += [(keys, part)] if keys else []
        else:
            scored.setdefault(tuple(keys), ([], []))[0].append(part)
    for text in questions.texts:
        scored.setdefault(tuple(lacking[text.place]), ([], []))[1].append(text)
    scored.pop((), None)
    if scored and next(iter(paths.values())).decoder.layer_order is not None:
        # Each run reads all weights, so there is one for all, whatever single paths have already.
        keys = [key for key in paths if any(key in lack for lack in scored)]
        every = list(scored.values())
        parts = [part for some, _ in every for part in some]
        scored = {tuple(keys): (parts, [text for _, some in every for text in some])}
    return [(list(keys), *items) for keys, items in scored.items()], generated


def _generate(
    paths: Mapping[str, LayerPath],
    part: Part,
    tokenizer: Any,
    store: AnswerStore,
    budget: TokenBudget,
    progress: Progress,
) -> dict[str, NotFiniteError]:
    """Let paths continue a task's prompts; the errors of those that could not."""
    if not paths:
        return {}
    progress.stage(f"{part.name}: {part.n_docs} questions, {_models(paths)}")
    start = time.perf_counter()
    answers = answer_texts(
        paths,
        part,
        tokenizer,
        files={key: store.path(key, f"{part.place}.texts") for key in paths},
        batch_tokens=budget.given,
        progress=progress.step,
    )
    seconds = (time.perf_counter() - start) / len(paths)
    return shared(lambda: _keep(part, paths, answers, seconds, store, {}))


def _score(
    paths: Mapping[str, LayerPath],
    parts: Sequence[Part],
    texts: Sequence[Text],
    store: AnswerStore,
    *,
    budget: TokenBudget,
    compiled: bool,
    progress: Progress,
    kept: Callable[[str, Sequence[str]], None] | None,
) -> dict[str, NotFiniteError]:
    """Score tasks and texts in one run of the engine, each kept as soon as it is done.

    Ends early where no path is left whose answers are finite; returns the errors of the others.
    """
    if not paths:
        return {}
    n_docs = sum(part.n_docs for part in parts)
    work = [f"{n_docs} questions of {', '.join(part.name for part in parts)}"] if parts else []
    work += [f"perplexity of {text.name}" for text in texts]
    progress.stage(f"{'; '.join(work)}: {_models(paths)}")
    start = time.perf_counter()
    used: dict[int, dict[str, int]] = {}
    answers: Iterable[tuple[int, list[Any]]] = answer_all(
        list(paths.values()),
        [part.requests for part in parts],
        [text.windows for text in texts],
        batch_tokens=budget,
        compiled=compiled,
        progress=progress.step,
        used=used,
        unfinished=[
            Unfinished([store.unfinished(key, name) for key in paths], of)
            for name, of in [
                *((part.place, part.key) for part in parts),
                *((text.place, text.place) for text in texts),
            ]
        ],
    )
    even = None
    if next(iter(paths.values())).decoder.layer_order is not None:
        answers = list(answers)  # all come at the end of the one pass, whose time they share
        even = (time.perf_counter() - start) / len(answers) / len(paths)
    names = [*(part.name for part in parts), *(text.name for text in texts)]
    failed: dict[str, NotFiniteError] = {}
    for number, found in answers:
        now = time.perf_counter()
        seconds, start = (now - start) / len(paths) if even is None else even, now

        def keep(
            number: int = number, found: list[Any] = found, seconds: float = seconds
        ) -> dict[str, NotFiniteError]:
            if number < len(parts):
                return _keep(parts[number], paths, found, seconds, store, used[number])
            text = texts[number - len(parts)]
            return _keep_perplexity(text, paths, found, seconds, store, used[number])

        failed = shared(keep) | failed
        if kept is not None:
            kept(names[number], [key for key in paths if key not in failed])
        if len(failed) == len(paths):
            break
    return failed


def _keep(
    part: Part,
    paths: Mapping[str, LayerPath],
    answers: Iterable[Any],
    seconds: float,
    store: AnswerStore,
    batch_tokens: Mapping[str, int],
) -> dict[str, NotFiniteError]:
    """Write every path's answers to a task; the errors of those that are not finite."""
    failed: dict[str, NotFiniteError] = {}
    for (key, path), answer in zip(paths.items(), answers, strict=True):
        try:
            if isinstance(answer, NotFiniteError):
                raise answer
            if not part.generates:
                require_likelihoods(part, answer, path)
        except NotFiniteError as error:
            failed[key] = error
            continue
        block, rows = finish(part, answer)
        store.write(key, part.place, block | {_BATCHES: dict(batch_tokens)}, seconds, rows)
    return failed


def _keep_perplexity(
    text: Text,
    paths: Mapping[str, LayerPath],
    found: Iterable[Perplexity],
    seconds: float,
    store: AnswerStore,
    batch_tokens: Mapping[str, int],
) -> dict[str, NotFiniteError]:
    """Write every path's perplexity of a text; the errors of those that are not finite."""
    failed: dict[str, NotFiniteError] = {}
    for (key, path), result in zip(paths.items(), found, strict=True):
        try:
            require_perplexity(text.name, text.windows, result, path)
        except NotFiniteError as error:
            failed[key] = error
            continue
        block = {
            "value": result.value,
            "mean_nll": result.mean_nll,
            "mean_nll_stderr": result.stderr,
            "window_nll": [round(value, 6) for value in result.window_nll],
            "n_tokens": result.n_tokens,
            "window": text.windows.shape[1],
            _BATCHES: dict(batch_tokens),
        }
        store.write(key, text.place, block, seconds)
    return failed
