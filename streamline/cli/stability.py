"""``streamline-bench stability``: two sets of per-question predictions, one row per data set."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from streamline.cli.options import AsJson
from streamline.cli.screen.show import show_json

if TYPE_CHECKING:
    from streamline.results.predictions import Predictions
    from streamline.results.stability import Stability

__all__ = ["EPILOG", "command"]

EPILOG = """
A source is a folder of OpenCompass predictions (PPL mode), a folder of lm-eval's `--log_samples`
files, a samples parquet, or `DIR:METHOD@SPARSITY` for one cell of a run. Examples:

    streamline-bench stability out:dense out:shortgpt@0.25

    streamline-bench stability outputs/20240312_101500/predictions/llama-2-7b pruned/predictions/p

    streamline-bench stability dense/ pruned/ --metric acc --ddof 0 --json

With `--compat release` the figure is the released script's: population std, and instead of the
weights of the questions that agree, the first weights of the file, as many as questions agree. It
changes with the order of the file; use it only to compare with figures made by that script.
"""


class Compat(StrEnum):
    """Whose errors are reproduced."""

    RELEASE = "release"


def command(
    dense: Annotated[str, typer.Argument(help="Predictions of the model before pruning.")],
    pruned: Annotated[str, typer.Argument(help="Predictions of the model after pruning.")],
    ddof: Annotated[
        int | None,
        typer.Option(
            help="Std of the options: 1 sample (the paper, default), 0 population.",
            show_default=False,
        ),
    ] = None,
    compat: Annotated[
        Compat | None, typer.Option(help="Do as the released script, errors included.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="lm-eval files: the metric that decides what is right.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Stability, agreement and answer flips between a dense and a pruned model."""
    from streamline.errors import ConfigError
    from streamline.results.predictions import read_predictions
    from streamline.results.stability import grouped, stability

    before, after = read_predictions(dense, metric), _pruned(pruned, metric)
    for side in (before, after):
        if metric is not None and side.kind != "lm-eval":
            raise ConfigError(
                f"--metric chooses among the metrics of lm-eval's files, and {side.source} is of "
                f"another kind ({side.kind}); leave it out"
            )
    common = [task for task in before.tasks if task in after.tasks]
    if not common:
        raise ConfigError(
            f"{dense} and {pruned} have no data set in common: {', '.join(before.tasks) or 'none'} "
            f"and {', '.join(after.tasks) or 'none'}."
        )
    mode: Literal["release"] | None = None if compat is None else "release"
    results: list[Stability] = []
    unlike: dict[str, str] = {}
    for task in common:
        try:
            results.append(stability(before.tasks[task], after.tasks[task], ddof, mode))
        except ConfigError as error:  # of this data set; the others stay in the table
            unlike[task] = str(error)
    if not results:
        raise ConfigError("; ".join(unlike.values()))
    for line in [
        *_left_out(before, after),
        *(f"left out: {t}: {why}" for t, why in unlike.items()),
    ]:
        print(line, file=sys.stderr)
    if as_json:
        show_json([_row(result) for result in grouped(results)])
    else:
        _show(grouped(results))
    if unlike or before.broken or after.broken:
        raise typer.Exit(1)


def _pruned(source: str, metric: str | None) -> Predictions:
    """The only pruned model of a source; the dense one of a run is never meant here."""
    from streamline.errors import ConfigError
    from streamline.results.predictions import read_cells

    cells = read_cells(source, metric)
    if len(cells) > 1:
        cells = {
            name: cell
            for name, cell in cells.items()
            if cell.record is None or cell.record.method != "dense"
        }
    if len(cells) > 1:
        raise ConfigError(
            f"{source} holds {len(cells)} pruned models ({', '.join(cells)}); choose one with "
            "DIR:METHOD@SPARSITY,KEY=VALUE (keys model, method, sparsity, seed, recovery)"
        )
    return next(iter(cells.values()))


def _row(result: Stability) -> dict[str, Any]:
    """One data set's numbers, fractions to four decimals as in the table."""
    return {
        "task": result.task,
        "stability": _rounded(result.value),
        "stderr": _rounded(result.stderr),
        "agreement": _rounded(result.agreement),
        **result.counts(),
        "n": result.n,
        "accuracy_dense": _rounded(result.accuracy_dense),
        "accuracy_pruned": _rounded(result.accuracy_pruned),
        "metric": result.metric,
        "nll": result.nll,
        "ddof": result.ddof,
        "compat": result.compat,
        "subjects": result.subjects,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _left_out(before: Predictions, after: Predictions) -> list[str]:
    """What is not in the table, and why."""
    lines = [
        f"left out: {task}: only in {side.source}"
        for side, other in ((before, after), (after, before))
        for task in side.tasks
        if task not in other.tasks and task not in other.broken
    ]
    for side in (before, after):
        reasons = {**side.skipped, **side.broken}
        lines += [f"left out: {side.source}: {name}: {why}" for name, why in reasons.items()]
    return lines


def _show(results: list[Stability]) -> None:
    from streamline.report.render import screen_width, terminal
    from streamline.report.table import MISSING, Table

    def decimals(value: float | None) -> str:
        return MISSING if value is None else f"{value:.4f}"

    first = results[0]
    kinds = "; ".join(dict.fromkeys(result.nll or "none" for result in results))
    notes = [f"Options' mean NLL over: {kinds}. Std with ddof {first.ddof}."]
    notes += [
        f"{result.task}: unweighted mean over {result.subjects} subjects; counts added up"
        for result in results
        if result.subjects > 1
    ]
    if first.compat:
        notes.append("As the released script: the figure depends on the order of the questions.")
    table = Table(
        name="stability",
        title="Stability of the pruned model's answers",
        columns=(
            "data set",
            "stability",
            "stderr",
            "agree-\nment",
            "both\nright",
            "lost",
            "gained",
            "both\nwrong",
            "n",
            "accuracy\ndense",
            "accuracy\npruned",
            "metric",
        ),
        rows=tuple(
            (
                result.task,
                decimals(result.value),
                decimals(result.stderr),
                decimals(result.agreement),
                *(str(count) for count in result.counts().values()),
                str(result.n),
                decimals(result.accuracy_dense),
                decimals(result.accuracy_pruned),
                result.metric,
            )
            for result in results
        ),
        notes=tuple(notes),
    )
    print(terminal(table, screen_width()), end="")
