"""What a run would do, from configs alone: cells, exact parameter counts, compute, memory, disk.

Nothing is downloaded but a model's config, and for the known models not even that. Memory and disk
are lower bounds, so what they refuse cannot run; what they let pass may still be tight.

Example:
    for row in plan_run(config).rows:
        print(row.cell.label, row.n_removed, row.removed_fraction)
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch

from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError, reason
from streamline.method import Method
from streamline.run.cell import Cell, expand
from streamline.run.config import RunConfig
from streamline.run.deciding.decide import decided
from streamline.run.measuring.texts import planned_texts
from streamline.run.planning.asked import asked_of
from streamline.run.planning.cards import CARDS
from streamline.run.planning.hours import TimePlan, plan_hours
from streamline.run.planning.plan import Row, gib
from streamline.run.planning.rows import rows_of
from streamline.run.planning.work import added, resident
from streamline.run.shards.dividing import shard_part
from streamline.sources.models import local_folder, resolve_model

__all__ = [
    "Estimate",
    "Row",
    "check_fits",
    "device_memory",
    "plan_run",
    "refuse_unfit",
    "run_memory",
]

_HUB_BYTES = 2  # of a parameter in the weights on the hub; the least that is common
_STATE_COPIES = 4  # of a network in float32: weights, two moments and the best of them


@dataclass
class Estimate:
    """A whole run as planned.

    Attributes:
        rows: One for each cell.
        tokens: Tokens by use (calibration, training, recovery of all recovered cells, held-out
            text), of all models together.
        times: How long each model's cells take, by the model.
        memory_bytes: Least device memory: the weights of the largest model.
        download_bytes: Weights that are not on this machine yet.
        work_bytes: What the run writes into its folder: training states and cached activations.
        broken: Models that cannot be planned, and why.
        remarks: What is to be said before the run: texts longer than a model's positions.
        texts: What is read of which text, rows of :func:`planned_texts`.
    """

    rows: list[Row] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    times: dict[str, TimePlan] = field(default_factory=dict)
    memory_bytes: int = 0
    download_bytes: int = 0
    work_bytes: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    texts: list[dict[str, str]] = field(default_factory=list)


def plan_run(config: RunConfig) -> Estimate:
    """Plan every cell of a run from configs alone.

    Args:
        config: The run.

    Returns:
        The rows and what they would cost.

    Raises:
        AssetError: If a name cannot be that of a model.
        Exception: What keeps the first model from being planned, if none can be.
    """
    estimate, errors = Estimate(), list[Exception]()
    for model in config.models:
        resolve_model(model)
    config = decided(config).config
    part = shard_part(config)
    for model in config.models:
        try:
            own = config.for_model(model)
            if cells := part.of(expand(own, model)):
                _add_model(estimate, model, own, cells)
        except Exception as error:  # of this model; the others are planned
            errors.append(error)
            estimate.broken[model] = reason(error)
    if len(errors) == len(config.models):
        raise errors[0]
    return estimate


def _add_model(estimate: Estimate, model: str, own: RunConfig, cells: list[Cell]) -> None:
    """Add some of one model's cells and what they cost."""
    decoder, methods, rows = rows_of(model, own, cells)
    estimate.remarks += _too_long(rows, methods, decoder, own)
    estimate.rows += rows
    _add_costs(estimate, rows, methods, decoder, own)
    estimate.times[model] = plan_hours(own, rows, methods, decoder, asked_of(own))
    if local_folder(model) is None:
        estimate.download_bytes += decoder.n_parameters() * _HUB_BYTES


def _too_long(
    rows: list[Row], methods: dict[str, Method], decoder: Decoder, config: RunConfig
) -> list[str]:
    """Remarks on sequences that are longer than a model's positions.

    Raises:
        UnsupportedModelError: If there are no positions for them.
    """
    pruned = [row.cell for row in rows if row.reason is None and row.cell.sparsity]
    trained = any(methods[cell.method].trains or cell.recovery != "none" for cell in pruned)
    lengths = {
        "calibration": config.calibration.length if pruned else 0,
        "training": config.training.length if trained else 0,
    }
    found = (decoder.check_length(n, f"a {use} sequence") for use, n in lengths.items())
    return [remark for remark in found if remark is not None]


