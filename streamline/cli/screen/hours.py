"""How long a run will take, as ``--dry-run`` shows it: by stages, by models, and in all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from streamline.cli.screen.show import show_table, show_text, show_warning
from streamline.progress import clock

if TYPE_CHECKING:
    from streamline.run.config import RunConfig
    from streamline.run.planning.hours import TimePlan

__all__ = ["show_times"]

_MOST_NAMES = 6


def show_times(plans: Sequence[TimePlan], config: RunConfig) -> None:
    """Print how long each model's cells take, and all together.

    Args:
        plans: One for each model.
        config: The run.
    """
    from streamline.run.planning.cards import CARDS

    for plan in plans:
        _show(plan)
    known = [plan.seconds for plan in plans if plan.seconds is not None]
    if len(known) > 1:
        print(f"\ntime in all: about {clock(sum(known))}")
    if config.plan_for is not None:
        formats = {config.for_model(plan.model).dtype for plan in plans}
        for remark in filter(None, map(CARDS[config.plan_for].remark, sorted(formats))):
            show_warning(remark)


def _show(plan: TimePlan) -> None:
    if plan.rates is None:
        why = f"not planned: {plan.why}" if plan.why else "seconds, not worth measuring the device"
        print()
        show_text(f"time of {plan.model}: {why}")
    elif plan.seconds is not None:
        print(f"\ntime of {plan.model}: about {clock(plan.seconds)} on {plan.rates.title}")
        show_text(f"  {plan.rates.origin}")
    if plan.rates is not None or plan.why:
        rows = [
            {
                "stage": row.stage,
                "of": row.of,
                "TFLOP": f"{row.flops / 1e12:,.1f}",
                "time": None if row.seconds is None else clock(row.seconds),
            }
            for row in plan.rows
        ]
        show_table(rows, ["stage", "of", "TFLOP", "time"])
    if plan.untold:
        show_text(
            f"  not planned: {_names(plan.untold)}, which do not tell what their search takes; one "
            "pass of the calibration is counted"
        )
    if plan.assumed:
        show_text(f"  2,000 questions are assumed of {_names(plan.assumed)}")


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
