"""How scoring time grows with questions, variants, layers and tokens: numbers and a plot."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Sequence
from typing import Any

from streamline.benchmarks.speed import questions
from streamline.benchmarks.speed.common import Options, Outcome, loaded
from streamline.benchmarks.speed.scoring_row import KINDS, replaced
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, dense_path
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.scoring.score import score
from streamline.plan import Span

__all__ = ["AXES", "fitted", "plot", "run", "sweep"]

AXES = {
    "quick": {
        "questions": (1, 2, 4),
        "variants": (1, 3, 5),
        "layers": (8, 19, 30),
        "tokens": (64, 128, 256),
    },
    "default": {
        "questions": (4, 8, 16, 32),
        "variants": (1, 3, 5, 9, 13),
        "layers": (6, 12, 18, 24, 30),
        "tokens": (64, 128, 256, 512, 1024),
    },
}
_SPANS = (Span(20, 23), Span(18, 24), Span(17, 26))


def sweep(
    decoder: Decoder, tokenizer: Any, axes: dict[str, Sequence[int]], repeats: int
) -> dict[str, list[dict[str, float]]]:
    """Fewest seconds of scoring along each axis, the others held, by both clocks.

    Args:
        decoder: The model.
        tokenizer: Its tokenizer.
        axes: For each axis the values: questions of each of two tasks; models scored together;
            layers of the model; tokens of a request's context.
        repeats: Timings of each point.
    """
    asked = questions.task_parts(
        ["piqa", "arc_easy"], tokenizer, decoder.model, max(axes["questions"])
    )
    requests = {n: questions.slices(asked, n, 1)[0].requests for n in axes["questions"]}
    base = requests[min(axes["questions"])]
    spans = [s for s in _SPANS if s.stop <= decoder.n_layers] or [Span(1, 2)]
    models = [dense_path(decoder)]
    models += [replaced(decoder, span, kind) for span in spans for kind in KINDS]
    long = [_text(tokenizer, length) for length in axes["tokens"]]
    points: dict[str, list[tuple[int, list[Path], Sequence[Request]]]] = {
        "questions": [(n, models[:1], requests[n]) for n in axes["questions"]],
        "variants": [(n, models[:n], base) for n in axes["variants"]],
        "layers": [(n, [_short(decoder, n)], base) for n in axes["layers"]],
        "tokens": [(n, models[:1], some) for n, some in zip(axes["tokens"], long, strict=True)],
    }
    score(models[:1], base[:4])  # warm up
    out: dict[str, list[dict[str, float]]] = {}
    for axis, rows in points.items():
        out[axis] = []
        for value, paths, some in rows:
            wall, cpu = [], []
            for _ in range(repeats):
                started, used = time.perf_counter(), time.process_time()
                score(paths, some)
                wall.append(time.perf_counter() - started)
                cpu.append(time.process_time() - used)
            out[axis].append({"value": value, "seconds": min(wall), "cpu_s": min(cpu)})
    return out


def fitted(points: Sequence[dict[str, float]]) -> dict[str, float]:
    """Fixed seconds and seconds per unit of a straight line through the processor times."""
    xs, ys = [p["value"] for p in points], [p["cpu_s"] for p in points]
    slope, fixed = statistics.linear_regression(xs, ys)
    return {"fixed_s": fixed, "per_unit_s": slope}


def plot(points: dict[str, list[dict[str, float]]]) -> str:
    """The four curves as SVG."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.8), layout="constrained")
    FigureCanvasSVG(figure)
    labels = {
        "questions": "questions of each of two tasks",
        "variants": "models in one walk",
        "layers": "layers",
        "tokens": "tokens of each of four requests",
    }
    for axis, (name, rows) in zip(figure.subplots(1, len(points)), points.items(), strict=True):
        values = [row["value"] for row in rows]
        line = fitted(rows)
        ends = [0.0, max(values)]
        axis.plot(
            ends,
            [line["fixed_s"] + line["per_unit_s"] * x for x in ends],
            color="tab:blue", linewidth=1, label="straight line",
        )  # fmt: skip
        axis.plot(values, [r["cpu_s"] for r in rows], "o", color="tab:blue", label="processor time")
        axis.plot(
            values, [r["seconds"] for r in rows], "o", color="0.5", mfc="none", label="wall clock"
        )
        axis.set_xlabel(labels[name])
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds")
    figure.axes[0].legend(frameon=False, fontsize="small")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def run(options: Options) -> Outcome:
    """Time the four sweeps."""
    model, tokenizer = loaded(options.model)
    axes: dict[str, Sequence[int]] = dict(AXES["quick" if options.size == "quick" else "default"])
    points = sweep(Decoder(model), tokenizer, axes, options.repeats)
    return Outcome(
        name="scaling",
        work="scoring time against questions, models in one walk, layers, tokens",
        against="nothing",
        target=None,
        facts={
            "points": points,
            "lines": {axis: fitted(rows) for axis, rows in points.items()},
            "svg": plot(points),
        },
        notes=[
            "Each point is the fastest of the repetitions; lines are through processor times.",
            "Variants branch off at layers 17 to 20 of 30; the layers before run once.",
        ],
    )


def _short(decoder: Decoder, n_layers: int) -> Path:
    """The model's first layers alone."""
    return Path(decoder, dense_path(decoder).nodes[:n_layers], f"first-{n_layers}")


def _text(tokenizer: Any, length: int) -> list[Request]:
    """Four requests of one length with nothing in common."""
    words = tokenizer("The quick brown fox jumps over the lazy dog. " * length).input_ids
    return [Request("tokens", i, 0, tuple(words[i : i + length]), (words[0],)) for i in range(4)]
