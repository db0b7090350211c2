"""Suites of a paper's tables run small to their reports, against a hub with today's layouts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.conftest import Child
from hub.contents import paper_tokenizer
from hub.loopback import LoopbackHub

from streamline.testing.models import tiny_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

#: Commands, one after the other in one process.
_RUNS = """
import json, shutil, sys
from streamline.cli.main import main
usage = shutil.disk_usage
shutil.disk_usage = lambda path: usage(path)._replace(free=1 << 50)  # small ones bear the names
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        print("ENDED", end.code or 0, *arguments, file=sys.stderr, flush=True)
"""
_SMALL = ("--quick", "--limit", "1", "--efficiency", "off", "--device", "cpu")
#: Those of one process, which reads each set of questions once.
_CLASSIFICATION = "paper-main paper-figure4 paper-table1 paper-lora paper-table4"
_OTHERS = "paper-table2 paper-table3 paper-table5 paper-table6 paper-figure2 paper-figure3"
#: Suites of no published table.
_WITHOUT = ("paper-figure2", "paper-figure3", "paper-figure4", "paper-lora")
_MODELS = {
    "meta-llama/Llama-2-7b-hf": ("llama", 4096),
    "openlm-research/open_llama_3b_v2": ("llama", 2048),
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": ("llama", 2048),
    "facebook/opt-1.3b": ("opt", 2048),
    "facebook/opt-2.7b": ("opt", 2048),
    "facebook/opt-6.7b": ("opt", 2048),
}
#: Layers of which most of the parameters are, beside those of the words.
_WIDE = {"llama": {"intermediate_size": 128}, "opt": {"ffn_dim": 128}}


@pytest.fixture
def papers_hub(hub: LoopbackHub, published: Path) -> LoopbackHub:
    """The papers' models in tiny, and every data set; seven of eight tokens end what they write."""
    (hub.root / "datasets").symlink_to(published / "datasets")
    tokenizer = paper_tokenizer()
    for seed, (name, (family, positions)) in enumerate(_MODELS.items()):
        folder = hub.root / "models" / name / "main"
        model = tiny_model(
            family,
            n_layers=8,
            seed=seed,
            vocab_size=len(tokenizer),
            max_position_embeddings=positions,
            **_WIDE[family],
        )
        ends = [token for token in range(model.config.vocab_size) if token % 8]
        model.generation_config.eos_token_id = ends
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return hub


