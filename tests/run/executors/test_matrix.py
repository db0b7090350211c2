"""Hours of a run whose workers are elsewhere: said and counted once one of them has measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streamline.cli.screen.dry_run import show_plan
from streamline.cli.screen.tracker import Tracker
from streamline.progress import clock, portions
from streamline.run import pipeline
from streamline.run.config import RunConfig
from streamline.run.deciding.decide import decided
from streamline.run.executors.matrix import part_times
from streamline.run.executors.tasks import Tasks, work_task
from streamline.run.planning import hours
from streamline.run.planning.rates import Rates
from streamline.run.shards.telling import Telling, tell_rates, told_rates, told_share

Make = Callable[..., RunConfig]
SLOW = Rates("a slow card", 1e6, 1e6, False, "made up")
METHODS = {"methods": "shortgpt,uidl,random-layers"}


class Shown(Tracker):
    """Keeps what a display would say."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def stage(self, name: str, total: float | None = None) -> None:
        super().stage(name, total)

    def step(self, done: float, total: float, message: str = "") -> None:
        super().step(done, total, message)

    def say(self, message: str) -> None:
        self.said.append(message)


def half_way(folder: Path) -> None:
    """Tell what a worker tells in the middle of its part."""
    told = Telling(folder)
    for place in portions([1.0, 1.0]):
        with place:
            told.stage("one half")
            told._told -= 10  # some seconds later
    told.step(0, 7)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever measures a device finds a slow one, and everything is worth it."""
    monkeypatch.setattr(hours, "WORTH", 0.0)
    monkeypatch.setattr(hours, "rates_for", lambda *_: SLOW)
    monkeypatch.setattr(pipeline, "report_run", lambda _: None)


def test_hours_of_all_cells_follow_from_the_first_worker_that_has_measured(
    config: Make, tmp_path: Path, slow: None
) -> None:
    run, shown = decided(config(tmp_path, executor="slurm", **METHODS)).config, Shown()
    tasks = Tasks(run, shown, 2)
    assert "as soon as the first worker" in shown.said[0]
    tasks.show()
    assert (shown.state.done, shown.state.total, shown.state.planned) == (0, 4, None)
    assert len(shown.said) == 1, "nothing is known yet"

    first, second = tasks.parts
    tell_rates(second.folder(tmp_path), SLOW)
    each = part_times(run, [part.of(tasks.cells) for part in tasks.parts], SLOW)
    took = [sum(one.values()) for one in each]
    assert all(seconds > 0 for one in each for seconds in one.values())
    tasks.show()
    (line,) = shown.said[1:]
    assert f"about {clock(sum(took))} of work" in line and "a slow card" in line
    assert f"{clock(max(took))} where all 2 tasks run" in line
    assert shown.state.planned == max(took)
    assert shown.state.total == pytest.approx(sum(took)) and shown.state.done == 0
    left = shown.state.whole_left(time.monotonic())
    assert left == pytest.approx(max(took), rel=0.05)

    half_way(first.folder(tmp_path))
    tasks.show()
    assert shown.state.done == pytest.approx(took[0] / 2), "before any of its cells has ended"
    work_task(run, first, "no such folder")
    tasks.show()
    assert shown.state.done == pytest.approx(took[0])
    assert f"{len(each[0])} of 4 cells" in shown.state.message
    work_task(run, second, "no such folder")
    tasks.show()
    assert shown.state.done == shown.state.total and len(shown.said) == 2


def test_a_worker_tells_what_it_has_measured(config: Make, tmp_path: Path, slow: None) -> None:
    run = decided(config(tmp_path, executor="slurm", methods="shortgpt")).config
    (part,) = Tasks(run, Shown(), 1).parts
    assert told_rates(tmp_path) is None
    work_task(run, part, "no such folder")
    assert told_rates(tmp_path) == SLOW
    assert 0 <= told_share(part.folder(tmp_path)) <= 1


def test_a_shard_says_how_long_all_of_them_take(config: Make, tmp_path: Path, slow: None) -> None:
    shown = Shown()
    pipeline.run(config(tmp_path, shard="1/2", **METHODS), shown)
    (line,) = [line for line in shown.said if line.startswith("time of all 4 cells: ")]
    assert "where all 2 shards run at the same time like this one, a slow card" in line
    assert told_rates(tmp_path) == SLOW


def test_a_dry_run_says_when_the_hours_will_be_known(
    config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show_plan(config(tmp_path, executor="ray", methods="shortgpt", dry_run=True))
    shown = " ".join(capsys.readouterr().out.split())
    assert "not planned: the machines that do the work are others" in shown
    assert "as soon as the first of them has measured its device" in shown
