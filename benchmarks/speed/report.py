"""The rows' outcomes as files: one JSON each, and a Markdown table over all that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamline.benchmarks.speed.common import Outcome, counted
from streamline.files import write_json_atomic, write_text_atomic

__all__ = ["APART", "ROWS", "markdown", "save"]

ROWS = (
    "commonsense_dense", "commonsense_variants", "deep_config", "passages", "mmlu_5shot", "spans",
    "students", "sleb", "rate", "scaling", "embedded", "generation", "streaming",
)  # fmt: skip
"""The rows, in the order of the table; each is a module of this package."""
APART = ("embedded", "generation", "streaming")
"""Rows without a target, run only by name: they take long, the last gigabytes of disk too."""


def save(outcome: Outcome, folder: Path, size: str) -> None:
    """Write a row's JSON (and plot), then the table over all rows that are there.

    A row at its full size is kept beside the same row at another.
    """
    found = outcome.to_json() | {"size": size}
    svg = found["facts"].pop("svg", None)
    if svg is not None:
        write_text_atomic(folder / f"{outcome.name}.svg", svg)
    write_json_atomic(folder / f"{outcome.name}{'-full' if size == 'full' else ''}.json", found)
    files = [folder / f"{name}{end}.json" for name in ROWS for end in ("", "-full")]
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    write_text_atomic(folder / "README.md", markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table and each row's notes; what was not measured is ``-``."""
    lines = [
        "# Speed, measured against peers in one run",
        "",
        "Made by `make speed`, that is `python -m streamline.benchmarks.speed [ROW ...]`. A ratio "
        "is the peer's time over ours, the median of paired repetitions in one process (their "
        "number stands with each row); results are compared first, and a row whose results differ "
        "has no number. `cpu` is the same ratio in processor time, steadier where other programs "
        "run: the load stands with each row. Sizes: `quick` (fewest questions), `default`, `full` "
        "(hours). "
        "`make bench` itself, before and after: [make-bench.md](make-bench.md).",
        "",
        "| row | work | against | target | wall | cpu | reached | size | repetitions |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        value = row["ratio"] if row["value"] is None else row["value"]
        cpu = row["ratios"].get("ours", {}).get("cpu", row["facts"].get("value_cpu"))
        lines.append(_line(row, _name(row), row["work"], row["against"], row["target"], value, cpu))
        half = row["facts"].get("bf16")
        if half is not None:
            name, work = f"{_name(row)}, bf16", "the same, ours in bfloat16"
            cpu = row["ratios"].get("ours_bf16", {}).get("cpu", half.get("cpu"))
            lines.append(
                _line(row, name, work, half["against"], half.get("target"), half["ratio"], cpu)
            )
    asked = [row for row in rows if row["row"] not in APART and row["size"] != "full"]
    taken = [row["facts"]["row_s"] for row in asked if "row_s" in row["facts"]]
    if taken:
        lines += [
            "",
            f"`make speed`'s {counted(len(taken), 'row')} took {sum(taken) / 60:.0f} minutes, all "
            "preparation in; the others are run by name.",
        ]
    for row in rows:
        lines += ["", f"## {_name(row)}", ""]
        lines += [f"* {note}" for note in row["notes"]]
        lines += [f"* {line}" for line in _details(row)]
    return "\n".join(lines) + "\n"


def _name(row: dict[str, Any]) -> str:
    return f"{row['row']}, full" if row["size"] == "full" else str(row["row"])


def _line(
    row: dict[str, Any],
    name: str,
    work: str,
    against: str,
    target: float | None,
    value: float | None,
    cpu: float | None,
) -> str:
    """One line of the table."""
    reached = "-"
    if target is not None and value is not None:
        reached = "yes" if value >= target else "no"
    numbers = (_number(target), _number(value), _number(cpu))
    pairs = str(len(row["races"]) or "-")
    return "| " + " | ".join([name, work, against, *numbers, reached, row["size"], pairs]) + " |"


def _details(row: dict[str, Any]) -> list[str]:
    """What a reader may ask of a row, a line each."""
    facts = row["facts"]
    out = []
    for index, race in enumerate(row["races"]):
        times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in race["wall_s"].items())
        used = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in race["cpu_s"].items())
        out.append(f"repetition {index + 1}: {times}; processor time {used}")
    out += [*_peaks(row["races"]), *_answers(facts), *_counts(facts), *_measured(facts)]
    if row["row"] == "scaling":
        out.append("![time against questions, models, layers and tokens](scaling.svg)")
    for side, sizes in (row["memory_bytes"] or {}).items():
        shown = ", ".join(
            f"{size}: {(m['peak'] - m['before']) / 2**20:.0f} MiB" for size, m in sizes.items()
        )
        out.append(f"peak memory above the loaded model, {side}, by samples or tokens: {shown}")
    return [*out, _machine(row)]


