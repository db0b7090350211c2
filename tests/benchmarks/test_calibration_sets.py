from __future__ import annotations

import numpy as np
import pytest

from streamline.benchmarks import calibration_sets
from streamline.benchmarks.calibration_sets import Cell, between, spread_table
from streamline.results.record import Record
from streamline.sources import texts
from streamline.sources.batches import TokenBatches
from streamline.sources.packaged import Passage
from streamline.testing.models import tiny_tokenizer


def cell(method: str, text: str, samples: int, seed: int, accuracy: float, layers: list[int]):
    record = Record.model_validate(
        {
            "model": "m", "method": method, "sparsity": 0.25, "seed": seed, "recovery": "none",
            "status": "ok", "plan": {"removed_layers": layers},
            "summary": {"accuracy": accuracy, "perplexity": {"heldout": float(np.exp(accuracy))}},
        }
    )  # fmt: skip
    return Cell(f"{method}@0.25", text, samples, record)


def test_the_spread_is_told_for_texts_sizes_and_seeds_apart():
    values = {("p", 4, 0): 0.50, ("p", 4, 1): 0.52, ("p", 16, 0): 0.56, ("w", 4, 0): 0.60}
    cells = [cell("a", *where, value, [1, where[1]]) for where, value in values.items()]
    cells += [cell("b", *where, 0.3, [5]) for where in values]
    table = spread_table(cells)
    first = next(row for row in table.rows if row[:2] == ("a@0.25", "accuracy, %"))
    assert first[2:4] == ("4", "54.5")
    by_text, by_size, by_seed = (np.std(pair, ddof=1) for pair in ((50, 60), (50, 56), (50, 52)))
    assert first[4:7] == tuple(f"{std:.2g}" for std in (by_text, by_size, by_seed))
    assert first[7] == "2"
    other = next(row for row in table.rows if row[:2] == ("b@0.25", "accuracy, %"))
    assert other[4:] == ("0", "0", "0", "1")
    assert any("lie between methods" in note for note in table.notes)


def test_the_part_between_methods_is_that_of_the_variance_components():
    rng = np.random.default_rng(0)
    methods = rng.normal(0, 2.0, 400)
    groups = [(mean + rng.normal(0, 1.0, 6)).tolist() for mean in methods]
    assert between(groups) == pytest.approx(4 / 5, abs=0.03)
    same = [rng.normal(0, 1.0, 6).tolist() for _ in range(400)]
    assert between(same) == pytest.approx(0.0, abs=0.03)
    assert between([[1.0, 1.0], [2.0, 2.0]]) == 1.0
    assert between([[1.0, 2.0]]) is None and between([[1.0], [2.0]]) is None


def test_a_dry_run_of_each_set_ends_without_a_table(tmp_path, monkeypatch, capsys):
    runs = []
    monkeypatch.setattr(calibration_sets, "command", runs.append)
    out = tmp_path / "sets"
    arguments = ["--texts", "a,b", "--samples", "2,3", "--out", str(out), "--dry-run"]
    assert calibration_sets.main(arguments) == 0
    assert [run[run.index("--calibration") + 1] for run in runs] == ["a", "a", "b", "b"]
    assert all(run[-1] == "--dry-run" for run in runs)
    assert not out.exists() and not capsys.readouterr().out


def test_the_default_texts_are_several_and_draw_different_tokens(tmp_path, monkeypatch):
    domains = ("books", "wikipedia", "arxiv", "sports-history")
    rows = [Passage(f"{d} {i} " * 40, d, f"{d} {i}") for i in range(40) for d in domains]
    monkeypatch.setattr(texts, "packaged_passages", lambda: rows)
    runs = []
    monkeypatch.setattr(calibration_sets, "command", runs.append)
    calibration_sets.main(["--samples", "2", "--out", str(tmp_path), "--dry-run"])
    names = [run[run.index("--calibration") + 1] for run in runs]
    assert names[0] == "packaged" and len(names) == 5
    batches = TokenBatches(tiny_tokenizer())
    drawn = [batches.tokens(name, n_samples=2, length=64, seed=0) for name in names]
    assert len({tuple(tokens.flatten().tolist()) for tokens in drawn}) == len(names)
