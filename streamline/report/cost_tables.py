"""How fast a run's models are, where they can be served, what cells cost, how far seeds lie apart.

Example::

    terminal([efficiency_table(records), cost_table(records), seeds_table(records)])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from streamline.report.frames import CELL, seeds_frame, sort_records
from streamline.report.table import MISSING, Table, cells_table, fixed, percent
from streamline.results.blocks.efficiency import WAYS, Counts, Efficiency, Phase
from streamline.results.record import Record, label, method_label

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["cost_table", "efficiency_frame", "efficiency_table", "seeds_table", "serving_table"]


def efficiency_table(records: Sequence[Record]) -> Table:
    """How fast and how large one model's variants are beside the dense model.

    Args:
        records: Of one model; those whose efficiency is not known are left out.

    Returns:
        The table; no rows where nothing was measured.
    """
    ordered = [one for one in sort_records(records) if one.efficiency is not None]
    found = [(one, one.efficiency) for one in ordered if one.efficiency is not None]
    speeds = {
        (phase, speed.batch): speed
        for _, values in found
        for phase in PHASES
        for speed in getattr(values, phase)
    }
    batches = sorted(speeds, key=lambda key: (PHASES.index(key[0]), key[1]))
    heads = [f"{phase}\nx, batch {batch}" for phase, batch in batches]
    cells = []
    for _, values in found:
        before = values.dense or Counts()
        first, peak = values.time_to_first_token_seconds, values.peak_memory_bytes
        cells.append(
            (
                *(_ratio(values, phase, batch) for phase, batch in batches),
                fixed(None if first is None else 1000 * first.median, ",.0f"),
                fixed(None if peak is None else peak / 2**20, ",.0f"),
                _share(values.checkpoint_bytes, before.checkpoint_bytes),
                _share(values.flops_per_token, before.flops_per_token),
                _share(values.kv_cache_bytes_per_token, before.kv_cache_bytes_per_token),
            )
        )
    columns = [*heads, "first\nms", "memory\nMiB", "file\n%", "FLOPs\n%", "KV\n%"]
    return _telling(
        cells_table(
            "efficiency",
            "speed and size beside the dense model",
            ordered,
            columns,
            cells,
            _efficiency_notes(ordered),
        )
    )


PHASES: tuple[Phase, ...] = ("prefill", "decode")


def _ratio(values: Efficiency, phase: Phase, batch: int) -> str:
    """Times faster than dense, with quartiles."""
    speed = values.speed(phase, batch)
    ratio = None if speed is None else speed.ratio
    if ratio is None:
        return MISSING
    return f"{ratio.median:.2f} ({ratio.lower:.2f}-{ratio.upper:.2f})"


def _share(own: int | None, dense: int | None) -> str:
    """What is left of the dense model's, in percent."""
    return percent(None if own is None or not dense else own / dense)


def _efficiency_notes(records: Sequence[Record]) -> list[str]:
    """How it was measured, what stands for what, and why ratios are not as promised."""
    notes: dict[str, list[str]] = {}
    for record in records:
        values = record.efficiency
        if values is None:
            continue
        lengths = dict.fromkeys(f"{speed.length}" for speed in values.prefill)
        if values.way is not None:
            how = (
                f"Times faster than the dense model, measured in turn with it, median (quartiles); "
                f"{WAYS.get(values.way, values.way)}; prompts of {' and '.join(lengths)} tokens; "
                f"{values.dtype or 'unknown numbers'} on {values.device or 'an unknown device'}"
            )
            notes.setdefault(how, [])
        for text in (values.note, values.reason):
            if text:
                notes.setdefault(text, []).append(label(record))
        if values.measured_on:
            shared = f"of the same shape as {values.measured_on}, and measured as that"
            notes.setdefault(shared, []).append(label(record))
    return [f"{', '.join(names)}: {text}" if names else f"{text}." for text, names in notes.items()]


