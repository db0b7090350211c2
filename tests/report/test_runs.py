"""Several runs side by side: what is put together, and what is refused and why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fabricated_run import make_run
from typer.testing import CliRunner

from streamline.cli.main import app
from streamline.errors import ConfigError
from streamline.report.names import distinct
from streamline.report.report import write_report
from streamline.report.runs import RunFolder, side_by_side
from streamline.report.table import Table
from streamline.results.record import Record


def cell(method: str = "shortgpt", value: float = 0.5, **changes: Any) -> Record:
    facts = {
        "model": "m",
        "method": method,
        "sparsity": 0.0 if method == "dense" else 0.25,
        "status": "ok",
        "tasks": {"piqa": {"metric": "acc", "value": value, "n": 40, "data_hash": "q"}},
        "versions": {"model_sha256": "w"},
        "key": "k",
    }
    return Record.build(facts | changes)


def task(**changes: Any) -> dict[str, Any]:
    return {"piqa": {"metric": "acc", "value": 0.5, "n": 40, "data_hash": "q"} | changes}


def both(*records: Record, **settings: Any) -> tuple[list[RunFolder], list[str]]:
    """Each record a run of its own."""
    names = ("a", "b", "c")
    runs = [
        RunFolder(path=Path(name), records=[record], settings=settings.get(name, {}))
        for name, record in zip(names, records, strict=False)
    ]
    return side_by_side(runs)


def test_other_models_methods_and_seeds_stand_side_by_side() -> None:
    other = {"model": "n", "versions": {"model_sha256": "other"}}
    runs, notes = both(cell(), cell("dense"), cell(seed=1, key="k1"))
    assert [len(run.records) for run in runs] == [1, 1, 1] and notes == []
    runs, notes = both(cell(), cell(**other))
    assert [run.records[0].model for run in runs] == ["m", "n"] and notes == []


def test_a_cell_of_two_runs_stands_once() -> None:
    runs, notes = both(cell("dense"), cell("dense"))
    assert [len(run.records) for run in runs] == [1, 0] and notes == []
    runs, notes = both(cell(status="failed", tasks={}), cell())
    assert [len(run.records) for run in runs] == [0, 1] and notes == []
    runs, notes = both(cell(value=0.5), cell(value=0.525))
    assert [len(run.records) for run in runs] == [1, 0]
    assert notes == ["m shortgpt@0.25 was measured in a and b; the first one's numbers stand."]


AVERAGE = {"summary": {"accuracy": 0.5}}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tasks": task(data_hash="r")}, "data_hash of task piqa is q in the first and r"),
        (
            {"tasks": task(metric="acc_norm")},
            "metric of task piqa is acc in the first and acc_norm",
        ),
        ({"tasks": task(n=80)}, "n of task piqa is 40 in the first and 80"),
        (
            {"versions": {"model_sha256": "x"}},
            "the weights' hash of model m is w in the first and x",
        ),
        (
            {"tasks": task() | {"boolq": {"metric": "acc", "value": 0.9}}},
            "the tasks of the average of m is ['piqa'] in the first and ['boolq', 'piqa']",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], why: str) -> None:
    message = f"a and b cannot be put side by side: {why}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        both(cell("dense", **AVERAGE), cell(**AVERAGE | changes))


def test_texts_cut_otherwise_are_refused() -> None:
    def read(window: int) -> dict[str, Any]:
        facts = {"heldout": {"window": window, "n_tokens": 100}}
        return {"summary": {"perplexity": {"heldout": 9.0}, "perplexity_facts": facts}}

    with pytest.raises(ConfigError, match="the window of text heldout is 32 in the first and 64"):
        both(cell(**read(32)), cell("dense", **read(64)))


def test_two_experiments_of_one_name_are_refused_with_what_differs() -> None:
    one, other = {"training": {"n_tokens": 10}}, {"training": {"n_tokens": 20}, "out": "x"}
    message = "measured with other settings: training.n_tokens is 10 and 20"
    with pytest.raises(ConfigError, match=re.escape(message)):
        both(cell(value=0.5), cell(value=0.6, key="j"), a=one, b=other)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("several")
    return [make_run(root / model, n=12, models=(model,)) for model in ("opt", "llama")]


def test_a_report_of_two_models(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "both"
    result = CliRunner().invoke(app, ["report", *map(str, folders), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert not (folders[0] / "report.html").exists()
    text = (out / "report.md").read_text()
    assert "of opt and llama best?" in text
    assert re.search("opt: at 10.%, .* llama: at 10.%, ", text)
    for title in ("opt: Layers", "llama: Layers", "llama: Answers by task", "Failed and skipped"):
        assert f"## {title}\n" in text
    assert f"streamline-bench report {folders[0]} {folders[1]} --out {out}" in text
    head = next(line for line in text.splitlines() if line.startswith("| method"))
    assert "model" in head
    made = {path.name for part in ("tables", "figures") for path in (out / part).iterdir()}
    for model in ("opt", "llama"):
        assert {
            f"results-{model}-compact.tex",
            f"pareto-{model}.svg",
            f"layers-{model}-0.1.pdf",
        } <= made


def test_refusals_on_the_command_line(folders: list[Path], tmp_path: Path) -> None:
    first = str(folders[0])
    other = make_run(tmp_path / "other", n=13, models=("opt",))
    for words, why in (
        ([first, first], "is given twice"),
        (
            [first, str(other)],
            "cannot be put side by side: n of task piqa is 12 in the first and 13",
        ),
        ([first, "--out", str(folders[0] / "results.json")], "is a file; give --out a folder"),
    ):
        with pytest.raises(ConfigError, match=re.escape(why)):
            CliRunner().invoke(app, ["report", *words], catch_exceptions=False)


def test_models_of_one_file_name_keep_their_own_files(tmp_path: Path) -> None:
    """``a/b`` and ``a-b`` give one name for files, as ``C`` and ``c`` do on some systems."""
    models = ("a/b", "a-b", "C", "c", "alone")
    records = []
    for number, model in enumerate(models):
        for method, value in (("dense", 0.5), ("shortgpt", 0.3 + 0.01 * number)):
            records.append(cell(method, value, model=model, summary={"accuracy": value}))
    runs = [RunFolder(path=tmp_path, records=records)]
    page = write_report(tmp_path, runs).read_text()
    files = [path.name for path in (*tmp_path.glob("figures/*.svg"), *tmp_path.glob("tables/*"))]
    assert len({name.lower() for name in files}) == len(files)
    assert {"accuracy-alone.svg", "results-alone-full.tex"} <= set(files)
    for number, model in enumerate(models):
        texts = [path.read_text() for path in tmp_path.glob("tables/results-*-full.tex")]
        (mine,) = [text for text in texts if f"caption{{{model}: results}}" in text]
        assert f"{30 + number}.0" in mine
        texts = [path.read_text() for path in tmp_path.glob("figures/accuracy-*.svg")]
        assert len([text for text in texts if f"{30 + number}.0" in text]) == 1
    ids = re.findall(r'<[^>]* id="([^"]*)"', re.sub(r"<script.*?</script>", "", page, flags=re.S))
    assert len(ids) == len(set(ids))


def test_a_name_does_not_depend_on_what_came_first() -> None:
    tables = [Table(name=name, title=name, columns=(), rows=()) for name in ("x/y", "x-y", "z")]
    names = {one.title: one.name for one in distinct(tables, lambda one: [one.name])}
    back = {one.title: one.name for one in distinct(tables[::-1], lambda one: [one.name])}
    assert names == back and names["x-y"] != names["x/y"] and names["z"] == "z"
    same = distinct([tables[0], tables[0], tables[2]], lambda one: [one.name])
    assert len({one.name for one in same}) == 3
