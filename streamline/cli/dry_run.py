"""What ``--dry-run`` shows: cells, exact sizes and estimated costs, from configs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamline.cli.show import show_table, show_warning

if TYPE_CHECKING:
    from streamline.config import RunConfig
    from streamline.sizing import Estimate

__all__ = ["show_plan"]


def show_plan(config: RunConfig) -> None:
    """Print what a run would do, and warn of what does not fit on this machine.

    Args:
        config: The run.

    Raises:
        StreamlineError: If a model's config or a method cannot be had.
    """
    from streamline.sizing import check_fits, plan_run

    estimate = plan_run(config)
    show_table(
        [
            {
                "model": row.cell.model,
                "method": row.cell.method,
                "asked": f"{row.cell.sparsity:g}",
                "seed": row.cell.seed,
                "recovery": row.cell.recovery,
                "layers": row.n_removed,
                "dense": f"{row.dense:,}",
                "pruned": None if row.pruned is None else f"{row.pruned:,}",
                "removed": None if row.removed_fraction is None else f"{row.removed_fraction:.2%}",
                "note": row.reason or (None if row.pruned is not None else "known after a run"),
            }
            for row in estimate.rows
        ],
        (
            "model",
            "method",
            "asked",
            "seed",
            "recovery",
            "layers",
            "dense",
            "pruned",
            "removed",
            "note",
        ),
    )
    print()
    for line in _costs(estimate):
        print(line)
    for problem in check_fits(estimate, config.out, _device_memory(config.device)):
        show_warning(problem)


def _costs(estimate: Estimate) -> list[str]:
    """Tokens, compute, memory and disk, one line each."""
    tokens = ", ".join(f"{name} {count:,}" for name, count in estimate.tokens.items())
    compute = ", ".join(
        f"{name.replace('_', ' ')} {value / 1e12:,.2f}" for name, value in estimate.flops.items()
    )
    return [
        f"tokens:  {tokens}",
        f"compute: {compute} (10^12 floating-point operations)",
        f"memory:  {estimate.memory_bytes / 2**30:,.2f} GiB at least",
        f"disk:    {estimate.disk_bytes / 2**30:,.2f} GiB of weights",
    ]


def _device_memory(name: str) -> int | None:
    """Bytes of a device of this machine, or None if it has no such device or does not tell."""
    import os

    import torch

    if name.startswith("cuda") or (name == "auto" and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            return None
        place = torch.device("cuda" if name == "auto" else name)
        return int(torch.cuda.get_device_properties(place).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
