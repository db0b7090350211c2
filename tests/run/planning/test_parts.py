"""What is planned for layers of which each process has a part, by numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from streamline.engine.decoder import Decoder
from streamline.run.cell import Cell
from streamline.run.planning.parts import Parts
from streamline.run.planning.plan import MARGIN, MemoryPlan, Row
from streamline.testing.models import tiny_config

DECODER = Decoder.from_config(tiny_config("llama", n_layers=8, hidden_size=64))
LAYER = 2 * DECODER.layer_parameters(0)  # bytes of one in bfloat16
WHOLE = 2 * DECODER.n_parameters()
SHELL = WHOLE - 8 * LAYER
CELL = Cell("m", "llm-streamline-ffn", 0.25, 0, "lora")
ROW = Row(CELL, 2, WHOLE // 2, WHOLE // 2 - LAYER)  # without two of its layers
#: Of the dense model and of the pruned one, whose layers are in four parts.
DENSE = SHELL + 8 * LAYER // 4 + 4 * LAYER
PRUNED = SHELL + 6 * LAYER // 4 + 4 * LAYER


def parts(room: int | None, n_processes: int = 4, **more: Any) -> Parts:
    """For a device whose room is what it has but for the margin."""
    memory = None if room is None else int(room / (1 - MARGIN)) + 2
    weights = more.pop("weights", WHOLE)
    plan = MemoryPlan("m", memory)
    return Parts(DECODER, torch.bfloat16, weights, plan, n_processes, **more)


def test_layers_are_lent_where_that_is_what_fits() -> None:
    whole, unmerged = 20 * LAYER, 14 * LAYER
    wanted = max(unmerged + PRUNED - WHOLE, PRUNED, 6 * LAYER)
    assert wanted < whole
    found = parts(WHOLE + wanted)
    assert found.recovered(ROW, whole, unmerged, 0, taught=False) == wanted
    assert found.plan.in_parts == {CELL.label} and found.plan.divided == 4
    for other, kept in (
        (parts(WHOLE + whole), 0),  # holds all
        (parts(None), 0),  # nobody knows
        (parts(WHOLE + wanted, 1), 0),
        (parts(WHOLE + wanted, accelerator=False), 0),
        (parts(WHOLE + wanted), LAYER),  # nor does it hold the parts
    ):
        assert other.recovered(ROW, whole, unmerged, kept, taught=False) == whole
        assert not other.plan.in_parts and other.plan.divided == 1


def test_a_teacher_is_in_parts_too() -> None:
    found = parts(WHOLE + 29 * LAYER)
    alone = found.recovered(ROW, 30 * LAYER, 25 * LAYER, 0, taught=False)
    assert found.recovered(ROW, 30 * LAYER, 25 * LAYER, 0, taught=True) - alone == 2 * LAYER


def test_whole_weights_are_there_before_and_after() -> None:
    found = parts(WHOLE + 19 * LAYER)
    assert found.recovered(ROW, 20 * LAYER, LAYER, 0, taught=False) == max(PRUNED, 6 * LAYER)


@pytest.mark.parametrize("through", [False, True])
def test_replacements_lend_layers_only_where_gradients_pass_through_them(through: bool) -> None:
    found = parts(WHOLE + 19 * LAYER)
    lent = max(20 * LAYER + DENSE - WHOLE, 3 * LAYER + DENSE)
    assert found.replaced(ROW, 20 * LAYER, 3 * LAYER, through=through) == (
        lent if through else 20 * LAYER
    )
    assert found.away == WHOLE - DENSE
    assert bool(found.plan.in_parts) == through


def test_what_is_read_layer_by_layer_is_trained_in_parts_whatever_the_memory() -> None:
    streamed = SHELL + 2 * LAYER
    found = parts(None, weights=streamed, streamed=True, accelerator=False)
    assert found.replaced(ROW, LAYER, LAYER, through=False) == LAYER + DENSE
    more = found.recovered(ROW, 9 * LAYER, 9 * LAYER, 0, taught=False)
    assert more == max(9 * LAYER + PRUNED - streamed, PRUNED)
    assert found.plan.in_parts == {CELL.label}
