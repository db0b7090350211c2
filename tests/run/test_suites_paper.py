from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from streamline.baselines.streamline_v1 import v1_recipe
from streamline.cli.screen.dry_run import show_plan
from streamline.engine.budget import layers_to_remove
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError
from streamline.evaluation.tasks.catalogue import resolve
from streamline.registry import base_name, build_method, load_method
from streamline.report.published import model_name, plain, published_rows
from streamline.results.record import method_label
from streamline.run.cell import expand
from streamline.run.config import build_config
from streamline.run.paper_ratio import PaperRatio, RatioRule, paper_ratio, ratio_rule
from streamline.run.pipeline import prune_to_checkpoint
from streamline.run.planning import estimate as sizing
from streamline.run.planning.estimate import plan_run
from streamline.run.suites import load_suite, suite_files
from streamline.sources.models import load_config
from streamline.testing.models import tiny_model, tiny_tokenizer

PAPER = sorted(name for name in suite_files() if name.startswith("paper-"))
#: Printed ratios that no count of layers over any total gives; each has its reason in the suite.
OPEN = {
    ("v1_table1_ppl", "Llama2-7B", method)
    for method in ("LLMPruner", "SliceGPT", "LaCo", "ShortGPT", "ShortGPT*")
} | {("v1_table3_opt", llm, "SliceGPT") for llm in ("OPT-1.3B", "OPT-2.7B")}


@functools.cache
def _decoder(model: str) -> Decoder:
    return Decoder.from_config(load_config(model))


def test_the_recipe_of_the_first_version_is_that_of_its_suites() -> None:
    suite = build_config({}, suite="paper-table1").for_model("llama2-7b").training
    recipe = v1_recipe()
    for field in ("n_tokens", "length", "batch_tokens", "epochs", "learning_rate"):
        assert getattr(recipe, field) == getattr(suite, field), field


def _recomputed(suite: str) -> dict[tuple[str, str, float], tuple[int, PaperRatio]]:
    """(printed model, method with recovery, rounded ratio) -> layers and the paper's ratio."""
    config, report = build_config({}, suite=suite), load_suite(suite).report
    rule = ratio_rule(report)
    assert rule is not None
    found = {}
    for row in plan_run(config).rows:
        cell = row.cell
        ratio = paper_ratio(
            rule, cell.model, _decoder(cell.model), build_method(cell.method), row.n_removed
        )
        if ratio is not None and row.n_removed:
            label = method_label(cell.method, cell.recovery)
            key = (plain(cell.model), plain(label), round(100 * ratio.ratio, 1))
            found[key] = (row.n_removed, ratio)
            assert ratio.counted == pytest.approx(row.removed_fraction, abs=1e-12)
    return found


def test_there_is_a_suite_for_each_table_and_figure() -> None:
    tables = [f"paper-table{number}" for number in range(1, 7)]
    figures = [f"paper-figure{number}" for number in (2, 3, 4)]
    assert sorted([*tables, *figures, "paper-main", "paper-lora"]) == PAPER


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("flags", [{}, {"models": "smollm2-135m-instruct"}])
def test_a_suite_is_a_run_of_registered_methods_and_known_tasks(
    name: str, flags: dict[str, Any]
) -> None:
    config = build_config(flags, suite=name)
    for method in config.methods:
        load_method(base_name(method))
    assert resolve(config.tasks)
    assert set(config.per_method) <= set(config.methods)
    for model in config.models:
        own = config.for_model(model)
        cells = expand(own, model)
        assert len(set(cells)) == len(cells)
        assert own.training.stages()
        left_open = model == "smollm2-135m-instruct" or own.methods == ("dense",)
        assert (own.calibration.texts == "auto") == left_open, "a hub where there is none"
        assert not left_open or own.training.n_tokens == "auto"


