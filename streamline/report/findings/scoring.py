"""How the tasks of records were scored, and which of them are averaged, in words.

Example::

    averages_notes(records)     # ["Averages are of tasks scored alike, the most there are: piqa."]
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from streamline.results.averages import averaged_tasks, collapsed_tasks
from streamline.results.metrics import is_fraction
from streamline.results.record import Record, TaskResult

__all__ = ["averages_notes", "protocol_notes", "short_name"]

_PROTOCOLS = {
    "lm-eval": "Scored as by lm-eval",
    "opencompass-ppl": "Scored as by OpenCompass, mean NLL of the whole text",
    "gen": "Generated",
    "bpb": "Given, in bits per byte of the right answer (lower is better, in no average)",
}


def protocol_notes(records: Sequence[Record]) -> list[str]:
    """How the tasks were scored, and which are averaged."""
    found: dict[str, dict[str, None]] = {}
    around: dict[str, dict[str, None]] = {}
    for record in records:
        for task, result in collapsed_tasks(record).items():
            protocol = str(result.extra("protocol") or "")
            found.setdefault(protocol, {})[task] = None
            if protocol == "lm-eval" and (prompts := _prompts(result)):
                around.setdefault(prompts, {})[task] = None
    names = {task for tasks in found.values() for task in tasks}
    said = {_PROTOCOLS.get(protocol, protocol): tasks for protocol, tasks in found.items()}
    said |= {f"Asked with {prompts}": tasks for prompts, tasks in around.items()}
    notes = [
        f"{what}: {', '.join(short_name(task, names) for task in tasks)}."
        for what, tasks in said.items()
        if what
    ]
    return [*notes, *averages_notes(records)]


def averages_notes(records: Sequence[Record]) -> list[str]:
    """Which tasks are averaged, where they were scored in different ways."""
    each = [item for record in records for item in collapsed_tasks(record).items()]
    if len({result.extra("protocol") for _, result in each if is_fraction(result.metric)}) < 2:
        return []
    names = {task for task, _ in each}
    alike = dict.fromkeys(short_name(t, names) for one in records for t in averaged_tasks(one))
    return [f"Averages are of tasks scored alike, the most there are: {', '.join(alike)}."]


def short_name(task: str, names: Collection[str]) -> str:
    """A task's name, without the mark of this package's own where no other has the rest."""
    short = task.removeprefix("streamline_")
    return task if short in names else short


def _prompts(result: TaskResult) -> str:
    """What stood around each question of a task: examples, chat template, instruction."""
    shots = result.extra("shots")
    examples = f"{shots} example{'s' if shots != 1 else ''}" if shots else None
    return ", ".join(str(text) for text in (examples, result.extra("prompts")) if text)
