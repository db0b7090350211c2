"""The printed ratios of the paper's tables, recomputed from configs alone, as a CSV file.

    python -m streamline.benchmarks.ratios reports/published/recomputed_ratios.csv

Every suite that says how its table counts (``report: ratio:``) is planned as for ``--dry-run``;
each printed row gets the number of layers, the ratio by the paper's way of counting and the exact
fraction of all parameters. A report shows them beside the printed ratio. A test holds the committed
file to what comes out here.
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

from streamline.files import write_text_atomic

__all__ = ["COLUMNS", "main", "recomputed_rows"]

COLUMNS = (
    "file",
    "llm",
    "method",
    "ratio_percent",
    "layers",
    "as_paper_percent",
    "exact_percent",
    "note",
)


def recomputed_rows(suite: str) -> list[dict[str, str]]:
    """The rows of one suite's table; empty if the suite does not say how the table counts.

    Args:
        suite: Name or file of a suite.

    Returns:
        One row for each printed model, method and ratio but the dense ones.
    """
    from streamline.engine.decoder import Decoder
    from streamline.registry import build_method
    from streamline.report.published import model_name, plain, published_rows
    from streamline.results.record import method_label
    from streamline.run.config import build_config
    from streamline.run.paper_ratio import paper_ratio, ratio_rule
    from streamline.run.planning.estimate import plan_run
    from streamline.run.suites import load_suite
    from streamline.sources.models import load_config

    report = load_suite(suite).report
    rule, layout = ratio_rule(report), report.get("layout")
    if rule is None or layout is None:
        return []
    config = build_config({}, suite=suite)
    decoders = {model: Decoder.from_config(load_config(model)) for model in config.models}
    found = {}
    for row in plan_run(config).rows:
        cell = row.cell
        ratio = paper_ratio(
            rule, cell.model, decoders[cell.model], build_method(cell.method), row.n_removed
        )
        label = method_label(cell.method, cell.recovery)
        if ratio is not None and cell.sparsity:
            found[plain(cell.model), plain(label), cell.sparsity] = (row.n_removed, ratio)
    name = str(layout["published"])
    rows: dict[tuple[str, str, float], dict[str, str]] = {}
    for printed in published_rows(name):
        if printed.ratio is None or printed.method == "Dense":
            continue
        method = plain(layout["methods"].get(printed.method, printed.method))
        model = model_name(printed.llm, layout)
        near = [value for key, value in found.items() if key[:2] == (model, method)]
        layers, ratio = min(
            near, key=lambda value: abs(100 * value[1].ratio - printed.ratio), default=(None, None)
        )
        rows[printed.llm, printed.method, printed.ratio] = {
            "file": name,
            "llm": printed.llm,
            "method": printed.method,
            "ratio_percent": f"{printed.ratio:.1f}",
            "layers": "" if layers is None else str(layers),
            "as_paper_percent": "" if ratio is None else f"{100 * ratio.ratio:.2f}",
            "exact_percent": "" if ratio is None else f"{100 * ratio.counted:.2f}",
            "note": " ".join(rule.open.get(printed.llm, {}).get(printed.method, "").split()),
        }
    return list(rows.values())


def main(arguments: list[str] | None = None) -> int:
    """Write the file; returns the exit code."""
    from streamline.run.suites import suite_files

    [out] = sys.argv[1:] if arguments is None else arguments
    sink = io.StringIO()
    writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for suite in suite_files():
        writer.writerows(recomputed_rows(suite))
    write_text_atomic(Path(out), sink.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
