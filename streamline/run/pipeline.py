"""The verbs that need a model, as functions: run, prune to a checkpoint, evaluate one model.

Launched as several processes (``torchrun``, ``accelerate launch``) every one runs all of it, shares
what takes long (:mod:`streamline.distributed`) and has the result; the first reads and writes.

Example:
    records = run(build_config({"models": "smollm2-135m-instruct", "methods": "shortgpt"}))
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamline.api.session import Session
from streamline.api.variants import load_dense
from streamline.checkpoints.folder import require_free, target_folder
from streamline.checkpoints.info import PLAN, read_info
from streamline.distributed.team import leads, world_size
from streamline.distributed.work import led, shared, together
from streamline.engine.budget import removed_fraction
from streamline.engine.memory import keep_to
from streamline.errors import ConfigError, StreamlineError
from streamline.files import sweep_of, write_bytes_atomic, write_json_atomic
from streamline.progress import Progress
from streamline.results.record import Parameters, Record
from streamline.results.samples import samples_path
from streamline.run.commands import note_command
from streamline.run.config import RunConfig
from streamline.run.deciding.decide import Decided, decided
from streamline.run.executors import executor
from streamline.run.executors.matrix import whole_time
from streamline.run.folder import (
    begin_run,
    claimed,
    kept_sources,
    named_cells,
    refuse_claimed,
    refuse_foreign,
    refuse_mixture,
)
from streamline.run.inputs import Sources, fingerprint_of, settle
from streamline.run.model_run import run_model
from streamline.run.planning.estimate import Estimate, refuse_unfit
from streamline.run.planning.fitting import fitted, fitted_alone
from streamline.run.planning.hours import expecting
from streamline.run.planning.plan import MemoryPlan
from streamline.run.preparation import finished, heard, loading, prepared
from streamline.run.reporting import report_run
from streamline.run.saving.save import save_cells
from streamline.run.shards.agreeing import agreed, plain_settings
from streamline.run.shards.dividing import shard_part
from streamline.run.shards.merging import merge
from streamline.run.shards.part import Part, part_folders, working
from streamline.sources.hub.commits import pinned

#: Lies in the folder that is removed when a checkpoint is done.
_OWN = ".streamline-prune"


def run(
    config: RunConfig, progress: Progress | None = None, redo: Sequence[str] | None = None
) -> list[Record]:
    """Work all cells of a run and write its report.

    What is finished stays finished: cells whose record is there for the same inputs are left
    alone, and the others resume from the last artefact on disk.

    Args:
        config: The run.
        progress: Where to report what is being done.
        redo: Cells to compute anew, as :mod:`streamline.results.select` writes them; an empty text
            means all.

    Returns:
        One record for each cell, failed and skipped ones included.

    Raises:
        ConfigError: If the run cannot fit into the memory or on the disk of this machine, another
            run is using its folder, or results of other settings would stay there.
        StreamlineError: If a model, a text or a set of questions cannot be had at all.
    """
    return together(lambda: _run(config, heard(progress), redo or ()))


def _run(config: RunConfig, progress: Progress, redo: Sequence[str]) -> list[Record]:
    found = shared(lambda: _required(config, bool(redo), progress))
    config = found.config
    if config.shard is not None:
        return _run_shard(found, shared(lambda: shard_part(config)), progress, redo)
    with led(claimed(config.out)), ExitStack() as run_long:
        again, kept, sources = shared(lambda: _settled(config, redo))
        run_long.enter_context(pinned(sources.models))
        run_long.enter_context(expecting(found.expected))
        for remark in sources.origins.remarks:
            progress.say(remark)
        with led(prepared(config, sources, progress, again)):
            # Only now: a run that is refused leaves the sources that the folder keeps to.
            decisions = sources.to_json(kept) | {"settings": found.to_json(kept)}
            settings = plain_settings(config) | {"sources": decisions}
            shared(lambda: begin_run(config.out, settings, again))
            records = executor(config.executor).run(config, progress)
        shared(lambda: report_run(config.out))
        if config.save:
            save_cells(config, sources, progress)
    return records


def _required(config: RunConfig, redo: bool, progress: Progress) -> Decided:
    """Decide what a run leaves open; one that cannot be done here, or there, is refused."""
    if config.executor != "local" and world_size() > 1:
        raise ConfigError(f"use --executor {config.executor} or {world_size()} processes, not both")
    refuse_foreign(config.out)
    with pinned((kept_sources(config) or {}).get("models", {})):
        found = decided(config)
    fit, estimate = _fitted(found.config, redo)
    expected = {model: plan.seconds for model, plan in estimate.times.items()}
    found = replace(found, config=fit, expected=expected)
    for remark in [*found.remarks(), *estimate.remarks, *whole_time(fit, estimate.times)]:
        progress.say(remark)
    return found


def _settled(
    config: RunConfig, redo: Sequence[str]
) -> tuple[list[Record], dict[str, Any] | None, Sources]:
    """Cells that are done again, the sources that the folder keeps to, and those of the run."""
    if part_folders(config.out):
        merge(config.out)
    again, kept = named_cells(config.out, redo), kept_sources(config)
    sources = settle(config, kept)
    with pinned(sources.models):
        refuse_mixture(config, sources)
    return again, kept, sources


def _fitted(config: RunConfig, redo: bool) -> tuple[RunConfig, Estimate]:
    """A run that fits on this machine, and its plan.

    One that is finished needs nothing: its models may be gone from here and from the hub.
    """
    kept = kept_sources(config)
    with pinned((kept or {}).get("models", {})):
        try:
            config, estimate = fitted(config)
            refuse_unfit(estimate, config)
            return config, estimate
        except Exception:
            if kept is None or redo or not finished(config, settle(config, kept)):
                raise
            return config, Estimate()


def _run_shard(found: Decided, part: Part, progress: Progress, redo: Sequence[str]) -> list[Record]:
    """Work one part of the cells beside those that work on the others; there is no report yet."""
    config = found.config
    if redo:
        raise ConfigError(
            "--redo takes cells out of the folder that other shards are working in; put the shards "
            f"together (streamline-bench merge {config.out}) and give --redo without --shard"
        )
    with led(working(config.out, part)), expecting(found.expected):
        shared(lambda: refuse_claimed(config.out))  # by now a run of all cells sees this one
        sources = shared(lambda: agreed(found, part))
        with pinned(sources.models):
            shared(lambda: refuse_mixture(config, sources))
            for remark in sources.origins.remarks:
                progress.say(remark)
            shared(lambda: note_command(part.folder(config.out)))
            with led(prepared(config, sources, progress, part=part)):
                return executor("local").run(config, progress, part)


def prune_to_checkpoint(
    model: str,
    *,
    method: str,
    sparsity: float,
    out: str | Path,
    config: RunConfig,
    verify: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prune one model, train what has to be trained, and save a checkpoint.

    Args:
        model: Alias, hub id or folder.
        method: Method spec.
        sparsity: Fraction of parameters to remove.
        out: Folder of the checkpoint; must not exist or be empty.
        config: Calibration, training and device settings.
        verify: Whether a fresh process compares the folder with the model, before it appears.
        progress: Where to report what is being done.

    Returns:
        The provenance as saved beside the weights.

    Raises:
        ConfigError: If the folder is not empty or no folder's name, or the model does not fit on
            this machine.
        UnsupportedModelError: If the method cannot do it with this model; known before any work.
    """

    def work() -> dict[str, Any]:
        shown = heard(progress)
        alone = {"models": (model,), "methods": (method,), "sparsities": (sparsity,)}
        own = config.for_model(model).model_copy(update={**alone, "per_method": {}})

        def places() -> tuple[RunConfig, MemoryPlan, Path, Path]:
            target = target_folder(out)
            require_free(target)
            found = decided(own)
            settled, plan, remarks = fitted_alone(found.config)
            for remark in found.remarks() + remarks:
                shown.say(remark)
            cache = _unfinished(target.resolve())
            cache.mkdir(parents=True, exist_ok=True)
            (cache / _OWN).touch()
            return settled, plan, target, cache

        settled, plan, target, cache = shared(places)
        with led(claimed(cache)):
            fingerprint = shared(lambda: fingerprint_of(model, settled))
            dense = load_dense(model, fingerprint, shown, **loading(settled))
            keep_to(settled.memory, dense.decoder.device)
            with Session(
                dense,
                folder=cache,
                texts=settled.calibration.texts,
                n_samples=settled.calibration.n_samples,
                length=settled.calibration.length,
                memory=plan.students,
                progress=shown,
            ) as session:
                made = session.prune(
                    method,
                    sparsity=sparsity,
                    train=settled.training.model_copy(
                        update={"texts": settled.training.texts or settled.calibration.texts}
                    ),
                    lora=None if settled.recovery == ("none",) else settled.lora,
                    kd=settled.kd if settled.recovery == ("kd",) else None,
                    seed=settled.seeds[0],
                )
                shared(lambda: made.save(target, verify=verify))
        if leads():
            shutil.rmtree(cache, ignore_errors=True)
        return made.provenance

    return together(work)


