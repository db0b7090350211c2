"""Questions that can be asked: with texts, options to choose from and a right one among them.

Unlabelled splits (label -1), null texts, one option, empty options and files with their questions
twice end in one message that names the question, before any model is run.

Example::

    check_rows("piqa", rows)            # what a reader of original files made
    instances = askable(task)           # what lm-eval made of a question set from anywhere
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from streamline.errors import AssetError, StreamlineError

__all__ = ["askable", "check_rows", "loading", "require_choice"]

Row = Mapping[str, Any]
Choice = tuple[Sequence[Any], Any]

#: Fields that hold no text.
_NO_TEXT = ("answer", "label", "id", "pronoun_loc", "span1_index", "span2_index")
#: Sets whose published files have no question twice; MMLU's have.
_UNIQUE = (
    "arc", "boolq", "commonsense_qa", "gsm8k", "hellaswag", "openbookqa", "piqa", "winogrande",
)  # fmt: skip


def _lettered(row: Row) -> Choice:
    return row["choices"]["text"], list(row["choices"]["label"]).index(row["answerKey"])


#: For each reader of original files: the options of a row, and the index of the right one.
_CHOICES: dict[str, Callable[[Row], Choice]] = {
    "arc": _lettered,
    "boolq": lambda row: (("no", "yes"), row["label"]),
    "c3": lambda row: (row["choice"], list(row["choice"]).index(row["answer"])),
    "chid": lambda row: (row["candidates"], row["answer"]),
    "cmmlu": lambda row: ([row[letter] for letter in "ABCD"], "ABCD".index(row["Answer"] or "?")),
    "cmnli": lambda row: ("012", row["label"]),
    "commonsense_qa": _lettered,
    "hellaswag": lambda row: (row["endings"], row["label"]),
    "mmlu": lambda row: (row["choices"], row["answer"]),
    "openbookqa": _lettered,
    "piqa": lambda row: ((row["sol1"], row["sol2"]), row["label"]),
    "race": lambda row: (row["options"], "ABCD".index(row["answer"] or "?")),
    "winogrande": lambda row: ((row["option1"], row["option2"]), int(row["answer"]) - 1),
    "wsc": lambda row: (("no", "yes"), row["label"]),
    "wsc273": lambda row: (row["options"], row["label"]),
}


def check_rows(reader: str, rows: Sequence[Row]) -> None:
    """Refuse rows of an original file that are no questions.

    Args:
        reader: Which reader made them.
        rows: In the file's order.

    Raises:
        ValueError: With the number of the question, from 0, and what is wrong with it.
    """
    for number, row in enumerate(rows):
        try:
            for name, value in row.items():
                if name not in _NO_TEXT:
                    _require_text(name, value)
            if reader in _CHOICES:
                options, right = _CHOICES[reader](row)
                require_choice(options, [int(right)])
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ValueError(f"question {number}: {error}") from None
    seen = Counter(json.dumps(dict(row), sort_keys=True, default=str) for row in rows)
    doubled = len(rows) > 3 and 2 * len(seen) <= len(rows)
    if len(seen) < len(rows) and (reader in _UNIQUE or doubled):
        texts = [json.dumps(dict(row), sort_keys=True, default=str) for row in rows]
        number = next(i for i, text in enumerate(texts) if text in texts[:i])
        raise ValueError(f"question {number} is there twice")


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Whatever lm-eval stumbles over in a task's first question, as one message.

    Raises:
        AssetError: With the task.
    """
    try:
        yield
    except StreamlineError:
        raise
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise AssetError(
            f"{name} cannot be loaded from its questions ({type(error).__name__}: {error}); take a "
            "split that has right answers, or correct the data"
        ) from error


def askable(task: Any) -> tuple[Any, ...]:
    """The requests of one of lm-eval's tasks, if every question has options and a right one.

    Args:
        task: lm-eval's task object, its requests built.

    Raises:
        AssetError: With the task, the question and what is wrong with it.
    """
    instances = tuple(task.instances)
    seen: set[int] = set()
    for instance in instances if task.OUTPUT_TYPE == "multiple_choice" else ():
        if instance.doc_id in seen:
            continue
        seen.add(instance.doc_id)
        try:
            choices = list(task.doc_to_choice(instance.doc))
            told = task.doc_to_text if task.multiple_input else task.doc_to_target
            found = told(instance.doc)
            given = found if isinstance(found, list) else [found]
            right = [choices.index(one) if isinstance(one, str) else int(one) for one in given]
            require_choice(choices, right)
        except (ValueError, TypeError) as error:
            raise AssetError(
                f"question {instance.doc_id} of {task.task_name} cannot be asked: {error}. Take "
                "a split that has right answers, or correct the data."
            ) from None
    return instances


def _require_text(name: str, value: Any) -> None:
    """Refuse null and numbers where a text belongs."""
    if isinstance(value, (list, tuple)):
        for item in value:
            _require_text(name, item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _require_text(f"{name}.{key}", item)
    elif not isinstance(value, str):
        raise ValueError(f"{name} is {json.dumps(value, default=str)}, and must be text")


def require_choice(options: Sequence[Any], right: Sequence[int]) -> None:
    """Refuse fewer than two options, an empty one, and a right one that is none of them.

    Args:
        options: Of one question.
        right: Indices of those that are right.

    Raises:
        ValueError: With what is wrong.
    """
    if len(options) < 2:
        raise ValueError(f"it has {len(options)} option, and there is nothing to choose")
    empty = [i for i, text in enumerate(options) if not str(text).strip()]
    if empty:
        raise ValueError(f"its option {empty[0]} is empty")
    beyond = [one for one in right if not 0 <= one < len(options)]
    if beyond or not right:
        raise ValueError(
            f"the right option is {beyond[0] if beyond else 'missing'}, and there are "
            f"{len(options)}, counted from 0 (an unlabelled split?)"
        )
