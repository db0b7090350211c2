"""The committed reports are what the present code makes of their records."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from streamline.run.reporting import report_run

REPORTS = Path(__file__).parents[2] / "reports"
RUNS = (
    "bytes",
    *(f"calibration/packaged{text}-{n}" for text in ("", "-books", "-wikipedia") for n in (4, 16)),
    "effect",
    "effect/seed-1",
    "flips",
    "reasoning",
    "recovery",
    "smollm2-135m",
    "smollm2-135m/every-method",
    "paper-table1-smollm2",
)


def test_every_run_is_checked():
    runs = {str(path.parent.relative_to(REPORTS)) for path in REPORTS.rglob("results.json")}
    assert runs == set(RUNS)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_report_is_up_to_date(name, tmp_path):
    skip = shutil.ignore_patterns("every-method", "seed-1", "tables", "figures", "report.*")
    out = Path(shutil.copytree(REPORTS / name, tmp_path / Path(name).name, ignore=skip))
    report_run(out)
    parts = ("tables", "figures")
    made, committed = (
        {str(path.relative_to(root)) for part in parts for path in (root / part).iterdir()}
        for root in (out, REPORTS / name)
    )
    assert made == committed
    texts = [file for file in made if file.endswith((".csv", ".tex", ".svg"))]
    for file in ("report.md", "report.html", *texts):
        same = (out / file).read_text() == (REPORTS / name / file).read_text()
        assert same, f"{file} is not what `make reports` makes"
    frames = [
        pd.read_parquet(root / "tables" / "results.parquet") for root in (out, REPORTS / name)
    ]
    pd.testing.assert_frame_equal(*frames)
