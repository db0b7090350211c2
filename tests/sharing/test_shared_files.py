"""What several processes keep in one place: made once, whole, whoever is killed or comes second."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from streamline import kept
from streamline.files import write_bytes_atomic
from streamline.kept import kept_json, set_aside, write_json
from streamline.sharing.once import shared_claim, sharing, turn
from streamline.sources.made_folder import atomic_folder, made_folder

_FORKS = multiprocessing.get_context("forkserver")


def _make_slowly(target: Path, cache: Path, half: Event) -> None:
    """Make a folder of the cache and stay in the middle of it."""
    os.environ["STREAMLINE_CACHE"] = str(cache)

    def make(folder: Path) -> None:
        (folder / "a").write_text("half")
        half.set()
        time.sleep(60)

    made_folder(target, lock="thing", make=make)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_a_process_was_killed_in_the_middle_of_is_made_by_the_next(cache: Path) -> None:
    target, half = cache / "made", _FORKS.Event()
    process = _FORKS.Process(target=_make_slowly, args=(target, cache, half))
    process.start()
    assert half.wait(30) and process.pid
    waiting = threading.Timer(0.2, os.kill, (process.pid, signal.SIGKILL))
    waiting.start()
    made_folder(target, lock="thing", make=lambda folder: (folder / "a").write_text("whole"))
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it was not waited for"
    assert (target / "a").read_text() == "whole"
    assert sorted(path.name for path in cache.iterdir()) == ["claims", "made"]


def test_many_that_need_one_folder_make_it_once(cache: Path) -> None:
    calls: list[int] = []

    def make(folder: Path) -> None:
        calls.append(1)
        time.sleep(0.05)
        (folder / "a").write_text("whole")

    threads = [
        threading.Thread(target=made_folder, args=(cache / "made",), kwargs=given)
        for given in [{"lock": "thing", "make": make}] * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


def test_a_folder_that_appears_while_it_is_made_is_taken(cache: Path) -> None:
    """Both had the claim: one had slept and was taken for dead."""

    def other(folder: Path) -> None:
        (folder / "a").write_text("whole")

    def make(folder: Path) -> None:
        made_folder(cache / "made", lock="another claim", make=other)
        (folder / "a").write_text("late")

    assert made_folder(cache / "made", lock="thing", make=make) == cache / "made"
    assert (cache / "made" / "a").read_text() == "whole"


def test_a_folder_that_cannot_be_moved_is_still_an_error(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "other").touch()
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "made"):
        pass


def test_two_that_write_one_file_leave_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    contents = [bytes([number]) * 200_000 for number in range(4)]

    def write(content: bytes) -> None:
        for _ in range(5):
            write_bytes_atomic(path, content[:100_000], memoryview(content)[100_000:])

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_bytes() in contents
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_that_another_process_has_set_aside_is_no_error(tmp_path: Path) -> None:
    assert set_aside(tmp_path / "gone.json", "bits").name == "gone.json.damaged"


def test_a_file_that_another_machine_replaces_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "a.json", {"sum": 1})
    read, calls = kept.read_json, []

    def stale(path: Path) -> object:
        calls.append(path)
        if len(calls) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(path)

    monkeypatch.setattr(kept, "read_json", stale)
    assert kept_json(tmp_path / "a.json") == {"sum": 1}
    assert len(calls) == 2


def test_a_turn_comes_after_anothers_and_costs_nothing_alone(tmp_path: Path) -> None:
    order: list[str] = []

    def work(name: str) -> None:
        with sharing(tmp_path / "claims"), turn("thing", lambda: order.append("waits")):
            order.append(name)
            time.sleep(0.1)

    with turn("thing"):
        assert shared_claim("thing") is None and list(tmp_path.iterdir()) == []
    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == ["a", "b", "waits"] and order[2] in "ab"
