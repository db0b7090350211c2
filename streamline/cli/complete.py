"""Completion of names in the shell: methods, models, tasks and suites, from lists alone.

A value of several names is completed after its last comma. Nothing heavy is imported; whatever
goes wrong completes nothing.

Example::

    typer.Option(autocompletion=methods)      # --methods shortgpt,sl<TAB> gives shortgpt,sleb
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["methods", "models", "suites", "tasks"]


def _completion(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Complete the last of several names with commas between."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = set(before.split(","))
        try:
            known = list(names())
        except Exception:  # a broken plugin must not spill a traceback over the prompt
            return []
        fitting = [name for name in known if name.startswith(last) and name not in given]
        return [f"{before}{comma}{name}" for name in fitting]

    return complete


def _methods() -> Iterable[str]:
    from streamline.registry import METHODS, available

    return ["all", *available(METHODS)]


def _models() -> Iterable[str]:
    from streamline.sources.models import MODELS

    return MODELS


def _tasks() -> Iterable[str]:
    from streamline.evaluation.tasks.catalogue import GROUPS, TASKS

    return [*GROUPS, *TASKS]


def _suites() -> Iterable[str]:
    from streamline.run.suites import suite_files

    return suite_files()


methods = _completion(_methods)
models = _completion(_models)
tasks = _completion(_tasks)
suites = _completion(_suites)
