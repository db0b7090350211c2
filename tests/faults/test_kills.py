"""Killed at any moment and given again, a command ends with the same results and repeats no work.

A chain is one folder in which the command is given again and again, each time killed before
another of its events, in their order; at last it is left alone. The chains of a verb together
strike each of its events once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
from faults.harness import Verb, differences

CHAINS = {"run": 18, "prune": 6, "evaluate": 6, "report": 2}
FEW = ("run", 7, 40)


@pytest.mark.parametrize(
    ("name", "chain", "chains"),
    [
        FEW,
        *(
            pytest.param(name, chain, chains, marks=pytest.mark.faults)
            for name, chains in CHAINS.items()
            for chain in range(chains)
        ),
    ],
)
def test_a_killed_command_given_again_ends_equal(
    undisturbed: Callable[[str], Verb],
    verb: Callable[[str], Verb],
    name: str,
    chain: int,
    chains: int,
) -> None:
    wanted, struck = undisturbed(name), verb(name)
    if name == "report":
        shutil.copytree(undisturbed("run").out, struck.out)
    events = list(dict.fromkeys(wanted.events()))
    if name == "prune":  # once the folder is there, the same command is refused
        events = events[: events.index("rename out") + 1]
    places = events[chain::chains]
    kills = 0
    for place in [*places, None]:
        outcome = struck.carry_out(at=place)
        assert outcome.code == 0 or (place and outcome.code == -9), f"at {place}: {outcome.err}"
        kills += outcome.code == -9
        if name == "prune" and outcome.code == 0:  # it refuses to do it twice
            break
    wrong = differences(struck, wanted) + repeated(struck.events())
    if name == "report":  # which may be given while a run goes on, and so leaves this to a run
        assert replace(struck, name="run").carry_out().code == 0
    wrong += struck.leftovers()
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
