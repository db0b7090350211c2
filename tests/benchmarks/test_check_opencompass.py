"""The independent script agrees with the package's documents, and notices when it does not."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

from streamline.benchmarks import check_opencompass
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.evaluation.building import build
from streamline.evaluation.scoring.score import score
from streamline.evaluation.task_results import finish
from streamline.evaluation.tasks.catalogue import resolve
from streamline.evaluation.tasks.documents import documents
from streamline.evaluation.tasks.sources import question_source
from streamline.results.samples import write_samples
from streamline.sources import wheels
from streamline.testing.models import tiny_tokenizer

REPORT = Path(__file__).parents[2] / "reports" / "agreement"
TASKS = {
    "c3": "streamline_c3",
    "chid": "streamline_chid",
    "cmmlu": "streamline_cmmlu_agronomy",
    "hellaswag": "streamline_hellaswag",
    "piqa": "streamline_piqa",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two made-up questions of each of the five tasks."""
    for part in ("dev", "test"):
        path = tmp_path / "cmmlu" / part / "agronomy.csv"
        path.parent.mkdir(parents=True)
        lines = [f"{i},{part}{i},甲,2,3,4,{'ABCD'[i]}\n" for i in range(2)]
        path.write_text(",Question,A,B,C,D,Answer\n" + "".join(lines), "utf-8")
    path = tmp_path / "c3" / "c3-d-dev.json"
    path.parent.mkdir()
    asked = [{"question": "q", "choice": ["yes", "no", "so"], "answer": "no"}] * 2
    path.write_text(json.dumps([[["one", "two"], asked, "1"]]), "utf-8")
    path = tmp_path / "chid" / "test_public.json"
    path.parent.mkdir()
    row = {"content": "他#idiom#了。", "candidates": list("甲乙丙丁戊己庚"), "answer": 4}
    path.write_text("\n".join([json.dumps(row)] * 2), "utf-8")
    ending = {"activity_label": "A", "ctx_a": "Well: a man", "ctx_b": "he", "label": "1"}
    rows = {
        "hellaswag/none": [
            ending | {"endings": [f"sits [x] down {i}.", "b", "c d", "e"]} for i in range(2)
        ],
        "piqa/plain_text": [
            {"goal": f"g{i}", "sol1": "a", "sol2": "b c", "label": 1} for i in range(2)
        ],
    }
    for name, items in rows.items():
        Dataset.from_list(items).save_to_disk(str(tmp_path / name / "validation"))
    monkeypatch.setattr(wheels, "questions_dir", lambda d, c, s: tmp_path / d / c / s)
    return tmp_path


@pytest.fixture
def model_dir(tmp_path, tiny_llama) -> Path:
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _run(model_dir: Path, folder: Path, out: Path, *more: str) -> dict:
    given = ["--model", str(model_dir), "--data-dir", str(folder), "--packaged", str(folder)]
    assert check_opencompass.main([*given, "--out", str(out), *more]) == 0
    return json.loads(out.read_text())


def test_script_and_package_agree(folder, model_dir, tiny_llama, tmp_path, capsys):
    decoder, tokenizer = Decoder(tiny_llama().eval()), tiny_tokenizer()
    theirs = _run(model_dir, folder, tmp_path / "theirs.json", "--limit", "2")
    assert set(theirs) == set(TASKS)
    for name, task in TASKS.items():
        docs = documents(
            question_source(task, source="packaged", data_dir=folder), tokenizer=tokenizer
        )
        assert [row["gold"] for row in theirs[name]] == docs["gold"]
        assert [row["n_tokens"] for row in theirs[name]] == docs["n_tokens"]
    entries = resolve(TASKS.values())
    parts = build(entries, tokenizer, max_length=2048, source="packaged", data_dir=folder)
    rows = [finish(part, score([dense_path(decoder)], part.requests)[0])[1] for part in parts]
    write_samples(tmp_path / "ours.parquet", pd.concat(rows))
    files = [str(tmp_path / "theirs.json"), str(tmp_path / "ours.parquet")]
    summary = tmp_path / "summary.json"
    assert check_opencompass.main(["--compare", *files, "--out", str(summary)]) == 0
    assert capsys.readouterr().out.count("2 and 2 items, 0 other choices") == 5
    found = json.loads(summary.read_text())
    assert found["agree"] and found["tasks"]["chid"]["options"] == 14
    assert all(0 <= row["largest_difference"] < 1e-5 for row in found["tasks"].values())
    assert found["versions"]["torch"] == metadata.version("torch")


def test_shared_beginnings_change_nothing(folder, model_dir, tmp_path):
    shared = _run(model_dir, folder, tmp_path / "a.json", "--tasks", "c3,piqa")
    plain = _run(model_dir, folder, tmp_path / "b.json", "--tasks", "c3,piqa", "--plain")
    for task in ("c3", "piqa"):
        for one, other in zip(shared[task], plain[task], strict=True):
            assert one["mean_nll"] == pytest.approx(other["mean_nll"], abs=1e-6)


def test_the_committed_comparison_is_that_of_the_committed_numbers(tmp_path):
    files = [str(REPORT / name) for name in ("independent.json", "samples.parquet")]
    out = tmp_path / "agreement.json"
    assert check_opencompass.main(["--compare", *files, "--out", str(out)]) == 0
    made, kept = json.loads(out.read_text()), json.loads((REPORT / "agreement.json").read_text())
    assert made["tasks"] == kept["tasks"] and kept["agree"]
    assert [row["items"] for row in kept["tasks"].values()] == [[50, 50]] * 5


def test_compare_notices_other_choices_numbers_and_counts(tmp_path, capsys):
    def write(name: str, rows: list[dict]) -> str:
        (tmp_path / name).write_text(json.dumps({"c3": rows}))
        return str(tmp_path / name)

    row = {"choice": 0, "mean_nll": [1.0, 2.0]}
    base = write("base.json", [row])

    def code(rows: list[dict]) -> int:
        return check_opencompass.main(["--compare", base, write("other.json", rows)])

    assert code([row | {"mean_nll": [1.00005, 2.0]}]) == 0
    line = "c3: 1 and 1 items, 0 other choices, largest difference 5.0e-05"
    assert line in capsys.readouterr().out
    assert code([row | {"mean_nll": [1.001, 2.0]}]) == 1
    assert code([row | {"choice": 1}]) == 1
    assert code([row, row]) == 1
    (tmp_path / "none.json").write_text("{}")
    assert check_opencompass.main(["--compare", base, str(tmp_path / "none.json")]) == 1


def test_compare_reads_samples(tmp_path):
    rows = [
        {
            "task": "streamline_c3",
            "doc_id": 0,
            "doc_hash": "h",
            "option": i,
            "prompt_nll": mean,
            "prompt_tokens": 4,
            "chosen": 0,
            "gold": 1,
            "correct": False,
            "metric": "acc",
        }
        for i, mean in enumerate((1.0, 2.0))
    ]
    write_samples(tmp_path / "s.parquet", rows)
    base = tmp_path / "base.json"
    base.write_text(json.dumps({"c3": [{"choice": 0, "mean_nll": [1.0, 2.0]}]}))
    assert check_opencompass.main(["--compare", str(base), str(tmp_path / "s.parquet")]) == 0