def _add_costs(
    estimate: Estimate,
    rows: list[Row],
    methods: dict[str, Method],
    decoder: Decoder,
    config: RunConfig,
) -> None:
    """Add one model's tokens, memory and disk."""
    training = config.training
    training = training.model_copy(update={"texts": training.texts or config.calibration.texts})
    working = [row for row in rows if row.reason is None]
    pruned = [row for row in working if row.cell.sparsity]
    trained = [row for row in pruned if methods[row.cell.method].trains]
    decisions = {row.cell.identity[:-1]: row for row in trained}  # whatever recovers them
    brought = sum(added(row, decoder) for row in decisions.values())
    tuned = [row for row in working if row.cell.recovery != "none"]
    tokens = {
        "calibration": config.calibration.n_samples * config.calibration.length * bool(pruned),
        "training": training.seen_tokens * bool(trained),
        "recovery": config.lora.planned_tokens(training) * len(tuned),
        "heldout": config.perplexity.n_tokens,
    }
    planned = planned_texts(
        config,
        prunes=bool(pruned),
        trains=bool(trained),
        tunes=bool(tuned),
        distils=any(row.cell.recovery == "kd" for row in tuned),
        domains=any(methods[row.cell.method].by_domain for row in pruned),
    )
    estimate.texts += [row for row in planned if row not in estimate.texts]
    for name, count in tokens.items():
        estimate.tokens[name] = estimate.tokens.get(name, 0) + count
    memory = resident(decoder, getattr(torch, config.dtype), streamed=config.stream)
    estimate.memory_bytes = max(estimate.memory_bytes, memory)
    estimate.work_bytes += brought * 4 * _STATE_COPIES + training.cache_bytes * bool(trained)


def device_memory(name: str) -> int | None:
    """Bytes of a device of this machine, or None if it has no such device or its size is unknown.

    Args:
        name: As ``--device``. Without an accelerator, ``auto`` is the main memory, of which a
            container may have only a part.
    """
    if name.startswith("cuda") or (name == "auto" and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            return None
        place = torch.device("cuda" if name == "auto" else name)
        return int(torch.cuda.get_device_properties(place).total_memory)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return memory if text == "max" else min(memory, int(text))


def run_memory(config: RunConfig) -> int | None:
    """Bytes that a run may take on this machine, or None if that is unknown.

    With another executor other machines do the work and this one does not count; with
    ``device_map`` a model has all accelerators, and the main memory for what does not fit there.
    What the run is given by ``memory`` is no more than the machine has, unless it is only planned;
    one that is planned for a card has its memory.
    """
    if config.plan_for is not None:
        main = device_memory("cpu") if config.device_map is not None else 0
        return (config.memory or CARDS[config.plan_for].memory) + (main or 0)
    found = _machine_memory(config)
    if config.memory is None or (
        found is not None and found < config.memory and not config.dry_run
    ):
        return found
    return config.memory


def _machine_memory(config: RunConfig) -> int | None:
    if config.executor != "local":
        return None
    if config.device_map is None:
        return device_memory(config.device)
    places = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    found = [device_memory(place) for place in (*places, "cpu")]
    return None if None in found else sum(size for size in found if size is not None)


def check_fits(estimate: Estimate, out: Path, memory: int | None) -> list[str]:
    """What cannot fit on this machine, in words; empty if all can.

    Args:
        estimate: From :func:`plan_run`.
        out: The run's folder, on whose disk the artefacts go.
        memory: Bytes of the device, or None if unknown.
    """
    problems = []
    if memory is not None and estimate.memory_bytes > memory:
        problems.append(
            f"the run needs at least {gib(estimate.memory_bytes)} of device memory, and there are "
            f"{gib(memory)}; use --dtype bfloat16, fewer methods or sparsities at once, a "
            "smaller model or a larger device"
        )
    from huggingface_hub.constants import HF_HUB_CACHE

    needs: dict[Path, int] = {}
    for folder, size in ((Path(HF_HUB_CACHE), estimate.download_bytes), (out, estimate.work_bytes)):
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        same = next((p for p in needs if p.stat().st_dev == there.stat().st_dev), there)
        needs[same] = needs.get(same, 0) + size
    for folder, size in needs.items():
        free = shutil.disk_usage(folder).free
        if size > free:
            problems.append(
                f"the run needs at least {gib(size)} of disk at {folder} (weights and training "
                f"states), and {gib(free)} are free; free some, or set HF_HOME or --out to a "
                "larger disk"
            )
    return problems


def refuse_unfit(estimate: Estimate, config: RunConfig) -> None:
    """Refuse a run whose plan cannot fit on this machine.

    Raises:
        ConfigError: If memory or disk are too small.
    """
    problems = check_fits(estimate, config.out, run_memory(config))
    if problems:
        raise ConfigError("; ".join(problems))
