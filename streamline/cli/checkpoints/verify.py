"""``streamline-bench verify``: whether checkpoints hold the models that were measured."""

from __future__ import annotations

from typing import Annotated

import typer

from streamline.cli.options import AsJson
from streamline.cli.screen.show import show_failure, show_json, show_table

__all__ = ["EPILOG", "command"]

EPILOG = """
Examples:

    streamline-bench verify out/short

    streamline-bench verify out/short out/ffn --json
"""


def command(
    folders: Annotated[list[str], typer.Argument(help="Checkpoints, as `prune` writes them.")],
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run the code that lies in the folders, instead of this package's own.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare checkpoints with the models they were saved from; exit code 1 if one differs.

    A fresh process reads each folder layer by layer on the CPU, so a model may be larger than the
    memory.
    """
    from streamline.checkpoints.folder import target_folder
    from streamline.checkpoints.self_test import fresh_reports, reason_against

    paths = [target_folder(folder) for folder in folders]
    reports = fresh_reports(*paths, trust_remote_code=trust_remote_code)
    reasons = [reason_against(report) for report in reports]
    rows = [
        {"checkpoint": str(path), "status": "same" if reason is None else "differs", **report}
        | {"reason": reason}
        for path, report, reason in zip(paths, reports, reasons, strict=True)
    ]
    if as_json:
        show_json(rows)
    else:
        columns = ("checkpoint", "status", "class", "dtype", "max_logit_difference")
        show_table([{name: row.get(name) for name in columns} for row in rows], columns)
    failed = [(path, reason) for path, reason in zip(paths, reasons, strict=True) if reason]
    for path, reason in failed:
        show_failure(str(path), reason)
    if failed:
        raise typer.Exit(1)
