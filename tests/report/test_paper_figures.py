"""What the papers draw or print beside their tables: opening figure, models by size, domains."""

from __future__ import annotations

from typing import Any

import pytest

from streamline.errors import ConfigError
from streamline.report.figures.figure import drawn
from streamline.report.figures.headline import headline_figure
from streamline.report.figures.sizes import sizes_figure
from streamline.report.figures.style import Style
from streamline.report.findings.domains import domains_table
from streamline.report.findings.rows import rows
from streamline.report.layouts import check_headline
from streamline.report.report import write_report
from streamline.report.runs import RunFolder
from streamline.results.record import Record


def cell(method: str, removed: float, kept: float, **more: Any) -> Record:
    size = more.pop("size", 100)
    values = {
        "model": "m", "method": method, "sparsity": removed, "status": "ok",
        "parameters": {"dense": size, "pruned": round(size * (1 - removed))},
        "tasks": {"piqa": {"metric": "acc", "value": kept / 2, "n": 10, "stderr": 0.1}},
        "summary": {"accuracy": kept / 2, "relative_accuracy": kept},
    }  # fmt: skip
    return Record.build(values | more)


CELLS = [
    cell("dense", 0.0, 1.0),
    cell("laco", 0.25, 0.819),
    cell("llm-streamline-none", 0.25, 0.876),
    cell("llm-streamline-ffn", 0.25, 0.931),
]
STYLE = Style([one.method for one in CELLS])


def test_the_opening_figure_has_the_share_kept_and_the_lead():
    headline = {"ours": "llm-streamline", "published": 11.2}
    figure = headline_figure(rows(CELLS, {}), headline, STYLE)
    assert {(p["method"], round(p["value"], 6)) for p in figure.data["rows"]} == {
        ("laco", 81.9),
        ("llm-streamline-none", 87.6),
        ("llm-streamline-ffn", 93.1),
    }
    assert "llm-streamline-ffn leads laco by 11.2 points; printed: 11.2 points." in figure.caption
    other = [cell("laco", 0.1, 0.97), cell("llm-streamline-ffn", 0.1, 0.96)]
    several = headline_figure(rows([*CELLS, *other], {}), headline, STYLE)
    for said in (
        "at 25 % llm-streamline-ffn leads laco by 11.2",
        "at 10 % ",
        "laco by -1.0 points",
    ):
        assert said in several.caption  # no method is set beside another at another target
    alone = headline_figure(rows(CELLS[:2], {}), headline, STYLE)
    assert alone.caption.endswith("best of the others: printed: 11.2 points.")
    for bad in (3, {"ours": "a"}, {"ours": "a", "published": "b"}):
        with pytest.raises(ConfigError, match=r"headline must be a mapping such as \{ours"):
            check_headline(bad)


def test_models_stand_by_their_sizes_where_there_are_several():
    found = rows(CELLS, {})
    assert sizes_figure(found, STYLE) is None
    small = cell("dense", 0.0, 0.8, model="org/small", size=60)
    other = cell("dense", 0.0, 0.9, model="other", size=50, tasks={})
    figure = sizes_figure([*found, *rows([small], {}), *rows([other], {})], STYLE)
    dense = [(p["model"], p["x"], p["y"]) for p in figure.data["dense"]]
    assert dense == [("m", 1e-4, 50.0), ("small", 6e-5, 40.0)]  # the other answered other tasks
    assert {p["x"] for p in figure.data["rows"]} == {75e-6}
    assert "small" in drawn(figure)[0].svg


def text(name: str, domains: dict[str, float], **more: Any) -> dict[str, Any]:
    return {"use": "training", "name": name, "part": "train", "sha256": "a", "domains": domains} | (
        {"counted": "tokens", "counts": {}, "promised": {}, "spent": {}} | more
    )


def test_domains_stand_beside_what_was_promised_and_printed():
    slim = text(
        "slimpajama:rows-v1",
        {"RedPajamaC4": 0.4, "RedPajamaCommonCrawl": 0.6},
        promised={"RedPajamaC4": 0.492, "RedPajamaCommonCrawl": 0.361, "RedPajamaBook": 0.147},
        counts={"RedPajamaC4": 3, "RedPajamaCommonCrawl": 1},
        counted="rows",
        spent={"RedPajamaBook": 2},
    )
    table = domains_table([cell("a", 0.1, 1.0, texts=[slim]), cell("b", 0.1, 1.0, texts=[slim])])
    assert [(row[2], row[3], *row[4:]) for row in table.rows] == [
        ("C4", "documents", "49.2", "75.0", "40.0", "3", "28.7", "49.2"),
        ("CC", "documents", "36.1", "25.0", "60.0", "1", "54.1", "36.1"),
        ("Book", "documents", "14.7", "0.0", "0.0", "0", "3.7", "9.1"),
    ]
    assert "training: Book ran out after 2 documents." in table.notes
    assert len(table.notes) == 2
    plain = text("packaged", {"books": 1.0}, promised={"books": 1.0}, part="validation")
    again = plain | {"sha256": "b"}
    table = domains_table([cell("a", 0.1, 1.0, texts=[plain, again])])
    assert [row[:6] for row in table.rows] == [
        ("training, validation", "packaged", "books", "tokens", "100.0", "-")
    ]
    assert len(table.columns) == 8 and "the first is shown" in table.notes[-1]
    assert domains_table([cell("a", 0.1, 1.0, texts=[text("mine.txt", {"text": 1.0})])]) is None


def test_a_report_has_them(tmp_path):
    mixed = text("packaged", {"books": 1.0}, promised={"books": 1.0}, counts={"books": 2})
    small = cell("dense", 0.0, 0.8, model="small", size=60)
    cells = [CELLS[0], *(one.model_copy(update={"texts": [mixed]}) for one in CELLS[1:]), small]
    headline = {"ours": "llm-streamline", "published": 11.2}
    write_report(tmp_path, [RunFolder(path=tmp_path, records=cells)], headline=headline)
    page = (tmp_path / "report.md").read_text()
    for what in ("leads laco by 11.2 points", "Models by size", "what texts are made of"):
        assert what in page, what
    assert (tmp_path / "tables" / "domains-m.tex").exists()
    assert (tmp_path / "figures" / "headline-m.pdf").exists()
