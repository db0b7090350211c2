"""``streamline-bench prune``: one model, one method, one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamline.cli.options import given

__all__ = ["EPILOG", "command"]

EPILOG = """
Examples:

    streamline-bench prune smollm2-135m-instruct --method shortgpt --sparsity 0.1 --out out/short

    streamline-bench prune opt-1.3b --method llm-streamline-ffn --sparsity 0.25 --out out/ffn
"""


def command(
    model: Annotated[str, typer.Argument(help="An alias, a hub id or a folder.")],
    method: Annotated[str, typer.Option(help="A name, or `pkg.module:Class`.")],
    sparsity: Annotated[float, typer.Option(help="Share of parameters to remove, in [0, 1).")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    recovery: Annotated[str, typer.Option(help="Stage after pruning: none or lora.")] = "none",
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Calibration text: packaged, slimpajama, wikitext2, or a file."),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="What replacements are trained on: mse or lm.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Take calibration and training from this suite.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let a model's own code run.")
    ] = False,
) -> None:
    """Prune a model and save it as a checkpoint with its plan and provenance."""
    from streamline.config import build_config

    config = build_config(
        given(
            models=[model],
            methods=[method],
            sparsities=sparsity,
            seeds=seed,
            recovery=recovery,
            out=out,
            device=device,
            dtype=dtype,
            calibration=calibration and {"texts": calibration},
            training=objective and {"objective": objective},
            trust_remote_code=trust_remote_code,
        ),
        suite=suite,
    )
    from streamline import pipeline
    from streamline.cli.bar import Bar

    with Bar() as bar:
        pipeline.prune_to_checkpoint(
            model,
            method=config.methods[0],
            sparsity=config.sparsities[0],
            out=out,
            config=config,
            progress=bar,
        )
    typer.echo(str(out))