def _peaks(races: list[dict[str, Any]]) -> list[str]:
    """The largest resident sets of the repetitions, where they were measured."""
    most: dict[str, int] = {}
    for race in races:
        for name, size in race.get("peak_bytes", {}).items():
            if size is not None:
                most[name] = max(size, most.get(name, 0))
    shown = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in sorted(most.items()))
    return [f"peak memory beyond what was loaded: {shown}"] if shown else []


def _answers(facts: dict[str, Any]) -> list[str]:
    """How the answers compare, in float32 and in bfloat16."""
    out = []
    if facts.get("batch_size_us_per_token"):
        tried = ", ".join(f"{k}: {v:.0f}" for k, v in facts["batch_size_us_per_token"].items())
        out.append(
            f"lm-eval's batch size {facts['batch_size']} (microseconds a token tried: {tried})"
        )
    if "max_difference" in facts:
        where = f" (of {facts['sum_there']:.0f})" if "sum_there" in facts else ""
        out.append(
            f"largest difference of a summed log-probability: {facts['max_difference']:.1e}{where}"
        )
    if "accuracy" in facts:
        out.append(
            "right answers of the dense model, the same on both sides question by question: "
            + _accuracies(facts["accuracy"])
        )
    half = facts.get("bf16", {})
    if "accuracy" in half:
        out.append(f"right answers in bfloat16: {_accuracies(half['accuracy'])}; {_effect(half)}")
    if "theirs" in half:
        out.append(
            f"lm-eval's own bfloat16: ours in bfloat16 is {_number(half['ratio_against_bf16'])} "
            f"times as fast; its {_effect(half['theirs'])}"
        )
    return out


def _accuracies(found: dict[str, dict[str, float]]) -> str:
    """Right answers of those asked; a fraction would hide how few they are."""
    return ", ".join(
        f"{task} {round(value['accuracy'] * value['n'])}/{value['n']}"
        for task, value in found.items()
    )


def _effect(half: dict[str, Any]) -> str:
    return (
        f"answers against float32: {half['questions_graded_alike']:.1%} of questions graded alike, "
        f"log-probabilities differ by {half['mean_difference']:.2g} on average, "
        f"{half['max_difference']:.2g} at most"
    )


def _counts(facts: dict[str, Any]) -> list[str]:
    """What is shared."""
    if not isinstance(facts.get("sharing"), list):
        return []
    total = {key: sum(part[key] for part in facts["sharing"]) for key in facts["sharing"][0]}
    first = facts["sharing"][0]
    return [
        f"sharing: {first['layer_runs']} layer runs a batch for {first['layer_runs_unshared']}, "
        f"{total['tokens']} tokens for {total['tokens_unshared']}"
    ]


def _measured(facts: dict[str, Any]) -> list[str]:
    """Rates, lines and profiles."""
    out = []
    if "ratio_against_cosine_runs_alone" in facts:
        shown = _number(facts["ratio_against_cosine_runs_alone"])
        out.append(f"against the five cosine runs alone: {shown}")
    for run in facts.get("runs", []):
        rates = ", ".join(f"{k} {v / 1e9:.0f}" for k, v in run["matrix_rates"]["wall"].items())
        out.append(
            f"{run['dtype']}: {run['rate']['wall'] / 1e9:.1f} GFLOP/s useful, "
            f"{run['tokens_per_s']:.0f} distinct tokens/s; matrix products: {rates} GFLOP/s; "
            f"in processor time {run['rate']['cpu'] / 1e9:.1f} of "
            f"{max(run['matrix_rates']['cpu'].values()) / 1e9:.0f}"
        )
    if "profile" in facts:
        shown = ", ".join(f"{p['function']} {p['share']:.0%}" for p in facts["profile"][:8])
        out.append(f"profile (own time): {shown}")
    for axis, line in facts.get("lines", {}).items():
        out.append(f"{axis}: {line['fixed_s']:.2f} s + {line['per_unit_s']:.4f} s each")
    return out


def _machine(row: dict[str, Any]) -> str:
    place = row["machine"]
    versions = ", ".join(f"{k} {row['versions'][k]}" for k in ("torch", "transformers", "lm-eval"))
    taken = row["facts"].get("row_s")
    shown = "" if taken is None else f"the whole row {taken:.0f} s, "
    begin = place.get("load_at_start")
    load = f"load {place['load'][0]} at the end"
    load = load if begin is None else f"load {begin[0]} at the start, {place['load'][0]} at the end"
    return (
        f"{shown}{place['processor']}, {place['cores']} cores, {place['threads']} threads, "
        f"{place['capability']}, {load}; {versions}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
