"""What ends one of several processes, or never begins, ends the run with one message."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from faults.harness import Verb, differences

GATHERING, HINT = "distributed.meeting___GATHERING", "distributed.meeting___HINT_S"


@pytest.fixture
def launched() -> Callable[[int], dict[str, str]]:
    """``launched(rank)``: the environment of one of two processes at a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return lambda rank: place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}


@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.faults)])
def test_a_lost_process_ends_the_run_with_one_message(
    undisturbed: Callable[[str], Verb],
    verb: Callable[[str], Verb],
    launched: Callable[[int], dict[str, str]],
    lost: int,
) -> None:
    run = verb("run")
    both = [run.begin(env=launched(rank)) for rank in range(2)]
    until = time.monotonic() + 60
    while not any(event.startswith("kept step") for event in run.events()):
        assert time.monotonic() < until, "no training has begun"
        time.sleep(0.02)
    os.kill(both[lost].pid, signal.SIGKILL)
    left = both[1 - lost].end()
    assert both[lost].end().code == -9
    assert left.code == 2, left.err
    assert "another of 2 processes is gone" in left.err, left.err
    assert left.err.count("error: ") == 1 and "failed" not in left.err, left.err
    assert "Traceback" not in left.err, left.err
    again = run.carry_out()
    assert again.code == 0, again.err
    assert differences(run, undisturbed("run"), rounding=1e-4) == []  # of sums of gradients


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_waits_for_others_says_so_and_not_for_ever(
    verb: Callable[[str], Verb], launched: Callable[[int], dict[str, str]], rank: int
) -> None:
    bounds = {GATHERING: timedelta(seconds=2), HINT: 0.5}
    outcome = verb("run").begin(env=launched(rank), **bounds).end(30)
    assert outcome.code == 2, outcome.err
    hint, message = outcome.err.split("error: ")
    for text in (hint, message):
        assert "WORLD_SIZE is 2" in text and "at 127.0.0.1:" in text, outcome.err
    assert "unset WORLD_SIZE" in message and "Traceback" not in message, outcome.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc' in the environment, no number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0' in the environment, no number"),
        ({"WORLD_SIZE": "2", "RANK": "first"}, "RANK is 'first' in the environment, no number"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT name no place"),
    ],
)
def test_a_launchers_environment_that_makes_no_sense_is_refused(
    verb: Callable[[str], Verb], changes: dict[str, str], words: str
) -> None:
    outcome = verb("run").begin(env=changes).end(30)
    assert outcome.code == 2 and "Traceback" not in outcome.err, outcome.err
    assert words in outcome.err and "unset WORLD_SIZE" in outcome.err, outcome.err
