"""``streamline-bench export``: a finished cell of a run as a checkpoint, or in another format."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamline.cli.options import NoVerify, PushTo, takes

__all__ = ["EPILOG", "command"]

EPILOG = """
The network that the run has trained and measured is taken from its folder; nothing is trained. A
CELL is written as `compare` takes it. `--to` writes it, or a checkpoint, in another format:
mergekit (a passthrough of plans that only drop layers), gguf (llama.cpp), nemotron-nas (blocks
without attention or MLP, for vLLM, SGLang, TensorRT-LLM and MLX). Examples:

    streamline-bench export out/run:llm-streamline-ffn@0.25 out/ffn

    streamline-bench export out/run:shortgpt@0.25,seed=1 out/short --to gguf

    streamline-bench export out/short out/recipe --to mergekit
"""


@takes("--device", "--device-map", "--trust-remote-code")
def command(
    given: dict[str, Any],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="RUN:CELL, such as out/run:shortgpt@0.25, or a checkpoint."
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="DIR", help="Folder to write; new or empty.")],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="FORMAT", help="mergekit, gguf or nemotron-nas."),
    ] = None,
    no_verify: NoVerify = False,
    push_to_hub: PushTo = None,
) -> None:
    """Save the model of a finished cell as a checkpoint, or either in another format."""
    from streamline.checkpoints.folder import target_folder
    from streamline.checkpoints.push import push_folder, require_repository
    from streamline.cli.screen.bar import progress_display
    from streamline.errors import ConfigError
    from streamline.run.saving.save import export

    if push_to_hub is not None and to is not None:
        raise ConfigError("--push-to-hub is for checkpoints; leave out --to")
    if push_to_hub is not None:
        require_repository(push_to_hub, "model")
    folder = target_folder(out)
    with progress_display(f"export {source}") as display:
        export(source, folder, to=to, verify=not no_verify, progress=display, **given)
    print(str(folder))
    if push_to_hub is not None:
        print(push_folder(folder, push_to_hub))
