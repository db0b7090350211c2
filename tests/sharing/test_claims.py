"""Claims: one holder at a time, whoever is killed, sleeps, or has another clock."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from streamline.sharing import claims
from streamline.sharing.claims import Claim, held

_FORKS = multiprocessing.get_context("forkserver")


def _hold(path: Path, taken: Event) -> None:
    Claim(path).acquire()
    taken.set()
    time.sleep(60)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats and patience of a fraction of a second."""
    monkeypatch.setattr(claims, "BEAT_S", 0.02)
    monkeypatch.setattr(claims, "PATIENCE_S", 0.3)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[int]:
    """The number of another process that holds the claim ``work``."""
    taken = _FORKS.Event()
    process = _FORKS.Process(target=_hold, args=(tmp_path / "work", taken))
    process.start()
    assert taken.wait(30) and process.pid
    yield process.pid
    process.kill()
    process.join()


def _elsewhere(path: Path, beats: int = 0) -> None:
    """What a process of another machine leaves as its claim."""
    holder = {"machine": "other", "pid": os.getpid(), "started": "1", "beats": f"{beats:012d}"}
    path.write_text(json.dumps(holder), encoding="utf-8")


def test_a_claim_that_cannot_be_written_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    claim = Claim(tmp_path / "work")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match=r"No space left on device: .*work\.lock"):
            claim.attempt()
    assert not claim.holds and list(tmp_path.iterdir()) == []
    assert claim.attempt()
    claim.release()


def test_one_has_it_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    first, second = Claim(tmp_path / "new" / "work"), Claim(tmp_path / "new" / "work")
    assert first.attempt() and first.attempt() and not second.attempt()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["work.lock"]
    assert not second.acquire_unless_held()
    first.release()
    assert second.acquire_unless_held()
    second.release()
    assert list((tmp_path / "new").iterdir()) == []


def test_other_names_are_other_claims(tmp_path: Path) -> None:
    with held(tmp_path / "a"), held(tmp_path / "a.b"), held(tmp_path / "a.b.1"):
        assert not Claim(tmp_path / "a").attempt()


def test_many_never_have_it_at_once(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with held(tmp_path / "work"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.002)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and list(tmp_path.iterdir()) == []


def test_a_killed_holders_claim_is_free_at_once(tmp_path: Path, holder: int) -> None:
    claim = Claim(tmp_path / "work")
    assert not claim.acquire_unless_held()
    os.kill(holder, signal.SIGKILL)
    start = time.monotonic()
    claim.acquire()
    assert time.monotonic() - start < 5 < claims.PATIENCE_S
    assert [path.name for path in tmp_path.iterdir()] == ["work.1.lock"]
    claim.release()


def test_a_holder_of_this_machine_that_only_sleeps_keeps_it(
    tmp_path: Path, holder: int, quick: None
) -> None:
    os.kill(holder, signal.SIGSTOP)
    claim, until = Claim(tmp_path / "work"), time.monotonic() + 2 * claims.PATIENCE_S
    while time.monotonic() < until:
        assert not claim.attempt()
        time.sleep(0.02)


@pytest.mark.parametrize("skew", [-86400, 86400])
def test_another_machines_claim_is_judged_by_its_changes_alone(
    tmp_path: Path, quick: None, skew: int
) -> None:
    file = tmp_path / "work.lock"
    _elsewhere(file)
    os.utime(file, (time.time() + skew, time.time() + skew))
    claim, start = Claim(tmp_path / "work"), time.monotonic()
    for beats in range(1, 8):  # longer than the patience, a beat now and then
        assert not claim.attempt()
        time.sleep(0.08)
        _elsewhere(file, beats)
    assert time.monotonic() - start > claims.PATIENCE_S
    assert not claim.acquire_unless_held(), "it has been seen to live"
    start = time.monotonic()
    claim.acquire()
    assert time.monotonic() - start >= 0.8 * claims.PATIENCE_S
    claim.release()


def test_two_that_wait_for_a_dead_claim_do_not_both_get_it(tmp_path: Path, quick: None) -> None:
    _elsewhere(tmp_path / "work.lock")
    claims_ = [Claim(tmp_path / "work") for _ in range(2)]
    assert not any([claim.attempt() for claim in claims_])
    time.sleep(1.2 * claims.PATIENCE_S)
    assert sum([claim.attempt() for claim in claims_]) == 1
    for claim in claims_:
        claim.release()


def test_who_comes_late_to_a_dead_claim_gives_way(tmp_path: Path, quick: None) -> None:
    """One judged it dead, and while it did so another one took it over and was done."""
    _elsewhere(tmp_path / "work.lock")
    late = Claim(tmp_path / "work")
    there = dict.fromkeys([tmp_path / "work.lock"], 0)
    _elsewhere(tmp_path / "work.2.lock")
    (tmp_path / "work.lock").unlink()
    assert not late._take(1, there)
    assert [path.name for path in tmp_path.iterdir()] == ["work.2.lock"]


def test_a_holder_that_was_taken_for_dead_leaves_the_new_one_alone(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    slept = Claim(tmp_path / "work")
    assert slept.attempt()
    (tmp_path / "work.lock").unlink()
    taker = Claim(tmp_path / "work")
    assert taker.attempt()
    assert not slept.beat()
    content = (tmp_path / "work.lock").read_bytes()
    until = time.monotonic() + 10
    while "was taken over" not in caplog.text:
        assert time.monotonic() < until
        time.sleep(0.01)
    slept.release()
    assert len((tmp_path / "work.lock").read_bytes()) == len(content)
    taker.release()


def test_a_claim_that_was_just_made_is_not_dead(tmp_path: Path) -> None:
    (tmp_path / "work.lock").touch()
    assert not Claim(tmp_path / "work").attempt()


def test_who_waits_is_told_so_once(tmp_path: Path) -> None:
    told: list[None] = []
    first = Claim(tmp_path / "work")
    first.acquire(lambda: told.append(None))
    assert told == []
    threading.Timer(0.2, first.release).start()
    with held(tmp_path / "work", lambda: told.append(None)):
        assert told == [None]
