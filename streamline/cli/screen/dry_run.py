"""What ``--dry-run`` shows: cells, exact sizes and estimated costs, from configs alone.

For a suite that names a paper's table and its way of counting, the ratio as the paper counts it
and the printed one are shown beside it, and below what makes them differ from the exact fraction.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamline.cli.screen.hours import show_times
from streamline.cli.screen.show import show_table, show_text, show_warning

if TYPE_CHECKING:
    from streamline.report.published import PublishedRow
    from streamline.run.config import RunConfig
    from streamline.run.planning.estimate import Estimate
    from streamline.run.planning.plan import MemoryPlan, Refusal, Row

__all__ = ["show_plan"]


def show_plan(config: RunConfig) -> bool:
    """Print what a run would do, and warn of what does not fit on this machine.

    Planning is often done on another machine than the run's, so this is no error here; the run
    itself is refused before anything is loaded.

    Args:
        config: The run.

    Returns:
        Whether every model could be planned.

    Raises:
        StreamlineError: If a method cannot be had, or no model can.
    """
    from streamline.run.deciding.decide import decided
    from streamline.run.executors.matrix import whole_time
    from streamline.run.planning.estimate import check_fits, run_memory
    from streamline.run.planning.fitting import fitted, memory_plan
    from streamline.run.planning.hours import planned_times

    found = decided(config)
    config, estimate = fitted(found.config)
    paper = _Paper(config.suite)
    few: dict[str, str | None] = {}
    for model, reason in estimate.broken.items():
        show_warning(f"{model} cannot be planned, its cells would fail: {reason}")
    models = [name for name in config.models if name not in estimate.broken]
    memory = {model: memory_plan(config.for_model(model), model) for model in models}
    for model in models:
        rows = [row for row in estimate.rows if row.cell.model == model]
        _show_model(rows, paper, memory[model].refused)
        if any(_trains(row) for row in rows):
            few[model] = config.for_model(model).training.too_few(rows[0].dense)
    paper.show()
    for line in found.remarks():
        show_text(f"auto: {line}")
    _show_texts(estimate)
    for line in [*_costs(estimate), _speed(config)]:
        print(line)
    for model, plan in memory.items():
        _show_memory(plan)
        own = [row.cell for row in estimate.rows if row.cell.model == model]
        cells = [cell for cell in own if cell.label not in plan.refused]
        if cells and (plan.waves > 1 or plan.in_parts or len(cells) < len(own)):
            estimate.times[model] = planned_times(config.for_model(model), cells, plan)
    show_times(list(estimate.times.values()), config)
    for line in whole_time(config, estimate.times):
        show_text(line)
    for remark in estimate.remarks:
        show_warning(remark)
    for problem in check_fits(estimate, config.out, run_memory(config)):
        show_warning(f"this machine cannot run it: {problem}")
    for model, note in few.items():
        if note is not None:
            show_warning(f"{model}: {note}")
    return not estimate.broken


def _show_texts(estimate: Estimate) -> None:
    """What is read of which text; documents and the largest of those that are on this machine."""
    if not estimate.texts:
        return
    known = [name for name in ("documents", "largest") if any(r.get(name) for r in estimate.texts)]
    show_table(estimate.texts, ["use", "text", "asked", *known])
    for name, promised in {row["text"]: row["promised"] for row in estimate.texts}.items():
        if promised:
            show_text(f"  {name} {promised}")
    print()


def _show_model(rows: Sequence[Row], paper: _Paper, refused: Container[str]) -> None:
    """One model's cells as a table under a heading; what memory refuses is explained with it."""
    model = rows[0].cell.model
    print(f"{model}: {rows[0].dense:,} parameters")
    shown = [_cells(row, paper, row.cell.label in refused) for row in rows]
    columns = ["method", "target", "seed", "recovery", "layers", "remaining", "removed"]
    columns += ["as paper", "printed", "note"]
    always = {"method", "target", "layers", "remaining", "removed"}
    optional = {"seed": len({row.cell.seed for row in rows}) > 1}
    optional |= {"recovery": any(row.cell.recovery != "none" for row in rows)}
    optional |= {
        name: any(cells[name] is not None for cells in shown)
        for name in ("as paper", "printed", "note")
    }
    show_table(shown, [name for name in columns if name in always or optional[name]])
    known = [row for row in rows if row.reason and row.cell.label not in refused]
    for line in _reasons(known):
        show_text(f"  skipped: {line}")
    print()


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Why cells are skipped, those together whose methods say the same of themselves."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        name, reason = row.cell.method.partition("+")[0], str(row.reason)
        same = found.setdefault(reason.removeprefix(f"{name} "), {})
        if reason.startswith(f"{name} "):
            same[name] = None
    return [
        f"{', '.join(names)}{':' * (len(names) > 1)} {reason}".lstrip()
        for reason, names in found.items()
    ]


