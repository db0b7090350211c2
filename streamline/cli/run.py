"""``streamline-bench [run]``: prune, train, evaluate and compare, cell by cell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamline.cli.options import (
    BatchTokens,
    Calibration,
    Compile,
    Data,
    DataDir,
    Device,
    DeviceMap,
    DryRun,
    Dtype,
    Executor,
    Limit,
    Methods,
    Models,
    Objective,
    Recovery,
    Seeds,
    Sparsities,
    Stream,
    Suite,
    Tasks,
    TrainTokens,
    TrustRemoteCode,
    given,
)
from streamline.cli.screen.show import show_failure, show_results

__all__ = ["EPILOG", "command"]

EPILOG = """
A second run of the same command does only what is missing. Examples:

    streamline-bench --suite embedded

    streamline-bench --models smollm2-135m-instruct --methods all --sparsities 0.1,0.25 --limit 100

    streamline-bench --suite paper-table1 --models llama2-7b --dry-run
"""


def command(
    models: Models = None,
    methods: Methods = None,
    sparsities: Sparsities = None,
    tasks: Tasks = None,
    limit: Limit = None,
    seed: Seeds = None,
    recovery: Recovery = None,
    suite: Suite = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; else out/run, or out/SUITE.")
    ] = None,
    device: Device = None,
    device_map: DeviceMap = None,
    stream: Stream = False,
    dtype: Dtype = None,
    executor: Executor = None,
    dry_run: DryRun = False,
    data_dir: DataDir = None,
    data: Data = None,
    batch_tokens: BatchTokens = None,
    compile: Compile = False,
    trust_remote_code: TrustRemoteCode = False,
    calibration: Calibration = None,
    objective: Objective = None,
    train_tokens: TrainTokens = None,
) -> None:
    """Run models x methods x sparsities x seeds, each cell a record in results.json."""
    from streamline.run.config import build_config

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
            device_map=device_map,
            stream=stream,
            dtype=dtype,
            executor=executor,
            dry_run=dry_run,
            data=data,
            data_dir=data_dir,
            batch_tokens=batch_tokens,
            compile=compile,
            trust_remote_code=trust_remote_code,
            calibration=calibration and {"texts": calibration},
            training=given(objective=objective, n_tokens=train_tokens) or None,
        ),
        suite=suite,
    )
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
