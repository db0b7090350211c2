"""``streamline-bench push``: a checkpoint or a run's results onto the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["EPILOG", "command"]

EPILOG = """
A checkpoint becomes a model with its card, a run's folder a data set: the report, all that it is
made of, and plans, without what the run keeps to go on from. Examples:

    streamline-bench push out/short me/opt-1.3b-short

    streamline-bench push out/run me/layer-pruning-results --private
"""


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A checkpoint, or the folder of a run.")
    ],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
) -> None:
    """Upload a checkpoint or a run's results to the hub."""
    from streamline.checkpoints.info import PLAN
    from streamline.checkpoints.push import push_folder, push_results

    folder = folder.expanduser()
    if (folder / PLAN).is_file():
        print(push_folder(folder, repository, private=private))
    else:
        print(push_results(folder, repository, private=private))
