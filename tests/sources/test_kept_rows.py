"""Rows of a stream are kept as they are read, and it is gone on with where it ended."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest

from streamline.errors import AssetError
from streamline.files import temporary_of
from streamline.sources.hub import failures, kept_rows

COMMIT = "c" * 40


class Stream:
    """In place of a streamed set: 200 rows, opened anew for each reading, some of which fail."""

    def __init__(self) -> None:
        self.errors: dict[int, list[Exception]] = {}
        self.read: list[int] = []
        self.skipped = 0
        self.shuffled: list[tuple[int, int]] = []

    def open(self, *_: Any, **options: Any) -> Stream:
        assert options["revision"] == COMMIT and options["streaming"]
        self.skipped = 0
        return self

    def shuffle(self, seed: int, buffer_size: int) -> Stream:
        self.shuffled.append((seed, buffer_size))
        return self

    def skip(self, n: int) -> Stream:
        self.skipped = n
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self.skipped, 200):
            if self.errors.get(number):
                raise self.errors[number].pop(0)
            self.read.append(number)
            yield {"text": f"row {number}", "url": "of no use"}


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stream:
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path))
    monkeypatch.setattr(failures, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(kept_rows, "_ROWS", 50)
    made = Stream()
    monkeypatch.setattr(datasets, "load_dataset", made.open)
    return made


def test_what_a_killed_run_left_of_a_piece_is_removed_once_nobody_writes_it(
    stream: Stream, tmp_path: Path
) -> None:
    first = _texts(60)
    (folder,) = {file.parent for file in tmp_path.rglob("000000000000.json")}
    dead, alive = (temporary_of(folder / f"{start:012d}.json") for start in (50, 100))
    for file in (dead, alive):
        file.write_text("half of a pie")
    hours_ago = time.time() - 2 * kept_rows._DEAD_S
    os.utime(dead, (hours_ago, hours_ago))
    assert _texts(60) == first
    assert (dead.exists(), alive.exists()) == (False, True)


def _texts(n: int, **selection: Any) -> list[str]:
    chosen = {"split": "train", "columns": ("text",), "revision": COMMIT} | selection
    rows = list(islice(kept_rows.kept_rows("some/data", **chosen), n))
    assert all(set(row) == set(chosen["columns"]) for row in rows)
    return [row["text"] for row in rows]


def _rows(start: int, stop: int) -> list[str]:
    return [f"row {number}" for number in range(start, stop)]


def test_no_row_is_read_twice(stream: Stream):
    assert _texts(70) == _rows(0, 70)
    assert _texts(30) == _rows(0, 30)
    assert _texts(500) == _rows(0, 200)
    assert _texts(500) == _rows(0, 200)
    assert stream.read == list(range(200))
    assert _texts(5, split="test") == _rows(0, 5)
    assert stream.read[200:] == list(range(5))


def test_rows_shuffled_within_another_buffer_are_others(stream: Stream):
    assert _texts(5, seed=0, buffer=10) == _rows(0, 5)
    assert _texts(5, seed=0, buffer=20) == _rows(0, 5)
    assert stream.shuffled == [(0, 10), (0, 20)]


def test_a_damaged_piece_is_set_aside_and_read_again(stream: Stream, tmp_path: Path):
    _texts(500)
    second = sorted(tmp_path.rglob("*.json"))[1]
    second.write_text(second.read_text().replace("row 77", "row 78"))
    stream.read.clear()
    assert _texts(500) == _rows(0, 200)
    assert stream.read == list(range(50, 200))
    assert (second.parent / f"{second.name}.damaged").is_file()
    assert _texts(500) == _rows(0, 200)


def test_a_connection_that_ends_is_opened_again_where_it_ended(stream: Stream):
    stream.errors = {60: [ConnectionError("reset"), TimeoutError("late")], 120: [ConnectionError()]}
    assert _texts(500) == _rows(0, 200)
    assert stream.read == list(range(200))


def test_what_was_read_before_an_error_is_kept(stream: Stream):
    stream.errors = {60: [RuntimeError("no such column")]}
    with pytest.raises(AssetError, match=r"some/data, split train.*no such column"):
        _texts(500)
    assert _texts(500) == _rows(0, 200)
    assert stream.read == list(range(200))


def test_a_cache_that_cannot_be_written_costs_no_row(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full(path: Path, _: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(kept_rows, "write_json", full)
    assert _texts(70) == _rows(0, 70)
    assert "cannot be kept" in caplog.text
