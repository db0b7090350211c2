"""Checkpoints of a run's cells: those that ``--save`` means, and any that is named later.

They lie in ``DIR/checkpoints``, one folder a cell; what is there for the same key stays.

Example::

    save_cells(config, sources, progress)                     # after the run, if it has `save`
    export_cell("out/run:shortgpt@0.25", "out/short")         # any time later
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from streamline.api.pruned_model import PrunedModel
from streamline.api.variants import load_dense
from streamline.checkpoints.folder import CLAIM, require_free, target_folder
from streamline.checkpoints.formats.serving import FORMATS, write_format
from streamline.checkpoints.info import PLAN, read_info
from streamline.distributed.work import led, shared, together
from streamline.errors import ConfigError, StreamlineError, unknown_name
from streamline.evaluation.questions import heldout_name
from streamline.files import temporary_folder
from streamline.progress import Prefixed, Progress
from streamline.registry import base_name
from streamline.report.artifacts import run_settings
from streamline.results.record import Record, label
from streamline.results.record_file import recorded
from streamline.results.select import dense_of, run_records, select, split
from streamline.run.cell import Cell, expand
from streamline.run.config import RunConfig
from streamline.run.folder import claimed, kept_sources
from streamline.run.inputs import Sources, fingerprint_of, settle
from streamline.run.preparation import heard, loading
from streamline.run.saving.remade import Remaking, job_of
from streamline.sources.hub.commits import pinned

__all__ = ["best_cells", "export", "export_cell", "save_cells"]

FOLDER = "checkpoints"


def save_cells(config: RunConfig, sources: Sources, progress: Progress) -> list[Path]:
    """Save the checkpoints that a finished run was asked for.

    Args:
        config: The run; of cells that failed there is none.
        sources: What the names in its settings mean.
        progress: Where to report what is being done.

    Returns:
        Their folders, those that were there already included.

    Raises:
        ConfigError: If a cell would be another model today.
        AssetError: If a fresh process finds another model in a folder than the one in memory.
    """
    folders: list[Path] = []
    for name in config.models:
        own = config.for_model(name)
        shown = Prefixed(progress, name) if len(config.models) > 1 else progress
        places, missing, fingerprint = shared(partial(_wanted, own, name))
        if missing:
            dense = load_dense(name, fingerprint, shown, **loading(own))
            remaking = Remaking(own, sources, dense, shown)
            for at, record in missing.items():
                shown.stage(f"save {label(record)}")
                made = remaking.model(record)
                shared(partial(_replace, at, made, record, own.out))
                shown.say(f"saved {label(record)}: {at}")
        folders += places
    return folders


def _wanted(own: RunConfig, name: str) -> tuple[dict[Path, Record], dict[Path, Record], str]:
    """The folders of a model's checkpoints, those that are not there, its fingerprint for these."""
    cells = {cell.identity for cell in expand(own, name)}
    done = [r for r in recorded(own.out) if r.identity in cells and r.status == "ok"]
    # Where a cell's model can be served is an empty list if no checkpoint holds it.
    wanted = [record for record in done if record.sparsity and record.extra("serves_in") != []]
    if own.save == "best":
        wanted = best_cells(wanted, heldout_name(own.perplexity.texts))
    places = {_place(own.out, record): record for record in wanted}
    missing = {at: record for at, record in places.items() if not _is_there(at, record)}
    return places, missing, fingerprint_of(name, own) if missing else ""


def _replace(at: Path, made: PrunedModel, record: Record, run: Path) -> None:
    """Save a checkpoint in place of what lies there."""
    shutil.rmtree(at, ignore_errors=True)
    _save(at, made, record, run)


def _save(at: Path, made: PrunedModel, record: Record, run: Path, *, verify: bool = True) -> None:
    """Save a checkpoint with what its run has measured of it and of the dense model."""
    made.save(at, verify=verify, record=record, dense=dense_of(record, recorded(run)))


def best_cells(records: Sequence[Record], text: str) -> list[Record]:
    """The cell of lowest perplexity at each sparsity.

    Args:
        records: Finished cells of one model.
        text: The held-out text's name; what the model is asked decides nothing.
    """
    best: dict[float, Record] = {}
    for record in records:
        found = record.summary.perplexity.get(text)
        there = best.get(record.sparsity)
        least = math.inf if there is None else there.summary.perplexity[text] or math.inf
        if found is not None and found < least:
            best[record.sparsity] = record
    return list(best.values())