def _trains(row: Row) -> bool:
    """Whether a cell has something to train before it is recovered."""
    from streamline.registry import build_method

    return bool(row.cell.sparsity) and row.reason is None and build_method(row.cell.method).trains


def _cells(row: Row, paper: _Paper, refused: bool) -> dict[str, Any]:
    ratio, printed = paper.ratios(row)
    note = None if row.pruned is not None else "a run shows"
    if row.reason or refused:
        note = "skipped"
    return {
        "method": row.cell.method,
        "target": f"{row.cell.sparsity:g}",
        "seed": row.cell.seed,
        "recovery": row.cell.recovery,
        "layers": row.n_removed,
        "remaining": None if row.pruned is None else f"{row.pruned:,}",
        "removed": _percent(row.removed_fraction, 2),
        "as paper": _percent(ratio, 1),
        "printed": printed and f"{printed:.1f} %",
        "note": note,
    }


class _Paper:
    """The table that a suite regenerates, if it regenerates one, and notes about it."""

    def __init__(self, suite: str | None) -> None:
        from streamline.report.published import published_rows
        from streamline.run.paper_ratio import ratio_rule
        from streamline.run.suites import load_suite

        report: Mapping[str, Any] = load_suite(suite).report if suite else {}
        self.layout: Mapping[str, Any] = report.get("layout") or {}
        self.rule = ratio_rule(report)
        self.rows: list[PublishedRow] = []
        if self.layout and self.rule:
            self.rows = published_rows(str(self.layout["published"]))
        self.decoders: dict[str, Any] = {}
        self.explained: list[dict[str, Any]] = []

    def ratios(self, row: Row) -> tuple[float | None, float | None]:
        """A cell's ratio as the paper counts it, and the printed one in percent."""
        from streamline.registry import build_method
        from streamline.report.published import model_name, plain
        from streamline.results.record import method_label
        from streamline.run.paper_ratio import paper_ratio, printed_for

        cell = row.cell
        known = {model_name(printed.llm, self.layout) for printed in self.rows}
        if self.rule is None or not cell.sparsity or plain(cell.model) not in known:
            return None, None
        decoder = self._decoder(cell.model)
        found = paper_ratio(
            self.rule, cell.model, decoder, build_method(cell.method), row.n_removed
        )
        label = method_label(cell.method, cell.recovery)
        ratio = cell.sparsity if found is None else found.ratio
        printed = printed_for(self.layout, self.rows, cell.model, label, ratio)
        if found is not None:
            self.explained.append(
                {
                    "model": cell.model,
                    "method": cell.method,
                    "layers": row.n_removed,
                    "net": f"{found.removed - found.added:,}",
                    "as paper": _percent(found.ratio, 2),
                    "counting": f"{100 * found.by_counting:+.2f}",
                    "total": f"{100 * found.by_total:+.2f}",
                    "removed": _percent(found.counted, 2),
                }
            )
        return (None if found is None else found.ratio), (printed.ratio if printed else None)

    def show(self) -> None:
        """Print how each figure comes about, what makes it differ, and why some do not."""
        from streamline.report.published import model_name, plain

        if self.rule is None or not self.explained:
            return
        what = "weight matrices" if self.rule.counts == "matrices" else "parameters"
        models = list(dict.fromkeys(str(row["model"]) for row in self.explained))
        totals = ", ".join(f"{self.rule.over[m]:,} for {m}" for m in models if m in self.rule.over)
        columns = ("method", "layers", "net", "as paper", "counting", "total", "removed")
        show_text(
            f"As the paper counts: removed less added {what} (net), over "
            f"{totals or 'the exact total'}{'; else the exact total' if totals else ''}. "
            "Counting biases and norms too, and dividing by the exact total, give what is removed:"
        )
        for model in models:
            if len(models) > 1:
                print(model)
            show_table([row for row in self.explained if row["model"] == model], columns)
        for llm, reasons in self.rule.open.items():
            if model_name(llm, self.layout) in map(plain, models):
                for reason in dict.fromkeys(reasons.values()):
                    names = ", ".join(name for name, why in reasons.items() if why == reason)
                    show_text(f"Not recomputed, {llm} {names}: {reason}")
        print()

    def _decoder(self, model: str) -> Any:
        from streamline.engine.decoder import Decoder
        from streamline.sources.models import planned_model

        if model not in self.decoders:
            self.decoders[model] = Decoder(planned_model(model))
        return self.decoders[model]


