"""The committed reports are what the present code makes of their records."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from streamline.run.reporting import report_run

REPORTS = Path(__file__).parents[2] / "reports"
RUNS = ("smollm2-135m", "smollm2-135m/every-method", "paper-table1-smollm2")


def test_every_run_is_checked():
    runs = {str(path.parent.relative_to(REPORTS)) for path in REPORTS.rglob("results.json")}
    assert runs == set(RUNS)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_report_is_up_to_date(name, tmp_path):
    skip = shutil.ignore_patterns("every-method", "tables", "figures", "report.*")
    out = Path(shutil.copytree(REPORTS / name, tmp_path / "out", ignore=skip))
    report_run(out)
    tables = {path.name for path in (REPORTS / name / "tables").iterdir()}
    assert tables == {path.name for path in (out / "tables").iterdir()}
    for file in ("report.md", *(f"tables/{table}" for table in tables)):
        assert (out / file).read_text() == (REPORTS / name / file).read_text(), file
