"""``streamline-bench validate``: the conformance tests, for whoever writes a method."""

from __future__ import annotations

from typing import Annotated

import typer

from streamline.cli import complete
from streamline.cli.options import AsJson
from streamline.cli.screen.show import show_json, show_table

__all__ = ["EPILOG", "command"]

EPILOG = """
The tests run on tiny random models in memory and take seconds. Examples:

    streamline-bench validate shortgpt

    streamline-bench validate my_package.mine:Mine --families llama,gpt2
"""


def command(
    method: Annotated[
        str,
        typer.Argument(help="A name, or `pkg.module:Class`.", autocompletion=complete.methods),
    ],
    families: Annotated[
        str, typer.Option(help="Families of the tiny models, with commas between.")
    ] = "opt,llama,qwen3",
    as_json: AsJson = False,
) -> None:
    """Check that a method keeps every promise of the plugin contract; exit code 1 if not."""
    from streamline.errors import ConfigError, unknown_name
    from streamline.registry import build_method, method_names
    from streamline.testing.models import FAMILIES

    wanted = [name.strip() for name in families.split(",") if name.strip()]
    if not wanted:
        raise ConfigError(f"--families is empty; name some of {', '.join(FAMILIES)}")
    for name in wanted:
        if name not in FAMILIES:
            raise unknown_name("family", name, FAMILIES)
    method_names([method])

    from dataclasses import asdict

    from streamline.testing import check_method

    rows = [asdict(outcome) for outcome in check_method(build_method(method), wanted)]
    if as_json:
        show_json(rows)
    else:
        show_table(rows, ("family", "check", "status", "detail"))
    failed = sum(row["status"] == "failed" for row in rows)
    if not as_json:
        refused = sum(row["status"] == "refused" for row in rows)
        print(
            f"{method}: {len(rows) - failed - refused} passed, {failed} failed, {refused} refused"
        )
    if failed:
        raise typer.Exit(1)
