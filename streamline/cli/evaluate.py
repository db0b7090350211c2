"""``streamline-bench evaluate``: one model or checkpoint, one record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from streamline.cli import complete
from streamline.cli.options import Model, takes
from streamline.cli.screen.show import show_failure, show_table

__all__ = ["EPILOG", "command"]

EPILOG = """
Examples:

    streamline-bench evaluate out/short --tasks piqa,arc_easy --limit 100 --out short.json

    streamline-bench evaluate facebook/opt-1.3b --tasks commonsense,wikitext2 --out opt.json
"""


@takes(
    "--limit",
    "--device",
    "--device-map",
    "--stream",
    "--dtype",
    "--data-dir",
    "--data",
    "--skip-missing",
    "--include-path",
    "--num-fewshot",
    "--apply-chat-template",
    "--system-instruction",
    "--fewshot-as-multiturn",
    "--batch-tokens",
    "--efficiency",
    "--compile",
    "--trust-remote-code",
    "--confirm-run-unsafe-code",
)
def command(
    given: dict[str, Any],
    model: Model,
    tasks: Annotated[
        str,
        typer.Option(help="Tasks and groups, with commas between.", autocompletion=complete.tasks),
    ],
    out: Annotated[Path, typer.Option(help="File of the record; its samples lie beside it.")],
) -> None:
    """Evaluate a model on tasks and write one record."""
    from streamline.errors import ConfigError
    from streamline.run.config import build_config

    file = out.expanduser()
    if not file.name:
        raise ConfigError(f"--out {out}: give the name of a file, such as out.json")
    alone = {
        "models": [model],
        "methods": ["dense"],
        "tasks": tasks,
        "out": str(file.with_name(f".{file.stem}-run")),
    }
    # Perplexities are measured where they are named, among the tasks.
    config = build_config(given | alone | {"perplexity": {"n_tokens": 0}})
    from streamline.cli.screen.bar import progress_display
    from streamline.run import pipeline

    with progress_display(f"evaluate {model}") as display:
        record = pipeline.evaluate_model(
            model, out=out.expanduser(), config=config, progress=display
        )
    rows = [{"task": name, **result.model_dump()} for name, result in record.tasks.items()]
    rows += [
        {"task": name, "metric": "perplexity", "value": value}
        for name, value in record.summary.perplexity.items()
    ]
    show_table(rows, ("task", "metric", "value", "stderr", "n"))
    if record.status == "failed":
        show_failure(model, record.reason)
        raise typer.Exit(1)
    missing = record.notes.get("missing", {})
    for name, why in missing.items():
        show_failure(model, f"{name} is missing: {why}")
    if missing:
        raise typer.Exit(1)
