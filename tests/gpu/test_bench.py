"""The accelerator's table as a whole, in small on the CPU; in each row a planted error is found."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamline.benchmarks.gpu import answers, generation, levels, sleb, students
from streamline.benchmarks.gpu.__main__ import ROWS, main
from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.speed.common import Disagreement
from streamline.engine.paths import PathTrie, dense_path
from streamline.evaluation.generation.prompts import Prompt
from streamline.evaluation.scoring.score import Likelihoods


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.build("tiny", torch.device("cpu"), torch.float32, inputs="made-up")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_row_runs_and_agrees(dtype: str, tmp_path: Path) -> None:
    place = ["--shape", "tiny", "--device", "cpu", "--dtype", dtype, "--out", str(tmp_path)]
    assert main(place) == 0
    data = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["name"] for row in data["rows"]] == list(ROWS)
    assert data["failed"] == {} and data["skipped"] == []
    timed = {row["name"] for row in data["rows"] if row["ratio"] is not None}
    assert timed == set(ROWS) - {"rate", "pruned", "slicegpt", "memory", "start", "agreement"}
    facts = {row["name"]: row["facts"] for row in data["rows"]}
    assert 0 < facts["dense"]["share_of_encoding"] < 1
    assert set(facts["memory"]) == {"calibrate", "train", "evaluate"}
    assert all(stage["ratio"] > 0 for stage in facts["memory"].values())
    assert all(model["decode of 1, ratio"] > 0 for model in facts["pruned"].values())
    assert facts["start"]["seconds"]["all"] > facts["start"]["seconds"]["key"] > 0
    assert facts["slicegpt"]["seconds"] > facts["slicegpt"]["seconds_each"]["eigenvectors"] > 0
    assert facts["slicegpt"]["memory"]["ratio"] > 0
    table = (tmp_path / "README.md").read_text()
    assert all(f"| {name} " in table for name in ROWS)


def test_rows_are_chosen_and_a_failed_one_does_not_cost_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sleb, "greedy", lambda model, tokens, n: (list(range(n)), [0.5] * n))
    out = str(tmp_path)
    assert main(["--shape", "tiny", "--device", "cpu", "--rows", "sleb,rate", "--out", out]) == 1
    data = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["name"] for row in data["rows"]] == ["rate"]
    assert data["failed"]["sleb"].startswith("Disagreement: losses differ")
    with pytest.raises(SystemExit):
        main(["--rows", "dense,fast"])
    assert "no row fast; the rows are rate, encoding, dense" in capsys.readouterr().err


def test_rows_without_time_are_named(tmp_path: Path) -> None:
    place = ["--shape", "tiny", "--device", "cpu", "--seconds", "0", "--out", str(tmp_path)]
    assert main(place) == 0
    assert json.loads((tmp_path / "gpu.json").read_text())["skipped"] == list(ROWS)
    assert "No time was left for: rate, encoding, dense" in (tmp_path / "README.md").read_text()


def altered(found: Likelihoods, by: float) -> Likelihoods:
    return dataclasses.replace(found, loglikelihood=found.loglikelihood + by)


def test_planted_sums_and_grades_are_found(bench: Bench) -> None:
    asked = bench.inputs.questions(3)
    found = answers.ours(bench, [dense_path(bench.decoder)], asked)
    answers.require_same(asked, found, found, exact=True)
    with pytest.raises(Disagreement, match="of model 0 differ by 0.01"):
        answers.require_same(asked, [altered(found[0], 0.01)], found, exact=True)
    answers.require_same(asked, [altered(found[0], 0.01)], found, exact=False)
    with pytest.raises(Disagreement, match=r"of model 0 differ by 0.0\d+, more than 0.02"):
        answers.require_same(asked, [altered(found[0], 1.0)], found, exact=False)
    with pytest.raises(Disagreement, match="differ by nan"):
        answers.require_same(asked, [altered(found[0], np.nan)], found, exact=False)
    (sums,) = [each.loglikelihood for each in found]
    turned = dataclasses.replace(found[0], loglikelihood=sums.mean() * np.ones(len(sums)) + 0.0)
    other = dataclasses.replace(turned, loglikelihood=turned.loglikelihood + 1e-4 * _last(sums))
    with pytest.raises(Disagreement, match="graded alike on"):
        answers.require_same(asked, [other], [turned], exact=True)


def _last(sums: Any) -> Any:
    return np.arange(len(sums)) % 3 == 2


def test_a_layer_that_another_search_removes_must_cost_the_same() -> None:
    ours, theirs = ([3, 1, 2], [2.0, 2.5, 3.0]), ([3, 2, 4], [2.0, 2.5, 9.0])
    found = sleb.same(ours, theirs, exact=False)
    assert found == {"max_relative_difference": 0.0, "rounds_alike": 1, "rounds": 3}
    with pytest.raises(Disagreement, match="round 1 removes layer 1 in our search and 2 in"):
        sleb.same(ours, theirs, exact=True)
    with pytest.raises(Disagreement, match="losses differ"):
        sleb.same(ours, ([3, 2, 4], [2.0, 2.51, 9.0]), exact=False)


def test_regret_of_a_text_that_the_model_would_not_write(bench: Bench) -> None:
    prompt = Prompt((1, 2, 3), (), 4)
    (found,) = generation.side_by_side([dense_path(bench.decoder)], [prompt], bench.tokenizer)
    assert generation.regret(bench.model, prompt, found[0]) == pytest.approx(0, abs=1e-5)
    logits = bench.model(torch.tensor([[1, 2, 3]])).logits[0, -1]
    worst = generation.regret(bench.model, prompt, [int(logits.argmin()), *found[0]][:1])
    assert worst == pytest.approx(float(logits.max() - logits.min()), rel=1e-5)


def test_each_order_is_the_one_that_is_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    for name in ("depth_first", "level_by_level"):
        honest = getattr(PathTrie, name)

        def counted(*given: Any, name: str = name, honest: Any = honest) -> None:
            used.append(name)
            honest(*given)

        monkeypatch.setattr(PathTrie, name, counted)
    outcome = levels.sleb(bench)
    assert set(used) == {"depth_first", "level_by_level"}
    assert used.count("level_by_level") > used.count("depth_first")
    assert outcome.races[0].facts["rounds_alike"] == bench.sizes.removed
    assert PathTrie.forward.__qualname__ == "PathTrie.forward"


def test_the_networks_to_train_are_copied(bench: Bench) -> None:
    work = students.Work.of(bench)
    before = [copy.deepcopy(module.state_dict()) for _, module in work.starts]
    losses = students.ours(bench, work)
    assert all(len(each) == 3 for each in losses)
    for (_, module), state in zip(work.starts, before, strict=True):
        for name, value in module.state_dict().items():
            assert torch.equal(value, state[name])
