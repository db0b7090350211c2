"""Suites of a paper's tables run small to their reports, against a hub with today's layouts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub.conftest import Child
from hub.loopback import LoopbackHub

from streamline.testing.models import tiny_model, tiny_tokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

#: Commands, one after the other in one process.
_RUNS = """
import json, sys
from streamline.cli.main import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        print("ENDED", end.code or 0, *arguments, file=sys.stderr, flush=True)
"""
_SMALL = ("--quick", "--limit", "1", "--efficiency", "off", "--device", "cpu")
_SUITES = tuple(sorted(path.stem for path in BENCHMARKS.glob("paper-*.yaml")))
#: Suites whose table stands in a paper, of which a table beside it is made.
_PUBLISHED = {f"paper-table{n}" for n in range(1, 7)}
_MODELS = {
    "meta-llama/Llama-2-7b-hf": ("llama", 4096),
    "facebook/opt-1.3b": ("opt", 2048),
    "facebook/opt-2.7b": ("opt", 2048),
    "facebook/opt-6.7b": ("opt", 2048),
}


@pytest.fixture
def papers_hub(hub: LoopbackHub, published: Path) -> LoopbackHub:
    """The papers' models in tiny, and every data set."""
    shutil.copytree(published / "datasets", hub.root / "datasets")
    for seed, (name, (family, positions)) in enumerate(_MODELS.items()):
        folder = hub.root / "models" / name / "main"
        model = tiny_model(family, n_layers=8, seed=seed, max_position_embeddings=positions)
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return hub


def _records(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["records"]
    return found


@pytest.mark.slow
def test_every_suite_and_verb_runs_small_to_its_end(
    papers_hub: LoopbackHub, child: Child, machine_cache: dict[str, str], tmp_path: Path
) -> None:
    """Each suite of a paper, the plain command, LoRA on Alpaca, prune and evaluate."""
    chid = tmp_path / "data" / "chid" / "test_public.json"  # on no hub
    chid.parent.mkdir(parents=True)
    rows = [
        {"id": i, "candidates": list("甲乙丙丁戊己庚"), "content": f"{i}他#idiom#。", "answer": i}
        for i in range(7)
    ]
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    chid.write_text("\n".join(lines), encoding="utf-8")
    alpaca = tmp_path / "alpaca.yaml"
    alpaca.write_text(
        "models: opt-1.3b\nmethods: shortgpt\nrecovery: lora\ntasks: piqa\n"
        "lora: {preset: llm-pruner, texts: alpaca}\n"
    )
    small = [*_SMALL, "--data-dir", str(tmp_path / "data")]
    suites = {name: ["--suite", name] for name in _SUITES}
    suites["plain"] = ["--models", "llama2-7b", "--methods", "all", "--tasks", "commonsense"]
    suites["alpaca"] = ["--suite", str(alpaca)]
    runs = [[*words, *small, "--out", str(tmp_path / name)] for name, words in suites.items()]
    pruned = str(tmp_path / "pruned")
    verbs = [
        f"prune llama2-7b --method shortgpt --sparsity 0.25 --device cpu --out {pruned}",
        f"evaluate {pruned} --tasks piqa --limit 1 --device cpu --out {pruned}.json",
    ]
    runs += [words.split() for words in verbs]
    done = child(_RUNS, papers_hub, runs, **machine_cache)
    assert done.returncode == 0, done.stderr[-3000:]
    ends = re.findall(r"^ENDED (\d+) (.*)$", done.stderr, re.MULTILINE)
    assert [words for code, words in ends if code != "0"] == [], done.stderr[-6000:]
    assert len(ends) == len(runs)
    for name in suites:
        records = _records(tmp_path / name)
        assert len(records) > 1
        states = {(record["method"], record["status"], record["reason"]) for record in records}
        assert all(status != "failed" for _, status, _ in states), (name, states)
        assert (tmp_path / name / "report.html").is_file()
        tables = list((tmp_path / name / "tables").glob("published*.tex"))
        assert bool(tables) == (name in _PUBLISHED), name
        texts = [text for record in records for text in record["texts"] or ()]
        assert {"calibration"} <= {text["use"] for text in texts}
        assert all(len(text["revision"]) in (40, 64) for text in texts)
    (row,) = json.loads((tmp_path / "pruned.json").read_text())["records"]
    assert row["tasks"]["piqa"]["n"] == 1 and row["parameters"]["removed_fraction"] > 0