def _records(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["records"]
    return found


@pytest.fixture(scope="module")
def kept_home(one_home: Path) -> Path:
    """Empty for the first test."""
    shutil.rmtree(one_home, ignore_errors=True)
    return one_home


@pytest.fixture
def home(kept_home: Path) -> Path:
    """What one test has read of the hub the next ones have."""
    return kept_home


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """What makes any run a trial of seconds, with the file of the set that is on no hub."""
    chid = tmp_path / "data" / "chid" / "test_public.json"
    chid.parent.mkdir(parents=True)
    rows = [
        {"id": i, "candidates": list("甲乙丙丁戊己庚"), "content": f"{i}他#idiom#。", "answer": i}
        for i in range(7)
    ]
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    chid.write_text("\n".join(lines), encoding="utf-8")
    return [*_SMALL, "--data-dir", str(tmp_path / "data")]


@pytest.fixture
def all_end(
    papers_hub: LoopbackHub, child: Child, machine_cache: dict[str, str]
) -> Callable[[list[list[str]]], None]:
    """Run commands in one process; all must come to a good end."""

    def run(commands: list[list[str]]) -> None:
        done = child(_RUNS, papers_hub, commands, limit_s=1200, **machine_cache)
        assert done.returncode == 0, done.stderr[-3000:]
        ends = re.findall(r"^ENDED (\d+) (.*)$", done.stderr, re.MULTILINE)
        assert [words for code, words in ends if code != "0"] == [], done.stderr[-6000:]
        assert len(ends) == len(commands)

    return run


def _complete(folder: Path) -> None:
    """A run's cells are done or skipped with a reason, and its texts are named."""
    records = _records(folder)
    assert len(records) > 1
    states = {(record["method"], record["status"], record["reason"]) for record in records}
    assert all(status != "failed" for _, status, _ in states), states
    assert (folder / "report.html").is_file()
    texts = [text for record in records for text in record["texts"] or ()]
    assert {"calibration"} <= {text["use"] for text in texts}
    assert all(len(text["revision"]) in (40, 64) for text in texts)


def _fitting(name: str, folder: Path) -> str:
    """A suite; one whose adapters are as large as a layer of the paper's model has tiny ones."""
    text = (BENCHMARKS / f"{name}.yaml").read_text(encoding="utf-8")
    fitting = re.sub(r"(trained_parameters): \d+", r"\1: 4096", text)
    if fitting == text:
        return name
    file = folder / f"{name}.yaml"
    file.write_text(fitting, encoding="utf-8")
    return str(file)


def test_every_suite_of_a_paper_is_run_here():
    assert sorted(f"{_CLASSIFICATION} {_OTHERS}".split()) == sorted(
        path.stem for path in BENCHMARKS.glob("paper-*.yaml")
    )


@pytest.fixture
def tables(
    all_end: Callable[[list[list[str]]], None], small: list[str], tmp_path: Path
) -> Callable[[str], None]:
    """Run suites small; each must come to its table."""

    def run(suites: str) -> None:
        names = suites.split()
        outs = {name: tmp_path / name for name in names}
        all_end([["--suite", _fitting(n, tmp_path), *small, "--out", str(outs[n])] for n in names])
        for name, out in outs.items():
            _complete(out)
            drawn = list((out / "tables").glob("published*.tex"))
            assert bool(drawn) == (name not in _WITHOUT), name

    return run


class TestClassification:
    """A class is what one process of several takes."""

    @pytest.mark.slow
    @pytest.mark.timeout(1300)
    def test_a_papers_suite_runs_small_to_its_table(self, tables: Callable[[str], None]) -> None:
        tables(_CLASSIFICATION)


class TestOthers:
    """As above."""

    @pytest.mark.slow
    @pytest.mark.timeout(1300)
    def test_a_papers_suite_runs_small_to_its_table(self, tables: Callable[[str], None]) -> None:
        tables(_OTHERS)


@pytest.mark.slow
def test_the_plain_command_alpaca_and_the_verbs(
    all_end: Callable[[list[list[str]]], None],
    small: list[str],
    tmp_path: Path,
) -> None:
    alpaca = tmp_path / "alpaca.yaml"
    alpaca.write_text(
        "models: opt-1.3b\nmethods: shortgpt\nrecovery: lora\ntasks: piqa\n"
        "lora: {preset: llm-pruner, texts: alpaca}\n"
    )
    pruned = str(tmp_path / "pruned")
    plain = ["--models", "llama2-7b", "--methods", "all", "--tasks", "commonsense"]
    figure = ["--suite", "paper-figure3", *small, "--out", str(tmp_path / "figure")]
    runs = [
        figure,  # the tiny model is there then, and what is there is what memory is counted for
        [*plain, *small, "--out", str(tmp_path / "plain")],
        ["--suite", str(alpaca), *small, "--out", str(tmp_path / "alpaca")],
        f"prune llama2-7b --method shortgpt --sparsity 0.25 --device cpu --out {pruned}".split(),
        f"evaluate {pruned} --tasks piqa --limit 1 --device cpu --out {pruned}.json".split(),
    ]
    all_end(runs)
    _complete(tmp_path / "plain")
    kept = json.loads((tmp_path / "plain" / "run.json").read_text())["sources"]["settings"]
    texts = [
        kept["llama2-7b"][f"{stage}.texts"]["value"] for stage in ("calibration", "perplexity")
    ]
    assert texts == ["slimpajama", "wikitext2"], "the hub answers"
    _complete(tmp_path / "alpaca")
    row = json.loads((tmp_path / "pruned.json").read_text())
    assert row["tasks"]["piqa"]["n"] == 1 and row["parameters"]["removed_fraction"] > 0
