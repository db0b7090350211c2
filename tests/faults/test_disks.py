"""A full disk is one message or failed cells that name the file; given again, all ends equal.

A command works on a small file system. Before one of its events the last free block is taken; then
the space is given back and the command is given again. Where nobody may mount one, and in some
cases everywhere, the command is forbidden to write instead.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.harness import Verb, differences

FEW = (("run", 12, False), ("run", 12, True))
PLACES = {"run": 20, "prune": 4, "evaluate": 4}
MEGABYTES = 24


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path], bool]]:
    """``small_disk(folder)``: whether it is a file system of its own for as long as the test is."""
    mounted: list[Path] = []

    def mount(folder: Path) -> bool:
        folder.mkdir(parents=True)
        size = f"size={MEGABYTES}m"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)])
        mounted.extend([] if done.returncode else [folder])
        return done.returncode == 0

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("name", "number", "limited"),
    [
        pytest.param(*case, marks=[] if case in FEW else pytest.mark.faults)
        for name, places in PLACES.items()
        for n in range(places)
        for case in ((name, n, False), (name, n, True))
    ],
)
def test_a_full_disk_is_said_and_the_command_given_again_ends_equal(
    undisturbed: Callable[[str], Verb],
    verb: Callable[[str], Verb],
    small_disk: Callable[[Path], bool],
    name: str,
    number: int,
    limited: bool,
) -> None:
    wanted, struck = undisturbed(name), verb(name)
    writing = list(dict.fromkeys(e for e in wanted.events() if e.startswith(("open", "rename"))))
    place = writing[number * len(writing) // PLACES[name]]
    filled = not limited and small_disk(struck.work)
    outcome = struck.carry_out(at=place, strike="fill" if filled else "limit")
    assert [name for name in struck.leftovers() if name.endswith(".tmp")] == []
    if filled:
        (struck.work / "filler").unlink()
    if outcome.code:
        assert "Traceback" not in outcome.err, outcome.err
        why = "No space left on device" if filled else "File too large"
        assert why in outcome.err, f"at {place}: {outcome.err}"
        assert str(struck.work) in outcome.err, f"at {place}: no file is named: {outcome.err}"
        assert outcome.code in (1, 2)
    again = struck.carry_out()
    assert again.code == 0, f"at {place}, given again: {again.err}"
    wrong = differences(struck, wanted) + struck.leftovers()
    assert wrong == [], "\n".join(wrong)
