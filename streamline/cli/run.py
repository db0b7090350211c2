"""``streamline-bench [run]``: prune, train, evaluate and compare, cell by cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamline.cli.options import Plans, given_layers, takes
from streamline.cli.screen.show import show_failed, show_results

if TYPE_CHECKING:
    from streamline.run.config import RunConfig

__all__ = ["EPILOG", "command"]

EPILOG = """
A second run of the same command does only what is missing. Examples:

    streamline-bench --suite embedded

    streamline-bench --models smollm2-135m-instruct --methods all --sparsities 0.1,0.25 --limit 100

    streamline-bench --suite paper-table1 --models llama2-7b --dry-run

    streamline-bench --suite embedded --quick

    streamline-bench --suite embedded --limit 50 --print-config > mine.yaml
"""


@takes()
def command(
    given: dict[str, Any],
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Print the run as YAML, a suite again, and stop."),
    ] = False,
    plan: Plans = None,
    redo: Annotated[
        list[str] | None,
        typer.Option(
            "--redo",
            metavar="[CELL]",
            help="Compute cells anew, named as `rm` takes them; without a name all of the run.",
        ),
    ] = None,
) -> None:
    """Run models x methods x sparsities x seeds, each cell a record in results.json."""
    from streamline.run.config import build_config

    if plan:
        named = given.get("methods")
        given["methods"] = ",".join([*([named] if named else []), *given_layers(plan)])
    config = build_config(given, suite=given.pop("suite", None))
    if print_config:
        from streamline.run.suites import as_suite

        print(as_suite(config.model_dump(mode="json"), config.suite), end="")
        return
    if config.dry_run:
        from streamline.cli.screen.dry_run import show_plan
        from streamline.run.folder import refuse_foreign

        refuse_foreign(config.out)
        if not show_plan(config):
            raise typer.Exit(1)
        return

    from streamline.cli.screen.bar import progress_display
    from streamline.run import pipeline

    with progress_display(_title(config)) as display:
        records = pipeline.run(config, progress=display, redo=redo)
    if config.shard is None:
        show_results(records)
        print(f"report: {config.out / 'report.html'}")
    else:
        print(f"shard {config.shard}: {_cells(len(records))}; when all shards have ended:")
        print(f"streamline-bench merge {config.out}")
    if show_failed(records):
        raise typer.Exit(1)


def _title(config: RunConfig) -> str:
    """What the whole run is."""
    from streamline.run.cell import all_cells

    models = config.models[0] if len(config.models) == 1 else f"{len(config.models)} models"
    if config.shard is not None:
        return f"shard {config.shard} of {models}"
    return f"{_cells(len(all_cells(config)))} of {models}"


def _cells(number: int) -> str:
    return f"{number} cell{'s' * (number != 1)}"
