from __future__ import annotations

import io
import re
import threading
import time
from dataclasses import replace

import pytest
from rich.console import Console

from streamline.cli.screen.bar import Bar, Log, progress_display
from streamline.cli.screen.tracker import Tracker
from streamline.progress import planned, portions


def _wait_for(pattern: str, capsys: pytest.CaptureFixture[str]) -> tuple[re.Match[str], list[str]]:
    """The first line on standard error that fits, within ten seconds, and all lines until then."""
    seen = ""
    for _ in range(1000):
        seen += capsys.readouterr().err
        found = re.search(f"^{pattern}$", seen, re.MULTILINE)
        if found is not None:
            return found, seen.splitlines()
        time.sleep(0.01)
    raise AssertionError(seen)


def test_a_log_names_a_stage_that_lasts_and_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Log(Console(stderr=True, soft_wrap=True), seconds=0.1) as log:
        log.stage("search", 8)
        log.step(1, 8)
        log.say("kept [best] weights")
        log.step(3, 8, "loss 2.1")
        spoken = r"search: 3/8, \d\.\d s so far, about \d\.\d s left\n  loss 2\.1"
        _, lines = _wait_for(spoken, capsys)
    assert {"kept [best] weights", "search"} < set(lines)


def test_a_stage_that_does_not_last_is_not_named(capsys: pytest.CaptureFixture[str]) -> None:
    with Log(Console(stderr=True), seconds=20) as log:
        log.stage("too short to name")
        log.step(1, 2)
    assert capsys.readouterr().err == ""


def test_a_log_is_not_silent_when_the_work_is(capsys: pytest.CaptureFixture[str]) -> None:
    with Log(Console(stderr=True), seconds=0.05) as log:
        log.stage("long search")
        _wait_for(r"long search: \d\.\d s so far", capsys)


