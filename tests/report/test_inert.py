"""Names and reasons from anywhere are text in a report: no markup, no command, no formula."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamline.cli.main import app
from streamline.report.latex import latex
from streamline.report.render import code, csv_text, inert, markdown, terminal
from streamline.report.table import Table
from streamline.results.record_file import upsert

NASTY = [
    "<script>alert(1)</script>",
    "a\rb\n\\input{secret}",
    "[link](javascript:alert(1))",
    "![image](http://example.org/x.png)",
    "`code` ``two``",
    "\\<b>",
    "a | b",
    "=cmd|' /C calc'!A0",
    "+1", "-1+1", "@SUM(1)", "\t=1", "\r=1",
    "\x1b[31mred\x1b[0m",
    'say "yes" & 5 < 6 > 4 | 3',
    "no \uffff sign of XML",
    "datum.x); alert(1); (",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run in which everything that can be named is named badly."""
    folder = tmp_path_factory.mktemp("nasty")
    for index, name in enumerate(NASTY):
        counts = {"both_right": 1, "lost": 1, "gained": 1, "both_wrong": 1}
        task = {"metric": "acc", "value": 0.5, "n": 4, "stability": 0.5, "counts": counts}
        common = {"sparsity": 0.25, "notes": {"data": {name: name}}, "versions": {name: name}}
        upsert(
            folder,
            {
                "model": name if index % 2 else "m",
                "method": name,
                "status": "failed",
                "reason": name,
                **common,
            },
        )
        more = {
            "status": "ok",
            "tasks": {name: task},
            "method_repr": name,
            "summary": {"accuracy": 0.5, "relative_accuracy": 0.9, "stability": 0.5},
            "parameters": {"dense": 100, "pruned": 75, "removed_fraction": 0.25},
            "plan": {"removed_layers": [1], "kept_layers": [0, 2], "replacement": name},
        }
        upsert(folder, {"model": "m", "method": f"{name} ok", **common, **more})
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, repr(result.exception)
    return folder


def test_markdown_holds_no_markup_of_a_name(made: Path) -> None:
    text = (made / "report.md").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", text)
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text, flags=re.DOTALL)  # inert
    assert not re.search(r"(?<!\\)(\\\\)*<\w", outside)
    assert not re.search(r"(?<!\\)\[(link|image)\]", outside)


def test_the_page_s_data_end_no_script_and_hold_no_markup(made: Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    start = page.index('<script type="application/json" id="data">') + 42
    data = page[start : page.index("</script>", start)]
    assert not set("<>&") & set(data)
    assert "<script>alert" in str(json.loads(data))
    for markup in ("<script>alert", "<b>", "javascript:alert(1))</a>"):
        assert markup not in page[:start].split("<script>")[0]
    vega = page[page.index("<script>") + 8 : start]
    assert vega.count("</script") == 1 and "<!--" not in vega


def test_figures_hold_names_as_text(made: Path) -> None:
    files = list((made / "figures").glob("*.svg"))
    assert files
    for file in files:
        root = ET.parse(file).getroot()  # well formed, whatever the names
        tags = {element.tag.rsplit("}", 1)[-1] for element in root.iter()}
        assert not tags & {"script", "a", "image", "foreignObject"}
        assert all(not name.startswith("on") for element in root.iter() for name in element.attrib)


def test_csv_holds_no_formula(made: Path) -> None:
    cells = [
        cell
        for file in (made / "tables").glob("*.csv")
        for row in csv.reader(io.StringIO(file.read_text(encoding="utf-8")))
        for cell in row
    ]
    assert any("cmd" in cell for cell in cells)
    for cell in cells:
        try:
            float(cell)
        except ValueError:
            assert not cell.lstrip().startswith(("=", "+", "-", "@")), cell
        assert not re.search("[\x00-\x1f]", cell)


def test_latex_holds_no_command_of_a_name(made: Path) -> None:
    files = list((made / "tables").glob("*.tex"))
    assert files
    for file in files:
        for line in file.read_bytes().decode("utf-8").split("\n"):
            assert "\r" not in line
            assert line.startswith("%") or "\\input" not in line


def small(text: str) -> Table:
    return Table(name="t", title=text, columns=("a", text), rows=((text, text),), notes=(text,))


def test_latex_prints_what_is_meant() -> None:
    text = latex(small('5 < 6 > 4 | "x"'))
    body = text.split("\\midrule")[1]
    assert "5 $<$ 6 $>$ 4 \\textbar{} \\texttt{\\char34}x" in body
    assert "<" not in body.replace("$<$", "") and '"' not in body
    assert latex(small("[1] *")).count("{[}1]") == 4
    assert r"no ? sign\_x" in latex(small("no \uffff sign_x"))
    assert "{*}a" in latex(small("*a")).split("\\midrule")[1]
    assert (
        len([line for line in latex(small("a\rb")).splitlines() if line.startswith("% a b")]) == 2
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
@pytest.mark.parametrize("name", NASTY)
def test_latex_compiles(tmp_path: Path, name: str) -> None:
    head = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n"
    page = head + latex(small(name)) + latex(small(name), "compact") + "\\end{document}"
    (tmp_path / "t.tex").write_text(page, encoding="utf-8")
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("name", NASTY)
def test_the_terminal_gets_no_control_character(name: str) -> None:
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", terminal(small(name)))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", markdown(small(name)))


def test_single_texts() -> None:
    import pandas as pd

    assert inert("\\<b> [x](y) `z`") == "\\\\\\<b> \\[x](y) \\`z\\`"
    assert code("a `b` c") == "`` a `b` c ``"
    assert code("a") == "`a`"
    frame = pd.DataFrame({"=a": ["=1", "x", None], "n": [-1.5, 2.0, float("nan")]})
    assert csv_text(frame) == "'=a,n\n'=1,-1.5\nx,2.0\n,\n"
