"""Questions that can be asked: with texts, options to choose from and a right one among them.

Unlabelled splits (label -1), null texts, one option, empty options and sets with their questions
twice end in one message that names the question, before any model is run.

Example::

    check_rows("piqa", rows)            # what a reader of original files made
    with shown(task, env):              # what lm-eval makes of a question set from anywhere
        task.build_all_requests()
    instances = askable(task)
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from streamline.errors import AssetError, StreamlineError
from streamline.evaluation.tasks.sources import question_set

__all__ = [
    "Given", "askable", "check_repeats", "check_rows", "loading", "remedy", "require_choice",
    "shown",
]  # fmt: skip

log = logging.getLogger(__name__)

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
    texts = [json.dumps(dict(row), sort_keys=True, default=str) for row in rows]
    again = _repeats(texts)
    if again and (reader in _UNIQUE or len(rows) > 3 and 2 * len(again) >= len(rows)):
        raise ValueError(f"question {again[0]} is there twice")


def check_repeats(name: str, keys: Sequence[str], own: bool) -> None:
    """Refuse a set that is there twice; of a set of the user's, say which questions repeat.

    Published sets have a few questions twice, as MMLU has, and are taken as they are; only those of
    which it is known that they have none are held to it.

    Args:
        name: The task.
        keys: What stands for each of its questions.
        own: Whether the user brought it.

    Raises:
        AssetError: With the task and the question.
    """
    again = _repeats(keys)
    if not again:
        return
    known = None if own else question_set(name)
    unique = known is not None and known[0].reader in _UNIQUE
    if unique or (len(keys) > 3 and min(Counter(keys).values()) > 1):
        raise AssetError(
            f"question {again[0]} of {name} is there twice: {len(keys)} questions are "
            f"{len(keys) - len(again)} different ones. Correct the data; each counts once."
        )
    if own:
        log.warning(
            "%s: %d of its %d questions are there before, the first is question %d; each counts",
            name,
            len(again),
            len(keys),
            again[0],
        )


def _repeats(texts: Sequence[str]) -> list[int]:
    """The places of those that are there before."""
    seen: set[str] = set()
    again = []
    for place, text in enumerate(texts):
        if text in seen:
            again.append(place)
        seen.add(text)
    return again


class Given(dict[str, Any]):
    """A row of whose fields none that is read is null."""

    def __getitem__(self, name: str) -> Any:
        """The field's value.

        Raises:
            ValueError: If it is null, or has null in it.
        """
        value = super().__getitem__(name)
        if _has_null(value):
            raise ValueError(f"{name} is null, and must be given")
        return value


@contextmanager
def shown(task: Any, env: Any) -> Iterator[None]:
    """While lm-eval builds prompts and options, refuse null, which it would show as a word.

    Nothing is said of fields that no template shows, nor of what Python of the task's own makes.

    Args:
        task: lm-eval's task object.
        env: The Jinja environment of its templates.

    Raises:
        AssetError: With the question and its null fields.
    """
    names = ["doc_to_text", "doc_to_choice"]
    names += [] if task.OUTPUT_TYPE == "generate_until" else ["doc_to_target"]

    def strict(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(doc: Row, *args: Any, **options: Any) -> Any:
            before, env.finalize = env.finalize, _not_null
            try:
                return call(doc, *args, **options)
            except _NullError:
                null = ", ".join(name for name, value in doc.items() if _has_null(value))
                number = next((i for i, d in enumerate(task.eval_docs) if d == doc), None)
                which = "an example" if number is None else f"question {number}"
                raise AssetError(
                    f"{which} of {task.task_name} cannot be asked: {null or 'a value'} is null, "
                    "and its text would have the word None. Correct the data."
                ) from None
            finally:
                env.finalize = before

        return called

    own = dict(vars(task))
    vars(task).update({name: strict(getattr(task, name)) for name in names})
    try:
        yield
    finally:
        for name in names:
            vars(task).pop(name)
        vars(task).update({name: own[name] for name in names if name in own})


class _NullError(Exception):
    """A template shows null."""


def _not_null(value: Any) -> Any:
    if _has_null(value):
        raise _NullError
    return value


def _has_null(value: Any) -> bool:
    """Whether a value is null, or has null in it."""
    if isinstance(value, Mapping):
        return any(map(_has_null, value.values()))
    return value is None or (isinstance(value, (list, tuple)) and any(map(_has_null, value)))


def remedy(hub: bool) -> str:
    """What can be done about rows that are no questions.

    Args:
        hub: Whether they come from the hub, where data sets change.
    """
    if hub:
        return (
            "if the data set has changed, name a revision that has what is read (--data-revisions "
            "ORG/NAME@REVISION), or use files of your own (--data-dir)"
        )
    return "take a split that has right answers, or correct the data"


@contextmanager
def loading(name: str, place: str | None = None) -> Iterator[None]:
    """Whatever lm-eval stumbles over in a task's first question, as one message.

    Args:
        name: The task.
        place: Where on the hub its questions come from; None for elsewhere.

    Raises:
        AssetError: With the task.
    """
    from jinja2 import UndefinedError

    try:
        yield
    except StreamlineError:
        raise
    except (
        KeyError, ValueError, TypeError, IndexError, AttributeError, AssertionError, UndefinedError
    ) as error:  # fmt: skip
        of = "" if place is None else f" of {place}"
        raise AssetError(
            f"{name} cannot be loaded from its questions{of} ({type(error).__name__}: {error}); "
            f"{remedy(place is not None)}"
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
    """Refuse fewer than two options, one empty or null, and a right one that is none of them.

    Args:
        options: Of one question.
        right: Indices of those that are right.

    Raises:
        ValueError: With what is wrong.
    """
    if len(options) < 2:
        raise ValueError(f"it has {len(options)} option, and there is nothing to choose")
    for number, text in enumerate(options):
        if text is None or not str(text).strip():
            raise ValueError(f"its option {number} is {'null' if text is None else 'empty'}")
    beyond = [one for one in right if not 0 <= one < len(options)]
    if beyond or not right:
        raise ValueError(
            f"the right option is {beyond[0] if beyond else 'missing'}, and there are "
            f"{len(options)}, counted from 0 (an unlabelled split?)"
        )
