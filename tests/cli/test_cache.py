from __future__ import annotations

import io
from pathlib import Path

import pytest

from streamline.cli.main import main
from streamline.results.record_file import upsert
from streamline.run.folder import claimed


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's cache: three kinds, one of them unknown, and the locks."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("STREAMLINE_CACHE", str(folder))
    files = {"texts/a.jsonl": 3_000, "texts/b.jsonl": 72, "hashes/a.json": 10, "new/x/y": 1}
    for name, size in {**files, "locks/a.lock": 0}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    return folder


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A run's folder with two kinds of cached files."""
    folder = tmp_path / "run"
    upsert(folder, {"model": "m", "method": "dense", "sparsity": 0.0, "status": "ok"})
    for name in ("answers/0123/piqa.json", "calibration/4567/calibration.safetensors"):
        (folder / "cache" / name).parent.mkdir(parents=True)
        (folder / "cache" / name).write_text("{}")
    return folder


def _cache(*arguments: object) -> int:
    with pytest.raises(SystemExit) as info:
        main(["cache", *map(str, arguments)])
    return int(info.value.code or 0)


def test_ls_tells_kinds_sizes_and_the_total(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _cache("ls") == 0
    lines = [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == [str(cache)]
    assert lines[3:] == [
        ["hashes", "10", "B", "1", "content hashes of model files"],
        ["new", "1", "B", "1", "-"],
        ["texts", "3", "KiB", "2", "texts for calibration and training"],
        ["total", "3", "KiB", "4"],
    ]


def test_one_kind_is_cleared_and_the_others_stay(cache: Path) -> None:
    assert _cache("clear", "texts", "--yes") == 0
    assert sorted(path.name for path in cache.iterdir()) == ["hashes", "locks", "new"]


def test_all_is_cleared_but_what_others_hold(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _cache("clear", "-y") == 0
    assert [path.name for path in cache.iterdir()] == ["locks"]
    assert _cache("ls") == 0
    assert " ".join(capsys.readouterr().out.split()).endswith("is empty")  # a long path is wrapped
    assert _cache("clear", "-y") == 0
    assert "nothing to remove" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 1), ("n\n", 2, 4), ("", 2, 4)])
def test_it_asks(
    answer: str, code: int, left: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert _cache("clear") == code
    assert len(list(cache.iterdir())) == left


def test_an_interrupt_is_no_answer(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(io.StringIO):
        def readline(self, *_: object) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Interrupted())
    assert _cache("clear") == 130
    assert "interrupted; what is finished is kept" in capsys.readouterr().err
    assert len(list(cache.iterdir())) == 4


def test_an_unknown_kind_is_refused(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cache("clear", "text", "--yes") == 2
    assert "unknown kind of cache 'text'. Did you mean: texts" in capsys.readouterr().err
    assert len(list(cache.iterdir())) == 4


def test_a_runs_cache_is_cleared_and_its_results_stay(
    ran: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _cache("ls", "--run", ran) == 0
    assert "each cell's answers" in capsys.readouterr().out
    with claimed(ran):
        assert _cache("clear", "--run", ran, "-y") == 2
    assert _cache("clear", "answers", "--run", ran, "-y") == 0
    assert [path.name for path in (ran / "cache").iterdir()] == ["calibration"]
    assert (ran / "results.json").is_file()
    assert len(list(cache.iterdir())) == 4


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cache("ls", "--run", tmp_path) == 2
    assert "is no run's folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted; what is finished is kept"),
        (PermissionError(13, "Permission denied", "texts"), 2, "Permission denied: texts (--debug"),
    ],
)
def test_what_stops_it_is_one_line(
    error: BaseException,
    code: int,
    said: str,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr("shutil.rmtree", fail)
    assert _cache("clear", "texts", "--yes") == code
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {said}") and printed.count("\n") == 1