def export(
    source: str,
    out: str | Path,
    *,
    to: str | None = None,
    verify: bool = True,
    progress: Progress | None = None,
    **machine: Any,
) -> None:
    """Save a finished cell of a run as a checkpoint, or a cell or a checkpoint in another format.

    Args:
        source: ``RUN:METHOD@SPARSITY,KEY=VALUE``, or with ``to`` also a checkpoint's folder.
        out: What is to be made; must not exist or be empty.
        to: One of :data:`streamline.checkpoints.formats.serving.FORMATS`; None for a checkpoint.
        verify: As for :func:`export_cell`.
        progress: Where to report what is being done.
        **machine: As for :func:`export_cell`.

    Raises:
        UnknownNameError: If there is no such format.
        UnsupportedModelError: If the format cannot hold the model; the message says why.
        ConfigError: If there is no such cell or checkpoint, or nothing to be done with it.
    """
    target = target_folder(out)
    if to is not None and to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    require_free(target)
    made = Path(source).expanduser()
    if (made / PLAN).is_file():
        if to is None:
            raise ConfigError(
                f"{source} is a checkpoint already; --to writes it in another format: "
                f"{', '.join(FORMATS)}"
            )
        write_format(made, to, target)
    elif to is None:
        export_cell(source, target, verify=verify, progress=progress, **machine)
    else:
        # Locked as a save is, so that what a killed export leaves is known and removed.
        with temporary_folder(target.resolve()) as between, FileLock(between / CLAIM):
            cell = between / "cell"
            export_cell(source, cell, verify=verify, progress=progress, **machine)
            write_format(cell, to, target)


def export_cell(
    source: str,
    out: str | Path,
    *,
    verify: bool = True,
    progress: Progress | None = None,
    **machine: Any,
) -> dict[str, Any]:
    """Save the checkpoint of a finished cell of a run.

    Args:
        source: ``RUN:METHOD@SPARSITY,KEY=VALUE``.
        out: Folder of the checkpoint; must not exist or be empty.
        verify: Whether a fresh process compares the folder with the model, before it appears.
        progress: Where to report what is being done.
        **machine: ``device``, ``device_map`` and ``trust_remote_code``; a run's folder decides
            none of them, and code that it names runs by the last alone.

    Returns:
        The provenance as saved beside the weights.

    Raises:
        ConfigError: If there is no such cell, it would be another model today, or its training is
            not kept any more; known before any work where the record says so.
    """

    def work() -> dict[str, Any]:
        shown = heard(progress)
        target = shared(lambda: _free(out))
        record, config = shared(lambda: _cell(source, machine))
        own = config.for_model(record.model)
        with led(claimed(config.out)):
            sources = shared(lambda: settle(own, kept_sources(config)))
            with pinned(sources.models):

                def known() -> str:
                    fingerprint = fingerprint_of(record.model, own)
                    job_of(record, own, sources, fingerprint)
                    return fingerprint

                dense = load_dense(record.model, shared(known), shown, **loading(own))
                made = Remaking(own, sources, dense, shown).model(record)
                shown.stage("save")
                shared(lambda: _save(target, made, record, config.out, verify=verify))
        return made.provenance

    return together(work)


def _free(out: str | Path) -> Path:
    target = target_folder(out)
    require_free(target)
    return target


def _cell(source: str, machine: dict[str, Any]) -> tuple[Record, RunConfig]:
    """The record that a source names, and the run it belongs to, with that cell's method alone."""
    path, selector = split(source)
    found = run_records(path)
    settings = run_settings(path) if path.is_dir() else {}
    if found is None or not settings:
        raise ConfigError(
            f"{source} is no cell of a run's folder; give RUN:METHOD@SPARSITY,KEY=VALUE, such as "
            "out/run:shortgpt@0.25, with the folder that a run wrote with --out"
        )
    record = select(found[0], selector, source)
    if not record.sparsity:
        raise ConfigError(
            f"{source} is the dense model, of which there is a checkpoint already: "
            f"{record.model}; name a pruned cell, such as {path}:shortgpt@0.25"
        )
    if ":" in base_name(record.method) and not machine.get("trust_remote_code"):
        raise ConfigError(
            f"{source} was made by code that the run's folder names: {record.method}. Give "
            "--trust-remote-code if you trust it"
        )
    fields = {name: settings[name] for name in RunConfig.model_fields if name in settings}
    fields |= {"trust_remote_code": False, "out": path, "methods": record.method} | machine
    of_models = fields.get("per_model") or {}
    fields["per_model"] = {
        name: {k: v for k, v in own.items() if k != "methods"} for name, own in of_models.items()
    }
    return record, RunConfig.model_validate(fields)


def _place(out: Path, record: Record) -> Path:
    return out / FOLDER / Cell(*record.identity).slug


def _is_there(folder: Path, record: Record) -> bool:
    """Whether a folder holds the checkpoint of a cell as it was measured."""
    try:
        return read_info(folder).provenance.get("key") == record.key
    except StreamlineError:
        return False