@pytest.mark.parametrize("name", PAPER)
def test_a_layout_names_printed_methods_and_cells_of_its_suite(name: str) -> None:
    config, layout = build_config({}, suite=name), load_suite(name).report.get("layout")
    if layout is None:
        assert name in ("paper-figure2", "paper-figure3", "paper-figure4", "paper-lora")
        return
    printed = published_rows(layout["published"])
    cells = [c for model in config.models for c in expand(config.for_model(model), model)]
    labels = {method_label(c.method, c.recovery) for c in cells}
    assert set(layout["methods"]) <= {row.method for row in printed}
    assert set(layout["methods"].values()) <= labels
    assert {plain(model) for model in config.models} <= {
        model_name(row.llm, layout) for row in printed
    }
    lacking = {row.method for row in printed} - set(layout["methods"]) - {"Dense"}
    assert lacking <= ({"Ours"} if name == "paper-main" else set())


@pytest.mark.parametrize("number", [1, 2, 3, 5, 6])
def test_every_printed_ratio_comes_out_to_its_last_digit(number: int) -> None:
    name = f"paper-table{number}"
    report = load_suite(name).report
    layout, rule = report["layout"], ratio_rule(report)
    assert rule is not None
    found = _recomputed(name)
    checked = 0
    for row in published_rows(layout["published"]):
        if row.method == "Dense":
            assert row.ratio == 0.0
            continue
        method = layout["methods"][row.method]
        reason = rule.open.get(row.llm, {}).get(row.method)
        key = (model_name(row.llm, layout), plain(method), row.ratio)
        assert (key in found) == (reason is None), key
        if number != 2:
            assert (reason is not None) == ((layout["published"], row.llm, row.method) in OPEN)
        checked += reason is None
    assert checked == {1: 3, 2: 3, 3: 6, 5: 15, 6: 6}[number]


@pytest.mark.parametrize(
    ("number", "model", "method", "layers"),
    [
        (1, "llama2-7b", "streamline-v1-mlp", [9]),
        (1, "llama2-7b", "shortgpt", [9]),
        (1, "opt-6.7b", "streamline-v1-mlp", [9]),
        (3, "opt-1.3b", "streamline-v1-mlp", [5, 7, 9]),
        (3, "opt-2.7b", "streamline-v1-mlp", [6, 9, 12]),
        (4, "llama2-7b", "streamline-v1-mlp+share=0.2", [9]),
        (5, "opt-1.3b", "streamline-v1-layer-shared", [5, 7, 9]),
        (5, "opt-1.3b", "llm-streamline-none", [5, 7, 9]),
        (6, "opt-1.3b", "streamline-v1-multiple-mlp", [5, 7, 9]),
    ],
)
def test_sparsities_give_the_papers_number_of_layers(
    number: int, model: str, method: str, layers: list[int]
) -> None:
    config = build_config({"models": model, "methods": method}, suite=f"paper-table{number}")
    rows = plan_run(config).rows
    assert [row.n_removed for row in rows if row.cell.method == method] == layers


def test_the_main_table_removes_what_the_paper_reports() -> None:
    config = build_config({}, suite="paper-main")
    shares = {
        row.cell.method: (row.n_removed, round(100 * (row.removed_fraction or 0), 2))
        for row in plan_run(config).rows
    }
    assert shares["llm-streamline-none"] == (8, 24.03)
    assert shares["llm-streamline-ffn"] == (9, 25.04)
    assert shares["llm-streamline-swiglu"] == (9, 25.02)
    assert shares["llm-streamline-layer"] == (9, 24.03)


def test_a_difference_is_explained_to_the_last_digit() -> None:
    rule = RatioRule(counts="matrices", over={"opt-1.3b": 1_300_000_000})
    found = paper_ratio(rule, "opt-1.3b", _decoder("opt-1.3b"), build_method("shortgpt"), 9)
    assert found is not None
    assert (found.removed, found.added, found.total) == (452_984_832, 0, 1_300_000_000)
    assert found.by_counting == pytest.approx(9 * 13 * 2048 / 1_300_000_000)
    assert found.ratio + found.by_counting + found.by_total == pytest.approx(found.counted)
    assert layers_to_remove(_decoder("opt-1.3b"), found.counted) == 9


