"""The rows' outcomes as files: one JSON each, and a Markdown table over all that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamline.benchmarks.speed.common import Outcome
from streamline.files import write_json_atomic, write_text_atomic

__all__ = ["ROWS", "markdown", "save"]

ROWS = (
    "commonsense_dense", "commonsense_variants", "deep_config", "passages", "mmlu_5shot", "spans",
    "students", "sleb", "rate", "scaling",
)  # fmt: skip
"""The rows, in the order of the table; each is a module of this package."""


def save(outcome: Outcome, folder: Path, size: str) -> None:
    """Write a row's JSON (and plot), then the table over all rows that are there."""
    found = outcome.to_json() | {"size": size}
    svg = found["facts"].pop("svg", None)
    if svg is not None:
        write_text_atomic(folder / f"{outcome.name}.svg", svg)
    write_json_atomic(folder / f"{outcome.name}.json", found)
    rows = [
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ROWS
        if (folder / f"{name}.json").is_file()
    ]
    write_text_atomic(folder / "README.md", markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table and each row's notes; what was not measured is ``-``."""
    lines = [
        "# Speed, measured against peers in one run",
        "",
        "Made by `python -m streamline.benchmarks.speed`. Ratios are medians of paired repetitions "
        "in one process, the peer's time over ours; results are compared first, and a row whose "
        "results differ has no number. `cpu` is the same ratio in processor time, steadier where "
        "other programs run. Sizes: `quick`, `default` or `full` (the sizes of the table).",
        "",
        "| row | work | against | target | wall | cpu | reached | size | repetitions |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        value = row["ratio"] if row["value"] is None else row["value"]
        cpu = row["ratios"].get("ours", {}).get("cpu")
        reached = "-"
        if row["target"] is not None and value is not None:
            reached = "yes" if value >= row["target"] else "no"
        cells = [
            row["row"], row["work"], row["against"], _number(row["target"]), _number(value),
            _number(cpu), reached, row["size"], str(len(row["races"]) or "-"),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
        if "bf16" in row["facts"]:
            half = row["facts"]["bf16"]
            reached = "yes" if half["ratio"] >= half["target"] else "no"
            cells = [
                f"{row['row']}, bf16", "the same in bfloat16", "lm-eval hf in float32",
                _number(half["target"]), _number(half["ratio"]),
                _number(row["ratios"]["ours_bf16"]["cpu"]), reached, row["size"],
                str(len(row["races"])),
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    for row in rows:
        lines += ["", f"## {row['row']}", ""]
        lines += [f"* {note}" for note in row["notes"]]
        lines += [f"* {line}" for line in _details(row)]
    return "\n".join(lines) + "\n"


def _details(row: dict[str, Any]) -> list[str]:
    out = []
    facts, place = row["facts"], row["machine"]
    for index, race in enumerate(row["races"]):
        times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in race["wall_s"].items())
        out.append(f"repetition {index + 1}: {times}")
    if "batch_size" in facts:
        tried = ", ".join(f"{k}: {v:.1f} s" for k, v in facts["batch_size_seconds"].items())
        out.append(f"lm-eval's batch size {facts['batch_size']} (sample: {tried})")
    if "max_difference" in facts:
        out.append(f"largest difference of a summed log-probability: {facts['max_difference']:.1e}")
    if "accuracy" in facts:
        shown = ", ".join(f"{k} {v['accuracy']:.3f}" for k, v in facts["accuracy"].items())
        out.append(f"accuracy, the same on both sides question by question: {shown}")
    if "bf16" in facts:
        half = facts["bf16"]
        shown = ", ".join(f"{k} {v['accuracy']:.3f}" for k, v in half["accuracy"].items())
        out.append(
            f"accuracy in bfloat16: {shown}; {half['questions_graded_alike']:.1%} of questions "
            f"graded alike; log-probabilities differ by {half['mean_difference']:.2g} on average, "
            f"{half['max_difference']:.2g} at most"
        )
    if isinstance(facts.get("sharing"), list):
        first = facts["sharing"][0]
        out.append(
            f"sharing: {first['layer_runs']} layer runs for {first['layer_runs_unshared']}, "
            f"{first['tokens']} tokens for {first['tokens_unshared']} (first repetition)"
        )
    if "ratio_against_cosine_runs_alone" in facts:
        out.append(
            "against the five cosine runs alone: "
            f"{_number(facts['ratio_against_cosine_runs_alone'])}"
        )
    for run in facts.get("runs", []):
        rates = ", ".join(f"{k} {v / 1e9:.0f}" for k, v in run["matrix_rates"].items())
        out.append(
            f"{run['rate'] / 1e9:.1f} GFLOP/s useful, {run['tokens_per_s']:.0f} distinct tokens/s; "
            f"matrix products: {rates} GFLOP/s"
        )
    if "profile" in facts:
        shown = ", ".join(f"{p['function']} {p['share']:.0%}" for p in facts["profile"][:8])
        out.append(f"profile (own time): {shown}")
    for axis, line in facts.get("lines", {}).items():
        out.append(f"{axis}: {line['fixed_s']:.2f} s + {line['per_unit_s']:.4f} s each")
    if row["row"] == "scaling":
        out.append("![time against questions, models, layers and tokens](scaling.svg)")
    for side, sizes in (row["memory_bytes"] or {}).items():
        shown = ", ".join(
            f"{size}: {(m['peak'] - m['before']) / 2**20:.0f} MiB" for size, m in sizes.items()
        )
        out.append(f"peak memory above the loaded model, {side}, by samples or tokens: {shown}")
    versions = ", ".join(f"{k} {row['versions'][k]}" for k in ("torch", "transformers", "lm-eval"))
    out.append(
        f"{place['processor']}, {place['cores']} cores, {place['threads']} threads, "
        f"{place['capability']}, load {place['load'][0]} at the end; {versions}"
    )
    return out


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
