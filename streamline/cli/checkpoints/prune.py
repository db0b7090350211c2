"""``streamline-bench prune``: one model, one method, one checkpoint."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamline.cli.options import MethodOrNone, Model, NoVerify, Plans, PushTo, given_layers, takes

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
    "--memory",
    "--trust-remote-code",
    "--calibration",
    "--calibration-samples",
    "--objective",
    "--train-tokens",
)
def command(
    given: dict[str, Any],
    model: Model,
    out: Annotated[str, typer.Option(help="Folder of the checkpoint.")],
    method: MethodOrNone = None,
    plan: Plans = None,
    sparsity: Annotated[
        str | None,
        typer.Option(help="Fraction of all parameters to remove, in [0, 1); a plan has its own."),
    ] = None,
    seed: Annotated[str, typer.Option(help="Seed of everything random.")] = "0",
    no_verify: NoVerify = False,
    push_to_hub: PushTo = None,
) -> None:
    """Prune a model and save it as a checkpoint with its plan and provenance.

    Before the folder appears, a fresh process reads it and compares it with the model in memory.
    """
    from streamline.checkpoints.folder import target_folder
    from streamline.errors import ConfigError
    from streamline.run.config import build_config

    if (method is None) == (not plan) or len(plan or ()) > 1:
        raise ConfigError("prune needs one method: give --method NAME, or --plan with one plan")
    method = given_layers(plan or ())[0] if method is None else method
    if sparsity is None and not plan:
        raise ConfigError("prune needs --sparsity, the fraction of all parameters to remove")
    if sparsity is None:
        sparsity = _removed(model, method, bool(given.get("trust_remote_code")))
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
    if push_to_hub is not None:
        from streamline.checkpoints.push import require_repository

        require_repository(push_to_hub, "model")
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
    if push_to_hub is not None:
        from streamline.checkpoints.push import push_folder

        print(push_folder(folder, push_to_hub))


def _removed(model: str, method: str, trust_remote_code: bool) -> str:
    """What a method that has its own amount removes of a model."""
    from streamline.engine.decoder import Decoder
    from streamline.registry import build_method
    from streamline.sources.models import planned_model

    decoder = Decoder(planned_model(model, trust_remote_code=trust_remote_code))
    size = build_method(method).size(decoder, 0.5)
    return f"{size.removed_fraction:.4f}" if size is not None else "0.5"