def _unfinished(target: Path) -> Path:
    """Where the calibration and training of a checkpoint are kept until it is there.

    Raises:
        ConfigError: If a folder of that name holds something else.
    """
    cache = target.with_name(f".{target.name}.unfinished")
    if cache.exists() and not (cache / _OWN).is_file() and any(cache.iterdir()):
        raise ConfigError(
            f"{cache} is where the work for {target} would be kept, and it holds something else; "
            "remove it or give another folder with --out"
        )
    return cache


def evaluate_model(
    model: str, *, out: Path, config: RunConfig, progress: Progress | None = None
) -> Record:
    """Evaluate one model or checkpoint as it is and write its record.

    Args:
        model: Alias, hub id, local model or checkpoint folder.
        out: File that receives the record.
        config: Tasks, limits and device settings.
        progress: Where to report what is being done.

    Returns:
        The record; its ``method`` is ``dense`` because the model itself is what was evaluated; of a
        checkpoint, plan and parameters say what was removed and ``notes["checkpoint"]`` how. Its
        per-question rows lie beside it, in a file of the same name ending in ``.parquet``.

    Raises:
        ConfigError: If ``out`` is a folder, or would be the rows' own file.
    """
    folder = out.parent / f".{out.stem}-run"

    def require() -> None:
        if out.is_dir() or out.suffix == ".parquet":
            raise ConfigError(
                f"{out} cannot be the record: give the name of a file, such as {out.stem}.json "
                "(the samples go beside it, ending in .parquet)"
            )

    def write(found: Record) -> Record:
        record = _as_pruned(found, model)
        rows, target = samples_path(folder, record), out.with_suffix(".parquet")
        sweep_of(out)
        sweep_of(target)
        if record.status == "ok" and rows.is_file():
            write_bytes_atomic(target, rows.read_bytes())
        else:
            target.unlink(missing_ok=True)  # of another model or other tasks
        write_json_atomic(out, record.to_json())
        return record

    def work() -> Record:
        shared(require)
        alone = config.model_copy(update={"models": (model,), "methods": ("dense",), "out": folder})
        with led(claimed(folder)):
            (found,) = run_model(alone, model, heard(progress))
            return shared(lambda: write(found))

    return together(work)


def _as_pruned(record: Record, model: str) -> Record:
    """The record of a checkpoint with what was removed of the dense model; any other as it is."""
    folder = Path(model).expanduser()
    if record.status != "ok" or not (folder / PLAN).is_file():
        return record
    try:
        info = read_info(folder)
    except (StreamlineError, ValueError, KeyError) as error:  # the model itself was measured
        notes = {**record.notes, "checkpoint": f"{folder / PLAN} cannot be read: {error}"}
        return record.model_copy(update={"notes": notes, "plan": None, "parameters": Parameters()})
    dense, left = info.provenance.get("dense_parameters"), record.parameters.pruned
    lost = None
    if isinstance(dense, int) and left is not None:
        lost = removed_fraction(dense, left)
    plan, cell = info.plan, info.provenance.get("cell")
    return Record.build(
        record.to_json()
        | {
            "plan": {
                "removed_layers": plan.removed_layers,
                "kept_layers": plan.kept_layers,
                "replacement": plan.replacement,
            },
            "parameters": {"dense": dense, "pruned": left, "removed_fraction": lost},
            "efficiency": record.efficiency and record.efficiency.alone(),
            "notes": {**record.notes, "checkpoint": cell},
        }
    )
