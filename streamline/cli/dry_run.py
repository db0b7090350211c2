"""What ``--dry-run`` shows: cells, exact sizes and estimated costs, from configs alone.

For a suite that names a paper's table and its way of counting, the ratio as the paper counts it
and the printed one stand beside, and below is what makes them differ from the exact share.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamline.cli.show import show_table
from streamline.errors import ConfigError

if TYPE_CHECKING:
    from streamline.config import RunConfig
    from streamline.results.published import PublishedRow
    from streamline.sizing import Estimate, Row

__all__ = ["show_plan"]

_WIDTH = 96


def show_plan(config: RunConfig) -> None:
    """Print what a run would do, and refuse what does not fit on this machine.

    Args:
        config: The run.

    Raises:
        ConfigError: If memory or disk of this machine are too small; the plan is printed first.
        StreamlineError: If a model's config or a method cannot be had.
    """
    from streamline.sizing import check_fits, device_memory, plan_run

    estimate = plan_run(config)
    paper = _Paper(config.suite)
    for model in config.models:
        _show_model([row for row in estimate.rows if row.cell.model == model], paper)
    for line in (*paper.lines(), *_costs(estimate)):
        print(line)
    memory = None if config.executor == "ray" else device_memory(config.device)
    problems = check_fits(estimate, config.out, memory)
    if problems:
        raise ConfigError("; ".join(problems))


def _show_model(rows: Sequence[Row], paper: _Paper) -> None:
    """One model's cells as a table under a heading."""
    model = rows[0].cell.model
    print(f"{model}: {rows[0].dense:,} parameters")
    shown = [_cells(row, paper) for row in rows]
    columns = ["method", "asked", "seed", "recovery", "layers", "left", "removed"]
    columns += ["as paper", "printed", "note"]
    always = {"method", "asked", "layers", "left", "removed"}
    optional = {"seed": len({row.cell.seed for row in rows}) > 1}
    optional |= {"recovery": any(row.cell.recovery != "none" for row in rows)}
    optional |= {
        name: any(cells[name] is not None for cells in shown)
        for name in ("as paper", "printed", "note")
    }
    show_table(shown, [name for name in columns if name in always or optional[name]])
    for number, reason in enumerate(dict.fromkeys(row.reason for row in rows if row.reason), 1):
        print(f"  ({number}) {reason}")
    print()


def _cells(row: Row, paper: _Paper) -> dict[str, Any]:
    ratio, printed = paper.ratios(row)
    note = "skipped" if row.reason else None if row.pruned is not None else "only a run tells"
    return {
        "method": row.cell.method,
        "asked": f"{row.cell.sparsity:g}",
        "seed": row.cell.seed,
        "recovery": row.cell.recovery,
        "layers": row.n_removed,
        "left": None if row.pruned is None else f"{row.pruned:,}",
        "removed": _percent(row.removed_fraction, 2),
        "as paper": _percent(ratio, 1),
        "printed": printed and f"{printed:.1f} %",
        "note": note,
    }


class _Paper:
    """The table that a suite regenerates, if it regenerates one, and what is to be said of it."""

    def __init__(self, suite: str | None) -> None:
        from streamline.results.paper_ratio import ratio_rule
        from streamline.results.published import published_rows
        from streamline.suites import load_suite

        report: Mapping[str, Any] = load_suite(suite).report if suite else {}
        self.layout: Mapping[str, Any] = report.get("layout") or {}
        self.rule = ratio_rule(report)
        self.rows: list[PublishedRow] = []
        if self.layout and self.rule:
            self.rows = published_rows(str(self.layout["published"]))
        self.decoders: dict[str, Any] = {}
        self.explained: dict[str, None] = {}
        self.found: set[int] = set()
        self.models: set[str] = set()

    def ratios(self, row: Row) -> tuple[float | None, float | None]:
        """A cell's ratio as the paper counts it, and the printed one in percent."""
        from streamline.results.layouts import model_name, plain
        from streamline.results.paper_ratio import paper_ratio, printed_for
        from streamline.specs import build_method

        cell = row.cell
        known = {model_name(printed.llm, self.layout) for printed in self.rows}
        if self.rule is None or not cell.sparsity or plain(cell.model) not in known:
            return None, None
        self.models.add(plain(cell.model))
        decoder = self._decoder(cell.model)
        found = paper_ratio(
            self.rule, cell.model, decoder, build_method(cell.method), row.n_removed
        )
        label = cell.method + ("" if cell.recovery == "none" else f" +{cell.recovery}")
        ratio = cell.sparsity if found is None else found.ratio
        printed = printed_for(self.layout, self.rows, cell.model, label, ratio)
        if found is not None:
            self.explained[f"{cell.model} {label}, {row.n_removed} layers: {found.explain()}"] = None
        return (None if found is None else found.ratio), (printed.ratio if printed else None)

    def lines(self) -> list[str]:
        """How each figure comes about, and why some do not."""
        from streamline.results.layouts import model_name

        if self.rule is None or not self.models:
            return []
        what = "weight matrices" if self.rule.counts == "matrices" else "parameters"
        lines = [f"as paper: removed less added {what} over the total that the paper divides by"]
        lines += self.explained
        for llm, reasons in self.rule.open.items():
            if model_name(llm, self.layout) in self.models:
                lines += [f"{llm} {method}: {reason}" for method, reason in reasons.items()]
        return [*(part for line in lines for part in _wrapped(line)), ""]

    def _decoder(self, model: str) -> Any:
        from streamline.assets import load_config
        from streamline.decoder import Decoder

        if model not in self.decoders:
            self.decoders[model] = Decoder.from_config(load_config(model))
        return self.decoders[model]


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, _WIDTH, subsequent_indent="    ", break_long_words=False)


def _percent(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{100 * value:.{digits}f} %"


def _costs(estimate: Estimate) -> list[str]:
    """Tokens, compute, memory and disk, one line each."""
    tokens = ", ".join(f"{name} {count:,}" for name, count in estimate.tokens.items())
    compute = ", ".join(
        f"{name.replace('_', ' ')} {value / 1e12:,.2f}" for name, value in estimate.flops.items()
    )
    return [
        f"tokens:  {tokens}",
        f"compute: {compute} TFLOP",
        f"memory:  {estimate.memory_bytes / 2**30:,.2f} GiB at least",
        f"disk:    {estimate.download_bytes / 2**30:,.2f} GiB of weights to fetch, "
        f"{estimate.work_bytes / 2**30:,.2f} GiB of training states",
    ]
