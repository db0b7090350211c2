from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from streamline.report.figures.answers import answers_figure
from streamline.report.figures.cosine import chosen_spans, cosine_figure
from streamline.report.figures.figure import drawn, page_json, svg
from streamline.report.figures.layers import layers_figure
from streamline.report.figures.losses import loss_figure
from streamline.report.figures.measures import measure_figure
from streamline.report.figures.pareto import pareto_figure
from streamline.report.figures.style import Style
from streamline.report.findings.rows import rows
from streamline.results.record import Record
from streamline.results.record_file import load

METHODS = [
    "random-layers",
    "shortgpt",
    "llm-streamline-none",
    "llm-streamline-ffn",
    "llm-streamline-layer",
]
STYLE = Style(METHODS)


@pytest.fixture(scope="module")
def mine(run_folder):
    return rows(load(run_folder), {})


def texts(figure, view=0):
    root = ET.fromstring(svg(figure, figure.views[view]))
    return {"".join(item.itertext()) for item in root.iter("{http://www.w3.org/2000/svg}text")}


def labels(figure):
    return [view.label for view in figure.views]


def test_each_method_has_one_colour_and_shape_of_its_own():
    style = Style([f"m{i}" for i in range(28)])
    colours = [style.colour_of(name) for name in style.methods]
    marks = style.shape()["scale"]["range"]
    assert len(set(zip(colours, marks, strict=True))) == 28
    assert style.colour(["m9", "m2"])["scale"] == {
        "domain": ["m9", "m2"],
        "range": [colours[9], colours[2]],
    }
    assert style.colour_of("dense") not in colours


def test_dots_have_intervals_and_the_dense_model_s_line(mine):
    figure = measure_figure(mine, "accuracy", STYLE)
    assert {"shortgpt", "10 %", "25 %", "average accuracy, %"} <= texts(figure)
    assert labels(figure) == ["by method", "by sparsity"]
    dense = next(row for row in mine if row.dense)
    for point in figure.data["rows"]:
        row = next(
            row
            for row in mine
            if (row.method, 100 * row.sparsity) == (point["method"], float(point["target"][:-2]))
        )
        assert point["high"] - point["low"] == pytest.approx(392 * row.accuracy.stderr)
        assert point["dense"] == pytest.approx(100 * dense.accuracy.value)
    assert all(p["dense"] is None for p in measure_figure(mine, "stability", STYLE).data["rows"])


def test_one_sparsity_has_dots_alone(mine):
    some = [row for row in mine if row.sparsity in (0, 0.25)]
    assert len(measure_figure(some, "accuracy", STYLE).views) == 1


def test_accuracy_stands_against_speed_and_whatever_else_was_measured(mine):
    figure = pareto_figure(mine, STYLE)
    assert labels(figure) == [
        "decoding speed",
        "prefill speed",
        "parameters",
        "memory",
        "training cost",
    ]
    assert {"decoding speed, times dense (batch 1)", *METHODS} <= texts(figure)
    best = [point for point in figure.data["frontier"] if point["measure"] == "decoding speed"]
    there = [point for point in figure.data["rows"] if point["measure"] == "decoding speed"]
    for point in best:
        assert not any(p["x"] > point["x"] and p["y"] > point["y"] for p in there)


def test_records_without_speed_stand_against_their_parameters():
    cells = [
        Record.build(
            {
                "model": "m",
                "method": method,
                "sparsity": removed,
                "status": "ok",
                "parameters": {"removed_fraction": removed},
                "summary": {"accuracy": kept / 2, "relative_accuracy": kept},
            }
        )
        for method, removed, kept in (("dense", 0.0, 1.0), ("a", 0.1, 0.9), ("b", 0.25, 0.7))
    ]
    figure = pareto_figure(rows(cells, {}), Style(["a", "b"]))
    assert labels(figure) == ["parameters"]
    assert figure.data["rows"][0]["y_low"] == figure.data["rows"][0]["y_high"]


