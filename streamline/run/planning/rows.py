"""Cells as planned from configs alone: what would go and what would remain.

Example::

    decoder, methods, rows = rows_of("llama2-7b", own, expand(own, "llama2-7b"))
"""

from __future__ import annotations

from collections.abc import Sequence

from streamline.api.guards import Watch
from streamline.api.variants import unsupported_reason
from streamline.engine.decoder import Decoder
from streamline.errors import reason
from streamline.method import Method
from streamline.registry import build_method
from streamline.run.cell import Cell
from streamline.run.config import RunConfig
from streamline.run.planning.plan import Row
from streamline.sources.models import planned_model

__all__ = ["rows_of"]


def rows_of(
    model: str, own: RunConfig, cells: Sequence[Cell], processes: int | None = None
) -> tuple[Decoder, dict[str, Method], list[Row]]:
    """A model without weights, the methods of some cells by their specs, and a row for each.

    Args:
        model: Its name.
        own: The run, as the model has it.
        cells: The cells.
        processes: How many work together; None for as many as there are.
    """
    decoder = Decoder(planned_model(model, trust_remote_code=own.trust_remote_code))
    methods = {cell.method: build_method(cell.method) for cell in cells}
    watch = Watch(decoder)
    rows = [_row(c, methods[c.method], decoder, watch, own, processes) for c in cells]
    return decoder, methods, rows


def _row(
    cell: Cell,
    method: Method,
    decoder: Decoder,
    watch: Watch,
    config: RunConfig,
    processes: int | None,
) -> Row:
    dense, removed, pruned = decoder.n_parameters(), None, None
    try:
        with watch.over(f"{method.name}: unsupported or size"):
            why = unsupported_reason(
                method,
                decoder,
                cell.sparsity,
                recovery=cell.recovery,
                streamed=config.stream,
                processes=processes,
            )
            if why is None and cell.sparsity == 0.0:
                removed, pruned = 0, dense
            elif why is None and (size := method.size(decoder, cell.sparsity)) is not None:
                removed, pruned = size.n_removed, size.pruned
    except Exception as error:  # of this method's code; the other rows are planned
        why = reason(error)
    return Row(cell, removed, dense, pruned, why)
