"""``streamline-bench prune``: one model, one method, one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamline.cli.options import (
    Calibration,
    Device,
    Dtype,
    Method,
    Model,
    Objective,
    Recovery,
    Stream,
    Suite,
    TrainTokens,
    TrustRemoteCode,
    given,
)

__all__ = ["EPILOG", "command"]

EPILOG = """
Examples:

    streamline-bench prune smollm2-135m-instruct --method shortgpt --sparsity 0.1 --out out/short

    streamline-bench prune opt-1.3b --method llm-streamline-ffn --sparsity 0.25 --out out/ffn
"""


def command(
    model: Model,
    method: Method,
    sparsity: Annotated[str, typer.Option(help="Share of all parameters to remove, in [0, 1).")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    seed: Annotated[str, typer.Option(help="Seed of everything random.")] = "0",
    recovery: Recovery = "none",
    suite: Suite = None,
    device: Device = None,
    stream: Stream = False,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
    calibration: Calibration = None,
    objective: Objective = None,
    train_tokens: TrainTokens = None,
) -> None:
    """Prune a model and save it as a checkpoint with its plan and provenance."""
    from streamline.errors import ConfigError
    from streamline.run.config import build_config

    config = build_config(
        given(
            models=[model],
            methods=[method],
            sparsities=sparsity,
            seeds=seed,
            recovery=recovery,
            out=out,
            device=device,
            stream=stream,
            dtype=dtype,
            calibration=calibration and {"texts": calibration},
            training=given(objective=objective, n_tokens=train_tokens) or None,
            trust_remote_code=trust_remote_code,
        ),
        suite=suite,
    )
    for flag in ("methods", "sparsities", "seeds", "recovery"):
        values = getattr(config, flag)
        if len(values) > 1:
            raise ConfigError(
                f"prune writes one checkpoint, so it takes one of {flag}, got "
                f"{', '.join(map(str, values))}; use `streamline-bench run` to compare several"
            )
    from streamline.cli.screen.bar import progress_display
    from streamline.run import pipeline

    with progress_display() as display:
        pipeline.prune_to_checkpoint(
            model,
            method=config.methods[0],
            sparsity=config.sparsities[0],
            out=out,
            config=config,
            progress=display,
        )
    typer.echo(str(out))
