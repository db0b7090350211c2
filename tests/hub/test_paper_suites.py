"""Suites of a paper's tables run small to their reports, against a hub with today's layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub.conftest import Child
from hub.loopback import LoopbackHub

from streamline.testing.models import tiny_model, tiny_tokenizer

#: Suites, one after the other in one process.
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
_SUITES = ("paper-figure2", "paper-figure3", "paper-table6")
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


def _records(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((folder / "results.json").read_text())["records"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "suites", [("paper-figure2", "paper-figure3", "paper-table6"), ("paper-lora",)], ids=" ".join
)
def test_a_papers_suite_runs_small_to_its_table(
    suites: tuple[str, ...],
    papers_hub: LoopbackHub,
    child: Child,
    machine_cache: dict[str, str],
    tmp_path: Path,
) -> None:
    chid = tmp_path / "data" / "chid" / "test_public.json"  # on no hub
    chid.parent.mkdir(parents=True)
    rows = [
        {"id": i, "candidates": list("甲乙丙丁戊己庚"), "content": f"{i}他#idiom#。", "answer": i}
        for i in range(7)
    ]
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    chid.write_text("\n".join(lines), encoding="utf-8")
    small = [*_SMALL, "--data-dir", str(tmp_path / "data")]
    runs = [["--suite", name, *small, "--out", str(tmp_path / name)] for name in suites]
    done = child(_RUNS, papers_hub, runs, **machine_cache)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in suites:
        assert f"ENDED 0 --suite {name} " in done.stderr, (name, done.stderr[-3000:])
        records = _records(tmp_path / name)
        assert len(records) > 1
        states = {(record["method"], record["status"], record["reason"]) for record in records}
        assert all(status != "failed" for _, status, _ in states), states
        assert (tmp_path / name / "report.html").is_file()
        texts = [text for record in records for text in record["texts"]]  # type: ignore[attr-defined]
        assert {"calibration"} <= {text["use"] for text in texts}
        assert all(len(text["revision"]) in (40, 64) for text in texts)
