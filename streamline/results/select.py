"""How a cell of a run is named on the command line: ``PATH[:METHOD[@SPARSITY]][,KEY=VALUE...]``.

The keys are model, method, sparsity, seed and recovery; ``out:shortgpt@0.25,seed=1`` is one cell
of the run in ``out``. A path that exists as it stands has no selector.

Example::

    path, selector = split("out:shortgpt@0.25")
    record = select(load(path), selector, "out:shortgpt@0.25")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from streamline.errors import ConfigError
from streamline.plan import Plan
from streamline.reading import read_json
from streamline.results.record import Record
from streamline.results.record_file import FILE_NAME, load
from streamline.results.samples import samples_path

__all__ = [
    "cell_name",
    "dense_of",
    "matching",
    "read_plan",
    "read_selector",
    "run_records",
    "select",
    "split",
]

_KEYS = ("model", "method", "sparsity", "seed", "recovery")


def cell_name(record: Record, records: Sequence[Record]) -> str:
    """A cell's name in the grammar above, as short as it is unique among the cells of its run."""
    name = f"{record.method}@{record.sparsity:g}"
    others = [r for r in records if (r.method, r.sparsity) == (record.method, record.sparsity)]
    for key in ("seed", "recovery", "model"):
        if any(getattr(other, key) != getattr(record, key) for other in others):
            name += f",{key}={getattr(record, key)}"
    return name


def dense_of(record: Record, records: Iterable[Record]) -> Record | None:
    """The dense model's cell beside another: that of its seed, else the first of its model."""
    there = [one for one in records if (one.method, one.model) == ("dense", record.model)]
    return next((one for one in there if one.seed == record.seed), there[0] if there else None)


def matching(
    records: Sequence[Record], selector: Mapping[str, str], *, finished: bool = True
) -> list[Record]:
    """The cells that a selector fits; all of them if it is empty.

    Args:
        records: The cells of a run.
        selector: Value by key, from :func:`split` or :func:`read_selector`.
        finished: Leave out those that failed or were skipped.
    """
    return [
        record
        for record in records
        if (record.status == "ok" or not finished)
        and all(_fits(record, key, selector[key]) for key in selector)
    ]


def run_records(path: Path) -> tuple[list[Record], Path] | None:
    """The records that a path names, and the folder that their samples lie in.

    Args:
        path: A run's folder, its ``results.json``, or a file of one record, as ``streamline-bench
            evaluate`` writes it with its samples under ``.NAME-run`` beside it.

    Returns:
        Records and folder, or None if the path is none of these.
    """
    if path.is_dir():
        return (load(path), path) if (path / FILE_NAME).is_file() else None
    if path.suffix != ".json" or not path.is_file():
        return None
    beside = path.parent / f".{path.stem}-run"
    return load(path), beside if beside.is_dir() else path.parent


def read_plan(source: str) -> Plan:
    """The plan that a file, a checkpoint or a finished cell holds.

    Args:
        source: A file of a run's ``plans``, a checkpoint's folder or its ``plan.json``, or a cell
            as above.

    Raises:
        ConfigError: If it is none of these, or is not JSON.
        PlanError: If it is no plan.
    """
    path, selector = split(source)
    file = path
    if selector or path.name == FILE_NAME or (path / FILE_NAME).is_file():
        records, folder = run_records(path) or ([], path)
        record = select(records, selector, source)
        file = folder / "plans" / f"{samples_path(folder, record).stem}.json"
    elif path.is_dir():
        file = path / "plan.json"  # of a checkpoint
    if not file.is_file():
        raise ConfigError(
            f"{source} holds no plan; give a file of a run's plans, a checkpoint, or a finished "
            "cell of a run that removes layers, such as out/run:shortgpt@0.25"
        )
    return Plan.from_json(read_json(file, "A plan is a file of a run's plans or a checkpoint's."))


def select(records: Sequence[Record], selector: Mapping[str, str], source: str) -> Record:
    """The one finished cell that a selector names.

    An empty selector selects the only cell, or else the only one of method ``dense``.

    Raises:
        ConfigError: If no cell or several fit; the message lists them.
    """
    fitting = matching(records, selector)
    if not selector and len(fitting) > 1:
        fitting = [record for record in fitting if record.method == "dense"] or fitting
    if len(fitting) == 1:
        return fitting[0]
    found = fitting or matching(records, {})
    names = sorted({cell_name(record, records) for record in found})
    raise ConfigError(
        f"{source}: {len(fitting) or 'no'} finished cells fit. Choose one with "
        f"PATH:METHOD@SPARSITY,KEY=VALUE (keys {', '.join(_KEYS)}). There are: "
        f"{'; '.join(names) or 'none'}."
    )


def split(text: str) -> tuple[Path, dict[str, str]]:
    """Path and selector of a source.

    Args:
        text: As given on the command line.

    Returns:
        The path, and the values of the selector by key; nothing if there is none.

    Raises:
        ConfigError: If the selector is malformed.
    """
    if not text.strip():
        raise ConfigError(f"{text!r} names no file or folder; give one that is there")
    if Path(text).exists() or (":" not in text and "," not in text):
        return Path(text), {}
    cuts = [text.index(mark) for mark in ":," if mark in text]
    return Path(text[: min(cuts)]), read_selector(text[min(cuts) + 1 :], text)


def read_selector(rest: str, text: str) -> dict[str, str]:
    """The values of ``METHOD[@SPARSITY][,KEY=VALUE...]`` by key.

    Args:
        rest: The selector.
        text: As given on the command line, for messages.

    Raises:
        ConfigError: If the selector is malformed.
    """
    words = [word for word in rest.split(",") if word]
    selector: dict[str, str] = {}
    if words and "=" not in words[0]:
        method, _, sparsity = words.pop(0).partition("@")
        selector = {"method": method, **({"sparsity": sparsity} if sparsity else {})}
    for word in words:
        key, _, value = word.partition("=")
        if key not in _KEYS or not value:
            raise ConfigError(f"{text}: {word!r} is no KEY=VALUE with a key of {', '.join(_KEYS)}.")
        selector[key] = value
    if "sparsity" in selector:
        try:
            float(selector["sparsity"])
        except ValueError:
            raise ConfigError(
                f"{text}: sparsity {selector['sparsity']!r} is not a number; write METHOD@0.25."
            ) from None
    return selector


def _fits(record: Record, key: str, value: str) -> bool:
    actual = getattr(record, key)
    return float(value) == actual if key == "sparsity" else str(actual) == value
