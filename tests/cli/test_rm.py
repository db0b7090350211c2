from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fabricated_run import make_run

from streamline.cli.main import main
from streamline.results.record_file import load, upsert
from streamline.results.samples import samples_path
from streamline.run.folder import claimed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("whole"), n=6)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A run of 15 cells; those of shortgpt have a key, and files under it and under their name."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    for record in load(folder):
        if record.method == "shortgpt":
            key = f"{record.sparsity:.2f}".replace(".", "").ljust(64, "f")
            upsert(folder, record.model_copy(update={"answers_key": key}))
            name = samples_path(folder, record).stem
            for path in (f"plans/{name}.json", f"cache/answers/{key[:16]}/piqa.json"):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text("{}")
    return folder


def _rm(*arguments: object) -> int:
    with pytest.raises(SystemExit) as info:
        main(["rm", *map(str, arguments)])
    return int(info.value.code or 0)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_cell_goes_with_its_record_and_its_files_and_nothing_else(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, records = _files(folder), load(folder)
    gone = next(r for r in records if (r.method, r.sparsity) == ("shortgpt", 0.25))
    name = samples_path(folder, gone).stem
    assert _rm(folder, "shortgpt@0.25") == 0
    assert load(folder) == [record for record in records if record != gone]
    lost = before - _files(folder)
    assert lost == {
        f"samples/{name}.parquet",
        f"plans/{name}.json",
        f"cache/answers/{str(gone.extra('answers_key'))[:16]}/piqa.json",
    }
    assert capsys.readouterr().out.splitlines() == [
        "removed shortgpt@0.25",
        f"  cache/answers/{str(gone.extra('answers_key'))[:16]}",
        f"  plans/{name}.json",
        f"  samples/{name}.parquet",
    ]
    assert "shortgpt | 0.25" not in (folder / "report.md").read_text(encoding="utf-8")


def test_a_dry_run_removes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _files(folder)
    assert _rm(folder, "random-layers@0.1,seed=1", "slicegpt", "--dry-run") == 0
    assert _files(folder) == before
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "would remove random-layers@0.1,seed=1"
    assert "would remove slicegpt@0.25" in shown  # failed: no files


def test_a_selector_takes_all_that_fit(folder: Path) -> None:
    assert _rm(folder, "seed=1", "sparsity=0.25") == 0
    left = {(r.method, r.sparsity, r.seed) for r in load(folder)}
    assert len(left) == 6 and all(s < 0.25 and seed == 0 for _, s, seed in left)


def test_the_last_cell_takes_the_report_along(folder: Path) -> None:
    assert _rm(folder, "dense") == 0
    assert (folder / "report.md").is_file() and (folder / "tables").is_dir()
    mine = folder / "figures" / "mine.svg"
    mine.write_text("<svg/>")
    assert _rm(folder, "model=smollm2-135m-instruct") == 0
    assert load(folder) == []
    assert not any((folder / name).exists() for name in ("report.md", "report.html", "tables"))
    assert list(mine.parent.iterdir()) == [mine]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("shortgtp@0.25", "unknown cell of RUN 'shortgtp@0.25'. Did you mean: shortgpt@0.25"),
        ("shortgpt@0.3", "Did you mean: shortgpt@0.1, shortgpt@0.25"),
        ("shortgpt@many", "sparsity 'many' is not a number"),
        ("shortgpt,colour=red", "'colour=red' is no KEY=VALUE with a key of model, method"),
    ],
)
def test_a_cell_that_is_not_there_is_refused_before_any_is_removed(
    cell: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _files(folder)
    assert _rm(folder, "dense", cell) == 2
    error = capsys.readouterr().err.replace(str(folder), "RUN")
    assert error.startswith("error: ") and message in error
    assert _files(folder) == before


def test_a_run_at_work_is_not_disturbed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with claimed(folder):
        assert _rm(folder, "dense") == 2
    assert "another run is using" in capsys.readouterr().err
    assert len(load(folder)) == 15


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _rm(tmp_path, "dense") == 2
    assert "No results.json in" in capsys.readouterr().err
    (tmp_path / "a.json").write_text("{}")
    assert _rm(tmp_path / "a.json", "dense") == 2
    assert "a.json is a file; give the folder" in capsys.readouterr().err