def test_the_time_left_leaves_out_what_an_earlier_process_did(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Log(Console(stderr=True), seconds=0.1) as log:
        log.stage("train")
        log.step(900, 1000)
        time.sleep(0.05)
        log.step(901, 1000)
        found, _ = _wait_for(r"train: 901/1,000, .* so far, about (.*) left", capsys)
    assert not found[1].startswith("0.")  # 99 units at 0.05 s or more each


def test_a_log_speaks_more_and_more_seldom_and_says_when_a_stage_is_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Log(Console(stderr=True), seconds=0.05) as log:
        log.stage("long")
        time.sleep(0.5)
        log.stage("next")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "long" and any(line.startswith("long: done in ") for line in lines)
    assert 2 <= sum("so far" in line for line in lines) <= 4  # at 0.05, 0.1, 0.2 and 0.4 s


def test_a_log_tells_the_whole_under_its_title(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Log(Console(stderr=True, soft_wrap=True), "3 cells of m", seconds=0.05) as log:
        prune, train = portions([1, 3])
        with prune:
            log.stage("prune")
        with train:
            log.stage("train", 8)
            log.step(1, 8)
            log.step(2, 8)
            whole = r"train: 2/8, .* left \(in all 44 %, about \d\.\d s left\)"
            _, lines = _wait_for(whole, capsys)
        log.say("a remark")
    assert lines[0] == "3 cells of m"
    assert "a remark" in capsys.readouterr().err.splitlines()


def _drawn(width: int = 80, **at: str) -> list[str]:
    """What a bar shows of a training half done in the second half of a run, and a remark."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    with Bar(console, title="19 cells of smollm2-135m-instruct") as bar:
        first, second = portions([1, 1])
        with first:
            bar.stage("prune")
        with second:
            bar.stage(at.get("name", "train 10 replacements"), 98)
            bar.step(24, 98)
            began = time.monotonic() - 9
            bar._tracker.state = replace(bar._tracker.state, began=began, opened=began)
            bar.step(49, 98, at.get("message", "step 49/98, validation FFN 14-19: 0.18"))
        bar.say("pruned")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", file.getvalue().replace("\r", "\n"))
    lines = [line for line in plain.splitlines() if line.strip()]
    assert max(map(len, lines)) <= width - 3  # what a terminal echoes for an interrupt fits in
    return [line.rstrip() for line in lines]


def test_a_bar_shows_the_whole_the_stage_and_the_losses_in_80_columns() -> None:
    lines = _drawn()
    assert max(map(len, lines)) <= 80
    whole = next(line for line in lines if line.startswith("19 cells of smol") and "75 %" in line)
    assert re.search(r"75 %\s+0:0\d, 0:0\d left$", whole)
    assert any(re.search(r"^train 10 replacements +━+.* 50 %", line) for line in lines)
    assert "  step 49/98, validation FFN 14-19: 0.18" in lines
    assert "pruned" in lines


@pytest.mark.parametrize("width", [40, 80])
def test_a_bar_keeps_to_the_screen_whatever_is_told(width: int) -> None:
    lines = _drawn(width, name="a name " * 20, message="a loss: 0.1234, " * 12)
    assert max(map(len, lines)) <= width
    assert sum("a loss" in line for line in lines) > 1


def test_a_bar_without_portions_has_no_line_for_the_whole() -> None:
    file = io.StringIO()
    with Bar(Console(file=file, force_terminal=True, width=80), title="evaluate m") as bar:
        bar.stage("piqa", 2)
        bar.step(1, 2)
    assert "piqa" in file.getvalue() and "evaluate m" not in file.getvalue()


def test_the_time_left_of_the_whole_is_at_the_pace_of_this_process() -> None:
    tracker = Tracker()
    load, train, evaluate = portions([1, 4, 5])
    with load:
        tracker.stage("load", None)
    assert tracker.state.whole_left(time.monotonic()) is None  # nothing is done yet
    with train:
        tracker.stage("train", 100)
        began = tracker.state.opened
        assert began is not None
        tracker.step(51, 100, "")  # of these an earlier process did 50
        tracker.step(52, 100, "")
    at = tracker.state
    assert at.whole == pytest.approx(0.1 + 0.4 * 0.52)
    # 0.1 and 2 of 100 units of 0.4 took 10 s, so the rest takes (1 - 0.308) / 0.108 times as long.
    assert at.whole_left(began + 10) == pytest.approx(10 * (1 - 0.308) / 0.108)
    with evaluate:
        tracker.stage("evaluate", 10)
    assert tracker.state.whole == pytest.approx(0.5)


def test_a_stage_around_others_takes_nothing_of_the_whole() -> None:
    tracker = Tracker()
    (everything,) = portions([1])
    with everything:
        tracker.stage("load", None)
        first, _ = portions([1, 1])
        with first:
            tracker.stage("calibrate", None)
            assert tracker.state.whole == 0.0
            tracker.stage("prune", 4)
            tracker.step(2, 4, "")
            assert tracker.state.whole == pytest.approx(0.25)
            tracker.stage("prune another", 4)
    assert tracker.state.whole == pytest.approx(0.25)
    assert tracker.state.made == pytest.approx(0.25)


def test_a_stage_that_outlasts_the_plan_has_no_time_left_to_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Log(Console(stderr=True, soft_wrap=True), "3 cells of m", seconds=0.05) as log:
        *_, last = portions([1] * 6)  # which end a rounding before the whole
        with last:
            log.stage("evaluate", 2)
            log.step(1, 2)
            log.step(2, 2)
            log.stage("speed of 3 models")
            _wait_for(r"speed of 3 models: \d\.\d s so far", capsys)


def test_a_stage_that_tells_nothing_takes_of_the_time_left_until_its_portion_is_over() -> None:
    tracker = Tracker()
    first, measured, _ = portions([5, 3, 2])
    with first:
        tracker.stage("evaluate", 10)
        tracker.step(1, 10, "")
        tracker.step(10, 10, "")
    with measured:
        tracker.stage("speed", None)
    at = tracker.state
    began = at.began - 10  # for half of the whole
    at = replace(at, opened=began)
    assert [at.whole_left(at.began + s) for s in (0, 2, 6, 60)] == pytest.approx([10, 8, 4, 4])


def test_a_stage_that_falls_back_to_nothing_has_no_time_left_to_say() -> None:
    tracker = Tracker()
    tracker.stage("gsm8k", None)
    for done in (0.25, 0.5, 0.0):  # two texts that are begun, and come to nothing
        tracker.step(done, 4, "")
    at = tracker.state
    assert at.left(at.began + 5) is None and at.fraction == 0.0
    tracker.step(1, 4, "")
    assert tracker.state.left(at.began + 5) == pytest.approx(15)


def test_a_stage_that_is_left_out_counts_as_done() -> None:
    tracker = Tracker()
    _, _, last = portions([1, 1, 2])
    with last:
        tracker.stage("evaluate", 10)
        tracker.step(5, 10, "")
    assert tracker.state.whole == pytest.approx(0.75)


@pytest.mark.parametrize(("terminal", "kind"), [(True, Bar), (False, Log)])
def test_the_display_fits_standard_error(
    terminal: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "is_terminal", terminal)
    assert type(progress_display()) is kind


@pytest.mark.parametrize("kind", [Bar, Log])
def test_progress_ends_after_an_error(kind: type[Bar] | type[Log]) -> None:
    with pytest.raises(RuntimeError, match="a fault"), kind(Console(stderr=True)) as display:
        display.stage("train", 2)
        display.step(1, 2)
        raise RuntimeError("a fault")


def test_a_log_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    with Log(Console(stderr=True)):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def _whole(tracker: Tracker, part: float, age: float, seconds: float | None) -> Tracker:
    """A run of which a part is done after some time, planned to take so many seconds."""
    (place,) = portions([1.0])
    with planned(seconds), place:
        tracker.stage("work", 100)
    tracker.step(0, 100, "")
    tracker.step(100 * part, 100, "")
    tracker.state = replace(tracker.state, opened=time.monotonic() - age)
    return tracker


def test_the_time_left_is_the_plan_at_first_and_the_pace_later() -> None:
    now = time.monotonic()
    at = _whole(Tracker(), 0.001, 1, 1000.0).state
    assert at.whole_left(now) == pytest.approx(980, rel=0.05)
    late = _whole(Tracker(), 0.5, 2000, 1000.0).state
    assert late.whole_left(now) == pytest.approx(0.5 * 2050 / 0.55, rel=0.05)
    assert _whole(Tracker(), 0.001, 1, None).state.whole_left(now) is None


@pytest.mark.parametrize(("age", "said"), [(100, True), (300, False), (700, False), (1100, True)])
def test_a_plan_that_is_far_off_is_said_once_with_both_numbers(age: float, said: bool) -> None:
    tracker = _whole(Tracker(), 0.5, age, 1000.0)
    warning = tracker.warning()
    assert (warning is not None) == said
    assert tracker.warning() is None
    if age == 1100:
        assert warning == "this run was planned at 16 min 40 s; at its pace it takes 36 min 40 s"


@pytest.mark.parametrize(("part", "age"), [(0.01, 500), (0.2, 30)])
def test_a_plan_is_not_judged_too_soon(part: float, age: float) -> None:
    assert _whole(Tracker(), part, age, 1000.0).warning() is None


def test_what_an_earlier_process_did_is_no_part_of_the_pace_that_a_plan_is_judged_by() -> None:
    tracker = Tracker()
    (place,) = portions([1.0])
    with planned(1000.0), place:
        tracker.stage("work", 100)
    tracker.step(79, 100, "")
    tracker.step(80, 100, "")
    tracker.step(90, 100, "")
    tracker.state = replace(tracker.state, opened=time.monotonic() - 130)
    assert tracker.warning() is None  # 12 % in 130 s, planned 120 s
    tracker.state = replace(tracker.state, opened=time.monotonic() - 600)
    assert "planned at 3 min" in str(tracker.warning())


def test_displays_say_that_the_plan_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    for display in (Log(Console(stderr=True, width=80)), Bar(Console(file=io.StringIO()))):
        said: list[str] = []
        display.say = said.append  # type: ignore[method-assign]
        _whole(display._tracker, 0.4, 2000, 100.0)
        display.step(41, 100)
        display.step(42, 100)
        (line,) = said
        assert line.startswith("this run was planned at 1 min 40 s") and len(line) <= 80
