"""Killed at any moment and given again, a command ends with the same results and repeats no work.

A chain is one folder in which the command is given again and again, each time killed before
another of its events, in their order; at last it is left alone. The chains of a verb together
strike each of its events once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from faults.harness import Verb, differences

CHAINS = {"run": 12, "prune": 4, "evaluate": 4, "report": 2}


@pytest.mark.parametrize(
    ("name", "chain"),
    [
        pytest.param(name, chain, marks=[] if (name, chain) == ("run", 0) else pytest.mark.faults)
        for name, number in CHAINS.items()
        for chain in range(number)
    ],
)
def test_a_killed_command_given_again_ends_equal(
    undisturbed: Callable[[str], Verb], verb: Callable[[str], Verb], name: str, chain: int
) -> None:
    wanted, struck = undisturbed(name), verb(name)
    if name == "report":
        shutil.copytree(undisturbed("run").out, struck.out)
    places = list(dict.fromkeys(wanted.events()))[chain :: CHAINS[name]]
    kills = 0
    for place in places:
        outcome = struck.carry_out(at=place)
        assert outcome.code in (0, -9), f"struck at {place}: {outcome.err}"
        kills += outcome.code == -9
    outcome = struck.carry_out()
    assert outcome.code == 0, outcome.err
    wrong = differences(struck, wanted) + struck.leftovers() + repeated(struck.events())
    assert wrong == [], "\n".join(wrong)
    assert kills >= 0.6 * len(places), f"{kills} kills at {len(places)} places"


def repeated(events: list[str]) -> list[str]:
    """What was done again although it had been kept."""
    kept: set[str] = set()
    again = []
    for event in events:
        if event in kept or f"kept {event}" in kept:
            again.append(event)
        if event.startswith("kept "):
            kept.add(event)
    return again
