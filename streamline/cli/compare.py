"""``streamline-bench compare``: paired statistics between models on the same questions."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamline.cli.options import AsJson
from streamline.cli.screen.show import show_json

if TYPE_CHECKING:
    from streamline.results.compare import Comparison
    from streamline.results.predictions import Predictions

__all__ = ["EPILOG", "command"]

EPILOG = """
A record is a run's folder (all of its finished cells), `DIR:METHOD@SPARSITY,seed=1` (keys model,
method, sparsity, seed, recovery), a samples parquet, or any source that `stability` reads. Cells
of a folder that differ by their seeds alone are one model; one named with its seed is by itself.

    streamline-bench compare out

    streamline-bench compare out:dense out:shortgpt@0.25 other:llm-streamline-layer@0.25

    streamline-bench compare a.parquet b.parquet --reference a.parquet --json
"""


def command(
    records: Annotated[list[str], typer.Argument(help="Records to compare.")],
    reference: Annotated[
        str | None,
        typer.Option(help="Which one the others are compared with; else the dense one or first."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    alpha: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="Level of significance.")
    ] = 0.05,
    tasks: Annotated[bool, typer.Option(help="Show each task, not only all questions.")] = True,
    as_json: AsJson = False,
) -> None:
    """Tell which differences in accuracy are more than chance, question by question."""
    from streamline.errors import ConfigError
    from streamline.results.compare import compare
    from streamline.results.predictions import comparable, read_cells

    twice = sorted({source for source in records if records.count(source) > 1})
    if twice:
        raise ConfigError(f"{', '.join(twice)} is given twice; give each record once")
    models: dict[str, Predictions] = {}
    for source in records:
        for name, predictions in read_cells(source).items():
            models[f"{source} {name}" if name in models else name] = predictions
    models, left_out = comparable(models)
    for name, why in left_out.items():
        print(f"left out: {name}: {why}", file=sys.stderr)
    if not models:
        raise ConfigError("no record has an answer that can be used; evaluate the models again")
    chosen = _dense(models) if reference is None else reference
    groups = _by_seeds(models)
    result = compare(
        {name: [item.tasks for item in group] for name, group in groups.items()},
        _group_of(groups, models, chosen),
        alpha=alpha,
        seed=seed,
        pooled_only=not tasks,
    )
    if as_json:
        show_json(
            {
                "reference": result.reference,
                "best": result.best,
                "alpha": result.alpha,
                "seed": result.seed,
                "letters": dict(result.letters),
                "rows": [
                    {key: _finite(value) for key, value in asdict(row).items()}
                    for row in result.rows
                ],
            }
        )
    else:
        _show(result)
    if left_out:
        raise typer.Exit(1)


def _dense(models: dict[str, Predictions]) -> str:
    """The dense model if there is one, else the first."""
    for name, item in models.items():
        if item.record is not None and item.record.method == "dense":
            return name
    return next(iter(models))


def _by_seeds(models: dict[str, Predictions]) -> dict[str, list[Predictions]]:
    """The cells of one source that differ by their seeds alone, under one name."""
    names: dict[tuple[object, ...], list[str]] = {}
    for name, item in models.items():
        one = item.record
        own = (name,) if one is None else (one.model, one.method, one.sparsity, one.recovery)
        names.setdefault((item.source, *own), []).append(name)
    return {
        _without_seed(own[0], models[own[0]]) if len(own) > 1 else own[0]: [
            models[name] for name in own
        ]
        for own in names.values()
    }


def _without_seed(name: str, item: Predictions) -> str:
    return name if item.record is None else name.removesuffix(f" seed {item.record.seed}")


def _group_of(
    groups: dict[str, list[Predictions]], models: dict[str, Predictions], name: str
) -> str:
    """The group that a model is in, or the name itself."""
    one = models.get(name)
    inside = (group for group, own in groups.items() if any(item is one for item in own))
    return name if name in groups else next(inside, name)


def _finite(value: Any) -> Any:
    return None if value == float("inf") else value


def _show(result: Comparison) -> None:
    from streamline.report.findings.comparison_tables import comparison_tables
    from streamline.report.render import screen_width, terminal

    print(terminal(comparison_tables(result), screen_width()), end="")