def _percent(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{100 * value:.{digits}f} %"


def _costs(estimate: Estimate) -> list[str]:
    """Tokens, memory and disk, one line each."""
    tokens = ", ".join(f"{name} {count:,}" for name, count in estimate.tokens.items() if count)
    return [
        f"tokens:  {tokens}",
        f"memory:  {estimate.memory_bytes / 2**30:,.2f} GiB of weights; stage by stage below",
        f"disk:    {estimate.download_bytes / 2**30:,.2f} GiB of weights to fetch, "
        f"{estimate.work_bytes / 2**30:,.2f} GiB of training states",
    ]


def _show_memory(plan: MemoryPlan) -> None:
    """What each stage of one model holds, and what cannot be had."""
    from streamline.run.planning.plan import MARGIN, gib

    there = "" if plan.memory is None else f", {gib(plan.memory)} are there"
    print(f"\nmemory of {plan.model}: {gib(plan.peak)} at the peak{there}")
    rows = [
        {
            "stage": row.stage,
            "of": row.method,
            "there before": gib(row.resident),
            "added": gib(row.added),
            "peak": gib(row.peak),
        }
        for row in plan.rows
    ]
    show_table(rows, ["stage", "of", "there before", "added", "peak"])
    for line in plan.decisions():
        show_text(f"  {line}")
    if plan.refused and plan.memory is not None:
        print()
        margin = f"{100 * MARGIN:.0f} %"
        show_text(f"skipped, since {gib(plan.memory)} less {margin} do not hold them:")
        lacking = [
            {
                "cell": label,
                "needs": gib(refusal.size),
                "for": refusal.work,
                "fits with": _ways(refusal),
            }
            for label, refusal in plan.refused.items()
        ]
        show_table(lacking, ["cell", "needs", "for", "fits with"], whole=True)
        show_text("  the same command does them where there is so much; --memory plans for it")


def _ways(refusal: Refusal) -> str:
    """What a refused cell fits with, in few words."""
    ways = ["--stream"] if refusal.streamed else []
    ways += ["--device-map auto"] if refusal.devices else []
    if refusal.processes:
        ways.append(f"{refusal.processes} processes")
    return " or ".join([*ways, f"{refusal.device:.1f} GiB"])


def _speed(config: RunConfig) -> str:
    """The time that measuring how fast models are takes."""
    from streamline.evaluation.efficiency.allowance import QUICK_SECONDS, QUICK_SHARE

    found, full, quick = [], 0, 0
    for own in map(config.for_model, config.models):
        if own.efficiency == "quick" and own.efficiency_seconds:
            found.append(f"at most {own.efficiency_seconds} s")
        quick += own.efficiency == "quick" and not own.efficiency_seconds
        full += own.efficiency == "full"
    if quick:
        found.append(
            f"at most {quick * QUICK_SECONDS:.0f} s, or {100 * QUICK_SHARE:.0f} % of the run "
            "where that is more"
        )
    if full:
        found.append(f"as long as it takes for {full} model{'s' * (full > 1)} (full)")
    return f"speed:   {'; '.join(dict.fromkeys(found)) or 'not measured'}"