def efficiency_frame(records: Sequence[Record]) -> pd.DataFrame:
    """What was counted and measured of each model, one row per record, phase and batch.

    Returns:
        The cell's five names; level, way, device, dtype, threads; parameters, checkpoint_bytes,
        flops_per_token, kv_cache_bytes_per_token, peak_memory_bytes and time_to_first_token_seconds
        (median), each also with ``dense_``; phase, batch, length, tokens, n; tokens_per_second,
        dense_tokens_per_second and ratio, each with ``_lower`` and ``_upper``; measured_on, note,
        reason.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for record in sort_records(records):
        values = record.efficiency
        if values is None:
            continue
        flat = values.model_dump(mode="json")
        own = {name: getattr(record, name) for name in CELL}
        own |= {name: flat[name] for name in ("level", "way", "device", "dtype", "threads")}
        for name in Counts.model_fields:
            own |= {name: flat[name], f"dense_{name}": (flat["dense"] or {}).get(name)}
        for name in ("peak_memory_bytes", "dense_peak_memory_bytes"):
            own[name] = flat[name]
        for name in ("time_to_first_token_seconds", "dense_time_to_first_token_seconds"):
            own[name] = (flat[name] or {}).get("median")
        last = {name: flat[name] for name in ("measured_on", "note", "reason")}
        speeds: list[dict[str, Any]] = [
            {"phase": phase, **speed} for phase in PHASES for speed in flat[phase]
        ]
        for speed in speeds or [{}]:
            row = own | {"phase": speed.get("phase")}
            row |= {name: speed.get(name) for name in ("batch", "length", "tokens", "n")}
            for name in ("tokens_per_second", "dense_tokens_per_second", "ratio"):
                spread = speed.get(name) or {}
                row[name] = spread.get("median")
                row |= {f"{name}_{end}": spread.get(end) for end in ("lower", "upper")}
            rows.append(row | last)
    return pd.DataFrame(rows)


def cost_table(records: Sequence[Record]) -> Table:
    """What training and calibrating one model's cells took, as far as it tells them apart.

    Seconds and memory of work that several cells shared belong to none of them and are not shown.

    Args:
        records: Of one model.

    Returns:
        The table without columns in which no two cells differ; no rows where none is left.
    """
    ordered = [one for one in sort_records(records) if one.status == "ok" and one.sparsity]
    cells = []
    for record in ordered:
        cost = record.cost
        calibrated, trained = cost.calibrate_with == 1, cost.train_with == 1
        cells.append(
            (
                fixed(cost.calibrate_tokens, ","),
                fixed(_over(cost.calibrate_flops, 1e12), ",.2f"),
                fixed(cost.calibrate_s if calibrated else None, ",.1f"),
                fixed(cost.train_tokens, ","),
                fixed(cost.train_steps, ","),
                fixed(_over(cost.train_flops, 1e12), ",.2f"),
                fixed(cost.train_s if trained else None, ",.1f"),
                fixed(_over(cost.train_peak_memory_bytes if trained else None, 2**30), ",.2f"),
            )
        )
    columns = [
        "calibration\ntokens", "calibration\nTFLOP", "calibration\ns",
        "training\ntokens", "training\nsteps", "training\nTFLOP", "training\ns",
        "training\nGiB",
    ]  # fmt: skip
    return _telling(
        cells_table(
            "cost",
            "what calibration and training took",
            ordered,
            columns,
            cells,
            ["Tokens, steps and FLOPs are those that a cell needs by itself; seconds and memory "
             "stand where it had them to itself."],
        )
    )  # fmt: skip


def serving_table(records: Sequence[Record]) -> Table:
    """Where one model's variants can be served, as their checkpoints are or in another format.

    Args:
        records: Of one model; those that do not say so are left out.

    Returns:
        The table; no rows where none says so.
    """
    known = [(one, one.extra("serves_in")) for one in sort_records(records) if one.sparsity]
    found = {id(one): places for one, places in known if isinstance(places, list) and places}
    ordered = [one for one, _ in known if id(one) in found]
    cells = [(", ".join(map(str, found[id(one)])),) for one in ordered]
    notes = [
        "Behind a tool stands what it needs: (--to FORMAT) of `streamline-bench export`, or the "
        "code that lies in the checkpoint (trust_remote_code)."
    ]
    table = cells_table("serving", "where it can be served", ordered, ["serves in"], cells, notes)
    return replace(table, words=len(table.columns))


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _telling(table: Table) -> Table:
    """A table without the columns in which no two rows differ; without rows if none is left."""
    tells = [
        index
        for index in range(table.keys, len(table.columns))
        if len({row[index] for row in table.rows}) > 1
    ]
    chosen = [*range(table.keys), *tells]
    return replace(
        table,
        columns=tuple(table.columns[index] for index in chosen),
        rows=tuple(tuple(row[index] for index in chosen) for row in table.rows if tells),
    )


def seeds_table(records: Sequence[Record]) -> Table:
    """Mean and sample standard deviation over seeds of one model's cells run more than once."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for row in seeds_frame(records).to_dict("records"):
        name = method_label(row["method"], row["recovery"])
        cell = rows.setdefault((name, f"{row['sparsity']:g}", str(row["seeds"])), {})
        cell[row["measure"]] = percent(row["mean"], row["std"])
    model = records[0].model if records else "no model"
    measures = ("accuracy", "relative_accuracy", "stability")
    heads = ("average\naccuracy", "relative\naccuracy", "stability")
    return Table(
        name=f"seeds-{model}",
        title=f"{model}: mean ± sample standard deviation over seeds, in percent",
        columns=("method", "target", "seeds", *heads),
        rows=tuple(
            (*key, *(cell.get(measure, MISSING) for measure in measures))
            for key, cell in rows.items()
        ),
        keys=3,
    )
