"""A full disk is one message or failed cells that name the file; given again, all ends equal.

A command works on a small file system. Before one of its events the last free block is taken; then
the space is given back and the command is given again.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.harness import Verb, differences

FEW = (("run", 12),)
PLACES = {"run": 20, "prune": 4, "evaluate": 4}
MEGABYTES = 24


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """``small_disk(folder)``: the folder is a file system of its own for as long as the test is."""
    mounted: list[Path] = []

    def mount(folder: Path) -> None:
        folder.mkdir(parents=True)
        size = f"size={MEGABYTES}m"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)])
        if done.returncode:
            pytest.skip("only an administrator may mount a small disk")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param(name, n, marks=[] if (name, n) in FEW else pytest.mark.faults)
        for name, places in PLACES.items()
        for n in range(places)
    ],
)
def test_a_full_disk_is_said_and_the_command_given_again_ends_equal(
    undisturbed: Callable[[str], Verb],
    verb: Callable[[str], Verb],
    small_disk: Callable[[Path], None],
    name: str,
    number: int,
) -> None:
    wanted, struck = undisturbed(name), verb(name)
    writing = list(dict.fromkeys(e for e in wanted.events() if e.startswith(("open", "rename"))))
    place = writing[number * len(writing) // PLACES[name]]
    small_disk(struck.work)
    outcome = struck.carry_out(at=place, strike="fill")
    assert [name for name in struck.leftovers() if name.endswith(".tmp")] == []
    (struck.work / "filler").unlink()
    if outcome.code:
        assert "Traceback" not in outcome.err, outcome.err
        assert "No space left on device" in outcome.err, f"at {place}: {outcome.err}"
        assert str(struck.work) in outcome.err, f"at {place}: no file is named: {outcome.err}"
        assert outcome.code in (1, 2)
    again = struck.carry_out()
    assert again.code == 0, f"at {place}, given again: {again.err}"
    wrong = differences(struck, wanted) + struck.leftovers()
    assert wrong == [], "\n".join(wrong)
