"""A run's folder: one process at a time, no results side by side that cannot be compared.

A cell is removed with every file that is its alone.

Example::

    with claimed(config.out):
        refuse_mixture(config, settle(config, kept_sources(config)))
        ...
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from streamline.errors import ConfigError, StreamlineError, unknown_name
from streamline.evaluation.origins import repositories_of
from streamline.evaluation.tasks.sources import QuestionSource
from streamline.files import sweep, write_json_atomic
from streamline.hashing import content_key, file_hashes
from streamline.kept import kept_json, write_json
from streamline.report.artifacts import run_settings
from streamline.report.names import SETTINGS
from streamline.results.record import Record, label
from streamline.results.record_file import FILE_NAME, load, recorded, remove
from streamline.results.samples import samples_checksum, samples_path
from streamline.results.select import cell_name, matching, read_selector
from streamline.run.cell import Cell, CellJob, expand
from streamline.run.commands import note_command
from streamline.run.config import RunConfig
from streamline.run.inputs import Sources, changes, fingerprint_of, shared_inputs
from streamline.run.shards.part import busy_parts, part_folders
from streamline.sharing.claims import Claim

_MARK = ".run.lock"  # lies in every run's folder
_RUNNING = ".running"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, also those of other machines.

    A killed run's claim ends with its process; on another machine that is known after a minute.

    What such a run has left of files that were not written to their end is removed.

    Args:
        folder: Made if missing.

    Raises:
        ConfigError: If another run has it, or works on a shard in it.
    """
    claim = Claim(folder / _RUNNING)
    if not claim.acquire_unless_held():
        raise ConfigError(
            f"another run is using {folder}: wait until it ends, stop it, or give another "
            "folder with --out"
        )
    try:
        busy = busy_parts(folder)
        if busy:
            raise ConfigError(
                f"shards are working in {folder} ({', '.join(busy[:4])}): wait until they end, "
                "stop them, or give another folder with --out"
            )
        (folder / _MARK).touch()
        sweep(folder)
        yield
    finally:
        claim.release()


def refuse_claimed(folder: Path) -> None:
    """Refuse to work on a shard in a folder that a run of all cells has.

    Args:
        folder: The run's; it may be missing.

    Raises:
        ConfigError: If one has it.
    """
    if Claim(folder / _RUNNING).is_held():
        raise ConfigError(
            f"a run of all cells is using {folder}: wait until it ends, or stop it, before shards "
            "of it are worked"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()


def refuse_foreign(folder: Path) -> None:
    """Refuse to write a run into a folder that holds something else.

    Args:
        folder: The run's; it may be missing or empty.

    Raises:
        ConfigError: If it holds files and none that a run has left.
    """
    ours = any((folder / name).exists() for name in (SETTINGS, FILE_NAME, _MARK))
    if folder.is_dir() and not ours and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty and no run's folder, so a report would be written among other "
            "people's files; give a new folder with --out"
        )


def kept_sources(config: RunConfig) -> dict[str, Any] | None:
    """Where the questions, texts and models of the folder's run came from; None for a new folder.

    Args:
        config: The run; with another ``data``, or a data folder where there was none, those of the
            questions are decided anew; with other ``data_revisions``, those of their data sets.

    Raises:
        ConfigError: If ``run.json`` is damaged.
    """
    path = config.out / SETTINGS
    if not path.is_file():
        return None
    before = run_settings(config.out)
    try:
        kept = _KeptSources.model_validate(before.get("sources"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("sources", *first["loc"])))
        raise ConfigError(
            f"{path} does not say where the run's questions, texts and models come from: {where}: "
            f"{first['msg']}. Restore it, or remove it and run again: it is written anew, its "
            "sources chosen anew."
        ) from error
    found = kept.model_dump()
    same = before.get("data") == config.data
    same = same and (before.get("data_dir") is None) == (config.data_dir is None)
    if not same:  # what was decided by what the hub gives is decided anew too
        found["tasks"], found["settings"] = {}, {}
    now, then = set(config.data_revisions or ()), set(before.get("data_revisions") or ())
    moved = {name.partition("@")[0] for name in now ^ then}
    return {
        **found,
        "tasks": {k: v for k, v in found["tasks"].items() if not _reads(v, moved)},
        "texts": {name: commit for name, commit in found["texts"].items() if name not in moved},
    }


def _reads(source: dict[str, str | None], repositories: set[str]) -> bool:
    """Whether the questions of a task come from one of some data sets on the hub."""
    found = QuestionSource.from_json(source)
    return found.kind == "hub" and bool(set(repositories_of(found)) & repositories)


def _is_source(values: dict[str, str | None]) -> dict[str, str | None]:
    try:
        return QuestionSource.from_json(values).to_json()
    except (KeyError, TypeError) as error:
        raise ValueError(f"it has no {error}") from error


_Commit = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]


class _Choice(BaseModel, extra="forbid", strict=True):
    """What was decided of a setting that was left open."""

    value: str | int | float | bool
    why: str


class _KeptSources(BaseModel, extra="forbid", strict=True):
    """The form of a run's ``sources``."""

    tasks: dict[str, Annotated[dict[str, str | None], AfterValidator(_is_source)]]
    texts: dict[str, _Commit | None]
    models: dict[str, _Commit]
    settings: dict[str, dict[str, _Choice]] = {}