def test_layers_are_kept_removed_replaced_or_changed(mine):
    figure = layers_figure(mine, STYLE)
    cells = [cell for cell in figure.data["rows"] if cell["target"] == "25 %"]
    ffn = {cell["layer"]: cell["state"] for cell in cells if cell["method"].endswith("ffn")}
    none = {cell["layer"]: cell["state"] for cell in cells if cell["method"].endswith("none")}
    assert len(ffn) == 30
    assert {state for layer, state in ffn.items() if 11 <= layer < 21} == {"replaced"}
    assert (none[11], none[10]) == ("removed", "kept")
    cell = {"model": "m", "sparsity": 0.25, "status": "ok"}
    plans = {
        "drop": {"removed_layers": [1], "kept_layers": [0, 3]},
        "narrow": {"removed_layers": [], "kept_layers": [0, 1, 2, 3]},
    }
    made = [Record.build({**cell, "method": name, "plan": plan}) for name, plan in plans.items()]
    states = [cell["state"] for cell in layers_figure(rows(made, {}), STYLE).data["rows"]]
    assert states == ["kept", "removed", "changed", "kept", *["changed"] * 4]


def test_chosen_spans_stand_beside_the_next_best(mine):
    cosine = np.exp(-np.abs(np.subtract.outer(np.arange(31), np.arange(31))) / 3)
    spans = chosen_spans(mine)
    assert "llm-streamline-ffn" in spans[11, 21]
    figure = cosine_figure(cosine, "m", spans)
    kinds = [(mark["kind"], mark["stop"] - mark["start"]) for mark in figure.data["spans"]]
    assert kinds.count(("chosen", 10)) == 1 and kinds.count(("runner-up", 10)) == 3
    assert {"to depth", "cosine"} <= texts(figure)
    assert {"10 layers", "first layer of the span"} <= texts(figure, 1)
    assert "1 layer" in texts(cosine_figure(cosine, "m", {}), 1)


def test_answers_add_up_to_the_accuracy(mine):
    figure = answers_figure(mine)
    assert labels(figure) == ["10 %", "25 %"]
    assert {"piqa", "hellaswag", "lost", "kept", "gained"} <= texts(figure)
    row = next(row for row in mine if row.method == "shortgpt" and row.sparsity == 0.25)
    ends = [
        bar["to"]
        for bar in figure.data["rows"]
        if (bar["method"], bar["target"], bar["task"]) == ("shortgpt", "25 %", "piqa")
    ]
    assert max(ends) == pytest.approx(100 * row.tasks["piqa", "acc"].value)


def test_loss_curves_leave_out_steps_without_validation():
    evaluations = [
        {"step": i, "tokens": 1000 * i, "validation_loss": None if i % 2 else 1 / (i + 1)}
        for i in range(9)
    ]
    figure = loss_figure({"25 %": {"llm-streamline-ffn-3": evaluations}}, "m", STYLE)
    assert {row["method"] for row in figure.data["rows"]} == {"llm-streamline-ffn"}
    assert len(figure.data["rows"]) == 5
    assert {"training tokens", "validation loss"} <= texts(figure)
    bare = [{"step": i, "validation_loss": 1.0} for i in range(3)]
    assert "steps" in texts(loss_figure({"": {"x": bare}}, "m", STYLE))


def test_nothing_measured_makes_no_figure():
    bare = [Record.build({"model": "m", "method": "x", "sparsity": 0.1, "status": "failed"})]
    none = rows(bare, {})
    assert measure_figure(none, "accuracy", STYLE) is None
    assert pareto_figure(none, STYLE) is layers_figure(none, STYLE) is answers_figure(none) is None
    assert loss_figure({}, "m", STYLE) is None
    assert loss_figure({"": {"a": [{"step": 0, "train_loss": 1.0}]}}, "m", STYLE) is None


def test_the_same_records_give_the_same_bytes_without_a_date(mine):
    figures = [pareto_figure(mine, STYLE), measure_figure(mine, "accuracy", STYLE)]
    first, again = ([drawn(figure) for figure in figures] for _ in range(2))
    for one, other in zip(sum(first, []), sum(again, []), strict=True):
        assert one.svg == other.svg
        assert one.pdf == other.pdf and one.pdf.startswith(b"%PDF")
        assert not re.search(r"20\d\d-\d\d-\d\d", one.svg)
        assert not re.search(rb"/CreationDate|/ModDate", one.pdf)


def test_a_page_has_the_data_once_and_its_own_colours(mine):
    figure = measure_figure(mine, "accuracy", STYLE)
    found = json.loads(page_json([figure]))
    [held] = found["figures"].values()
    assert held["data"] == {name: list(part) for name, part in figure.data.items()}
    assert len(held["views"]) == 2 and set(held["views"][0]) == {"wide", "narrow"}
    text = json.dumps(found)
    assert "currentColor" in text and "#1a1a1b" not in text and "#ffffff" not in text
