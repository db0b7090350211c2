"""What a run's cells cost, and how far their seeds lie apart.

Example::

    terminal([cost_table(records), seeds_table(records)])
"""

from __future__ import annotations

from collections.abc import Sequence

from streamline.report.frames import seeds_frame, sort_records
from streamline.report.table import MISSING, Table, cells_table, fixed, percent, slug
from streamline.results.record import Record, method_label

__all__ = ["cost_table", "seeds_table"]


def cost_table(records: Sequence[Record]) -> Table:
    """Parameters, time, memory and training tokens of one model's cells."""
    ordered = sort_records(records)
    cells = []
    for record in ordered:
        memory, pruned = record.cost.peak_memory_bytes, record.parameters.pruned
        cells.append(
            (
                fixed(None if pruned is None else pruned / 1e6, ",.1f"),
                fixed(record.cost.calibrate_s, ",.1f"),
                fixed(record.cost.train_s, ",.1f"),
                fixed(record.cost.eval_s, ",.1f"),
                fixed(None if memory is None else memory / 2**30, ".2f"),
                fixed(record.cost.train_tokens, ","),
            )
        )
    return cells_table(
        "cost",
        "cost of each cell",
        ordered,
        [
            "parameters\nmillion",
            "calibrate\ns",
            "train\ns",
            "evaluate\ns",
            "peak memory\nGiB",
            "training\ntokens",
        ],
        cells,
        [
            "Cells are trained and evaluated jointly: the seconds are split evenly among them, and "
            "memory is the peak of all of them, so neither compares methods."
        ],
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
        name=f"seeds-{slug(model)}",
        title=f"{model}: mean ± sample standard deviation over seeds, in percent",
        columns=("method", "target", "seeds", *heads),
        rows=tuple(
            (*key, *(cell.get(measure, MISSING) for measure in measures))
            for key, cell in rows.items()
        ),
        keys=3,
    )