def refuse_mixture(config: RunConfig, sources: Sources) -> None:
    """Refuse to add to results of the same models that were made with other settings.

    Cells that this run computes itself do not matter: it replaces them.

    Args:
        config: The run.
        sources: What the names in its settings mean.

    Raises:
        ConfigError: If such results would stay in the folder; the message names them and what
            has changed.
    """
    stale: list[str] = []
    why: dict[str, None] = {}
    records = recorded(config.out)
    for model in dict.fromkeys(r.model for r in records if r.model in config.models):
        own = config.for_model(model)
        try:
            now = shared_inputs(own, fingerprint_of(model, own), sources)
        except StreamlineError:  # its own cells will fail with that
            continue
        others = [r for r in records if r.model == model and r.status == "ok"]
        for record in others:
            if Cell(*record.identity) in expand(own, model):
                continue
            before = record.extra("inputs")
            found = changes(before, now) if isinstance(before, dict) else ["made before this"]
            if found:
                stale.append(f"{record.model} {label(record)}")
                why.update(dict.fromkeys(found))
    if stale:
        shown = ", ".join(stale[:4]) + (f" and {len(stale) - 4} more" if stale[4:] else "")
        raise ConfigError(
            f"{config.out} holds {shown}, made with other settings ({'; '.join(why)}); one "
            "report would show them beside this run's as if they could be compared. Give another "
            "folder with --out, the same settings, or these methods too so that they are redone"
        )


def is_done(folder: Path, job: CellJob, record: Record) -> bool:
    """Whether a cell needs no run: its record has its key, nothing is missing, its files are whole.

    Args:
        folder: The run's folder.
        job: The cell.
        record: Its record.
    """
    if record.key != job.key or record.status == "failed" or record.notes.get("missing"):
        return False
    if record.notes.get("memory"):  # there may be more of it now
        return False
    if record.tasks and samples_checksum(samples_path(folder, record)) is None:
        return False
    written = kept_json(_checksums(folder, job.cell))
    return written is None or written == _beside(folder, job.cell)


def write_checksums(folder: Path, cell: Cell) -> None:
    """Keep the checksums of what a finished cell has written beside its rows: plan and losses."""
    write_json(_checksums(folder, cell), _beside(folder, cell))


def _checksums(folder: Path, cell: Cell) -> Path:
    return folder / "cache" / "checksums" / f"{cell.slug}.json"


def _beside(folder: Path, cell: Cell) -> dict[str, str]:
    """The checksums of a cell's plan and losses, by name."""
    losses = sorted((folder / "losses").glob(f"{escape(cell.slug)}*.jsonl"))
    files = [folder / "plans" / f"{cell.slug}.json", *losses]
    hashes = file_hashes(file for file in files if file.is_file())
    return {file.relative_to(folder).as_posix(): found for file, found in hashes.items()}


def cell_files(folder: Path, record: Record) -> list[Path]:
    """The files and folders that belong to one cell and no other.

    They are named for the cell (samples, plan, losses, training) or for its model's key (answers).

    Args:
        folder: The run's folder.
        record: The cell's record.

    Returns:
        What exists, sorted; nothing that lies inside a folder that is listed itself.
    """
    name = samples_path(folder, record).stem
    answers = record.extra("answers_key")
    key = answers[:16] if isinstance(answers, str) else None
    found: list[Path] = []
    for path in sorted(folder.rglob("*")):
        mine = path.name.startswith(name) or path.name == key
        if mine and not any(other in path.parents for other in found):
            found.append(path)
    return found


def begin_run(folder: Path, settings: dict[str, Any], again: Sequence[Record]) -> None:
    """Write down what a run is, and let go of the cells that are done again."""
    keep_settings(folder, settings)
    note_command(folder)
    forget_cells(folder, again)


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write down what a run is, with a checksum: what was decided in it decides numbers."""
    write_json_atomic(folder / SETTINGS, {"checksum": content_key(settings), **settings})


def remove_cells(folder: Path, records: Sequence[Record]) -> list[Record]:
    """Remove cells: their records, and every file that is theirs alone.

    A cell whose record is gone is computed again by the next run. What cells share, such as the
    calibration, stays.

    Args:
        folder: The run's folder.
        records: The cells.

    Returns:
        The records that remain.

    Raises:
        ConfigError: If a run is using the folder, or shards in it are not put together.
    """
    if part_folders(folder):
        raise ConfigError(
            f"{folder} holds shards that are not put together, in which the cells may lie too; "
            f"first: streamline-bench merge {folder}"
        )
    with claimed(folder):
        note_command(folder)
        return forget_cells(folder, records)


def named_cells(folder: Path, names: Sequence[str]) -> list[Record]:
    """The records of the cells that some names fit, each once.

    Args:
        folder: The run's folder.
        names: ``METHOD@SPARSITY,KEY=VALUE``; an empty one fits all.

    Raises:
        UnknownNameError: If one fits no cell.
        ConfigError: If one is malformed, or there are no records.
    """
    records = load(folder) if names else []
    chosen: list[Record] = []
    for name in names:
        fitting = matching(records, read_selector(name, name), finished=False)
        if not fitting:
            raise unknown_name(f"cell of {folder}", name, [cell_name(r, records) for r in records])
        chosen += [record for record in fitting if record not in chosen]
    return chosen


def forget_cells(folder: Path, records: Sequence[Record]) -> list[Record]:
    """Remove cells from a folder that is claimed: records, and every file that is theirs alone."""
    if not records:
        return []
    remaining = remove(folder, records)
    for path in [path for record in records for path in cell_files(folder, record)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return remaining
