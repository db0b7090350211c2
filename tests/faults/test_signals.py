"""Interrupted or told to end, a command says so in one line, and given again it does the rest."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from faults.harness import Verb, differences

SAID = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("told to end", 143)}
FEW = (signal.SIGTERM, "kept step")
PLACES = (
    "kept calibration",
    "kept step",
    "step lora",
    "kept answers",
    "kept text",
    "rename out/rep",
)


@pytest.mark.parametrize(
    ("strike", "place"),
    [
        pytest.param(strike, place, marks=[] if (strike, place) == FEW else pytest.mark.faults)
        for strike in SAID
        for place in PLACES
    ],
)
def test_a_signal_ends_a_run_with_one_line(
    undisturbed: Callable[[str], Verb],
    verb: Callable[[str], Verb],
    strike: signal.Signals,
    place: str,
) -> None:
    run, wanted = verb("run"), undisturbed("run")
    matching = [event for event in wanted.events() if event.startswith(place)]
    outcome = run.carry_out(matching["step" in place], strike)
    words, code = SAID[strike]
    assert outcome.code == code, outcome.err
    line = f"error: {words}; what is finished is kept, the same command does the rest"
    assert outcome.err.splitlines()[-1] == line
    assert outcome.err.count("error: ") == 1 and "Traceback" not in outcome.err, outcome.err
    assert run.leftovers() == []
    again = run.carry_out()
    assert again.code == 0, again.err
    assert differences(run, wanted) == []