def test_a_method_without_a_number_of_layers_has_no_such_ratio() -> None:
    decoder = _decoder("llama2-7b")
    assert paper_ratio(RatioRule(), "llama2-7b", decoder, build_method("llm-pruner"), None) is None
    assert paper_ratio(RatioRule(), "llama2-7b", decoder, build_method("laco"), 9) is None


def test_a_malformed_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="report.ratio must have counts, over and open"):
        ratio_rule({"ratio": {"counts": "weights"}})
    assert ratio_rule({}) is None


@pytest.mark.parametrize("name", PAPER)
def test_no_cell_is_out_of_reach(name: str) -> None:
    for flags in ({}, {"models": "smollm2-135m-instruct"}):
        reasons = [row.reason for row in plan_run(build_config(flags, suite=name)).rows]
        assert set(reasons) == {None}


def test_a_flag_reaches_what_a_model_sets_for_a_method() -> None:
    config = build_config({"sparsities": "0.2"}, suite="paper-table1")
    cells = expand(config.for_model("llama2-7b"), "llama2-7b")
    assert {cell.sparsity for cell in cells} == {0.0, 0.2}


def test_flags_win_over_what_a_suite_sets_for_single_models_and_methods() -> None:
    config = build_config(
        {"sparsities": "0.1", "recovery": "none", "training": {"objective": "lm"}},
        suite="paper-table5",
    )
    own = config.for_model("opt-1.3b")
    cells = expand(own, "opt-1.3b")
    assert {cell.sparsity for cell in cells} == {0.0, 0.1}
    assert {cell.recovery for cell in cells} == {"none"}
    assert (own.training.objective, own.training.n_tokens) == ("lm", 1_536_000)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"m": {"tasks": "piqa"}},
            "per_model: tasks cannot differ for m; only methods, sparsities,",
        ),
        ({"m": {"training": {"epochs": 0}}}, "per_model, m: training.epochs: input should be"),
        ({"m": 3}, "per_model"),
    ],
)
def test_malformed_settings_of_one_model_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config({"models": "m", "methods": "dense", "per_model": value})


def test_a_share_of_the_training_text_is_a_share() -> None:
    with pytest.raises(ConfigError, match=r"share=1\.5 of .* is not accepted"):
        build_method("streamline-v1-mlp+share=1.5")


@pytest.mark.usefixtures("unrehearsed")
def test_a_dry_run_shows_printed_recomputed_and_counted_side_by_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sizing, "check_fits", lambda *_: [])
    show_plan(build_config({}, suite="paper-table1"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    rows = [line.split() for line in lines if line.startswith("streamline-v1-mlp")]
    assert rows[0][4:] == ["26.03", "%", "26.2", "%", "26.2", "%"]
    assert rows[1][4:] == ["26.21", "%", "26.0", "%", "26.0", "%"]
    net = ["9", "1,754,267,648", "26.18", "%", "+0.00", "-0.15", "26.03", "%"]
    assert rows[2][1:] == net
    assert any(line.startswith("Not recomputed, Llama2-7B LaCo, ShortGPT,") for line in lines)


def test_a_share_and_a_models_own_training_reach_the_training(tmp_path: Path) -> None:
    tiny_model("llama", n_layers=4).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    text, model = tmp_path / "text.txt", str(tmp_path / "model")
    text.write_text("\n\n".join(f"line {i} of some text that is long enough" for i in range(999)))
    config = build_config(
        {
            "models": model,
            "methods": "streamline-v1-mlp+share=0.25",
            "device": "cpu",
            "out": tmp_path / "out",
            "calibration": {"texts": str(text), "n_samples": 2, "length": 16},
            "training": {"length": 16, "batch_tokens": 64, "validation_tokens": 32},
            "per_model": {model: {"training": {"n_tokens": 512, "epochs": 3}}},
        }
    )
    facts = prune_to_checkpoint(
        model,
        method=config.methods[0],
        sparsity=0.4,
        out=tmp_path / "pruned",
        config=config,
        verify=False,
    )
    (training,) = facts["training"].values()
    assert training["tokens"] == 512 // 4 * 3
