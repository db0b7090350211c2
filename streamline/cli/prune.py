"""``streamline-bench prune``: one model, one method, one checkpoint."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamline.cli.options import Method, Model, takes

__all__ = ["EPILOG", "command"]

EPILOG = """
Examples:

    streamline-bench prune smollm2-135m-instruct --method shortgpt --sparsity 0.1 --out out/short

    streamline-bench prune opt-1.3b --method llm-streamline-ffn --sparsity 0.25 --out out/ffn
"""


@takes(
    "--recovery",
    "--suite",
    "--device",
    "--stream",
    "--dtype",
    "--trust-remote-code",
    "--calibration",
    "--calibration-samples",
    "--objective",
    "--train-tokens",
)
def command(
    given: dict[str, Any],
    model: Model,
    method: Method,
    sparsity: Annotated[str, typer.Option(help="Fraction of all parameters to remove, in [0, 1).")],
    out: Annotated[str, typer.Option(help="Folder of the checkpoint.")],
    seed: Annotated[str, typer.Option(help="Seed of everything random.")] = "0",
    no_verify: Annotated[
        bool,
        typer.Option(
            "--no-verify", help="Do not compare the folder with the model in a fresh process."
        ),
    ] = False,
) -> None:
    """Prune a model and save it as a checkpoint with its plan and provenance.

    Before the folder appears, a fresh process reads it and compares it with the model in memory.
    """
    from streamline.checkpoints.folder import target_folder
    from streamline.errors import ConfigError
    from streamline.run.config import build_config

    cell = {"models": [model], "methods": [method], "sparsities": sparsity, "seeds": seed}
    folder = target_folder(out)
    suite = given.pop("suite", None)
    config = build_config({"recovery": "none"} | given | cell | {"out": folder}, suite=suite)
    for flag in ("methods", "sparsities", "seeds", "recovery"):
        values = getattr(config, flag)
        if len(values) > 1:
            raise ConfigError(
                f"prune writes one checkpoint, so it needs one of {flag}, got "
                f"{', '.join(map(str, values))}; use `streamline-bench run` to compare several"
            )
    from streamline.cli.screen.bar import progress_display
    from streamline.run import pipeline

    with progress_display(f"prune {model}") as display:
        pipeline.prune_to_checkpoint(
            model,
            method=config.methods[0],
            sparsity=config.sparsities[0],
            out=folder,
            config=config,
            verify=not no_verify,
            progress=display,
        )
    print(str(folder))
