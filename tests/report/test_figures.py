from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from streamline.report.drawing import INK, moved_apart
from streamline.report.figures import (
    cosine_heatmap,
    layer_cosine_figure,
    loss_figure,
    size_figure,
    sparsity_figure,
)
from streamline.results.record import Record
from streamline.results.record_file import load


def texts(svg):
    root = ET.fromstring(svg)
    return ["".join(item.itertext()) for item in root.iter("{http://www.w3.org/2000/svg}text")]


def test_each_method_is_named_at_its_line(run_folder):
    svg = sparsity_figure(load(run_folder), "accuracy")
    words = texts(svg)
    assert {"shortgpt", "llm-streamline-ffn", "dense", "average accuracy, %"} <= set(words)
    assert {"0.1", "0.25"} <= set(words)
    assert INK in svg


@pytest.mark.parametrize("measure", ["stability", "relative_accuracy"])
def test_other_measures(run_folder, measure):
    assert "shortgpt" in texts(sparsity_figure(load(run_folder), measure))
    assert "parameters removed, %" in texts(size_figure(load(run_folder), measure))


def test_the_same_records_give_the_same_bytes_without_a_date(run_folder):
    records = load(run_folder)
    svg = sparsity_figure(records)
    assert svg == sparsity_figure(records)
    assert not re.search(r"dc:date|20\d\d-\d\d-\d\d", svg)


def test_nothing_measured_makes_no_figure():
    bare = [Record.build({"model": "m", "method": "x", "sparsity": 0.1, "status": "failed"})]
    assert sparsity_figure(bare) is None
    assert size_figure(bare) is None
    assert loss_figure({}) is None
    assert loss_figure({"a": [{"step": 0, "train_loss": 1.0}]}) is None


def test_loss_curves_leave_out_steps_without_validation():
    rows = [{"step": i, "tokens": 1000 * i, "validation_loss": None if i % 2 else 1 / (i + 1)}
            for i in range(9)]  # fmt: skip
    words = texts(loss_figure({"ffn": rows}))
    assert {"ffn", "training tokens", "validation loss"} <= set(words)
    bare = [{"step": i, "validation_loss": 1.0} for i in range(3)]
    assert "steps" in texts(loss_figure({"ffn": bare}))


def test_cosine_figures():
    cosine = np.exp(-np.abs(np.subtract.outer(np.arange(7), np.arange(7))) / 3)
    assert "mean cosine" in texts(cosine_heatmap(cosine, "m"))
    words = texts(layer_cosine_figure(cosine, (1, 4, 99), "m"))
    assert {"1 layer", "4 layers"} <= set(words)
    assert "99 layers" not in words


def test_labels_aremoved_apart_in_their_order():
    moved = moved_apart([0.5, 0.51, 0.1, 0.52], 0.06)
    ordered = sorted(moved)
    assert all(b - a >= 0.06 - 1e-6 for a, b in zip(ordered, ordered[1:], strict=False))
    assert np.argsort(moved).tolist() == [2, 0, 1, 3]
    assert moved_apart([0.1, 0.9], 0.06) == [0.1, 0.9]


def test_names_stay_beside_the_axes_where_they_fit():
    low = moved_apart([0.0, 0.01, 0.02], 0.1)
    assert low == pytest.approx([0.0, 0.1, 0.2], abs=1e-6)
    high = moved_apart([0.98, 0.99, 1.0], 0.1)
    assert high == pytest.approx([0.8, 0.9, 1.0], abs=1e-6)
