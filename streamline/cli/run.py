"""``streamline-bench [run]``: prune, train, evaluate and compare, cell by cell."""

from __future__ import annotations

from typing import Any

import typer

from streamline.cli.options import takes
from streamline.cli.screen.show import show_failure, show_results

__all__ = ["EPILOG", "command"]

EPILOG = """
A second run of the same command does only what is missing. Examples:

    streamline-bench --suite embedded

    streamline-bench --models smollm2-135m-instruct --methods all --sparsities 0.1,0.25 --limit 100

    streamline-bench --suite paper-table1 --models llama2-7b --dry-run
"""


@takes()
def command(given: dict[str, Any]) -> None:
    """Run models x methods x sparsities x seeds, each cell a record in results.json."""
    from streamline.run.config import build_config

    config = build_config(given, suite=given.pop("suite", None))
    if config.dry_run:
        from streamline.cli.screen.dry_run import show_plan

        show_plan(config)
        return

    from streamline.cli.screen.bar import progress_display
    from streamline.results.record import label
    from streamline.run import pipeline

    with progress_display() as display:
        records = pipeline.run(config, progress=display)
    show_results(records)
    typer.echo(f"report: {config.out / 'report.html'}")
    failed: dict[str | None, list[str]] = {}
    for record in records:
        if record.status == "failed":
            failed.setdefault(record.reason, []).append(f"{record.model} {label(record)}")
    for reason, names in failed.items():
        show_failure(", ".join(names), reason)
    if failed:
        raise typer.Exit(1)
