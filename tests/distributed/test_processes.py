"""Two and three processes give the results of one, and one's failure is everyone's."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import process_trainings
import processes
import pytest

from streamline.distributed.meeting import joined
from streamline.distributed.team import WHOLE, Shard, interleaved
from streamline.distributed.work import together

SIZES = (2, 3)


def test_a_share_is_every_nth_item() -> None:
    parts = [Shard(rank, 3).of(range(8)) for rank in range(3)]
    assert [list(part) for part in parts] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert interleaved(parts) == list(range(8))
    assert list(WHOLE.of(range(8))) == list(range(8))


def test_alone_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as found:
        assert found == WHOLE
    assert together(lambda: 3) == 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What one process gives (under 1), and each of two and of three, by number and rank."""
    folder: Path = tmp_path_factory.mktemp("processes")
    processes.place(folder)
    process_trainings.broken_off(folder / "1")
    ports = []
    for size in SIZES:
        shutil.copytree(folder / "1", folder / str(size))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append((size, free.getsockname()[1]))
    command = [sys.executable, processes.__file__, str(folder), json.dumps(ports)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as others:
        try:
            results: dict[Any, Any] = {1: processes.work(folder, 1)}
            _, said = others.communicate(timeout=280)
        finally:
            others.kill()
    assert others.returncode == 0, said
    for size in SIZES:
        for rank in range(size):
            file = folder / f"{size}-{rank}.json"
            results[size, rank] = json.loads(file.read_text())
            lost = file.with_suffix(".lost")
            results[size, rank]["lost"] = lost.read_text() if lost.exists() else None
    return results


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", ["scores", "streamed", "texts"])
def test_shared_batches_give_the_same_numbers(found: dict[Any, Any], size: int, what: str) -> None:
    for rank in range(size):
        assert found[size, rank][what] == found[1][what]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", process_trainings.NAMES)
def test_a_training_gives_the_same_losses_and_weights(
    found: dict[Any, Any], size: int, what: str
) -> None:
    losses, weights = found[1][what]
    for rank in range(size):
        there = found[size, rank][what]
        assert there[0] == pytest.approx(losses, rel=1e-4)
        assert there[1] == pytest.approx(weights, abs=2e-5)
        assert there == found[size, 0][what]  # to the last bit: the weights stay those of one model


@pytest.mark.parametrize("size", SIZES)
def test_each_process_holds_a_part_of_divided_weights(found: dict[Any, Any], size: int) -> None:
    whole, *_ = found[size, 0]["parts"]
    held = [found[size, rank]["parts"][1] for rank in range(size)]
    assert sum(held) == whole and max(held) < 1.2 * whole / size


@pytest.mark.parametrize("size", SIZES)
def test_lent_weights_are_nowhere_whole_and_come_back(found: dict[Any, Any], size: int) -> None:
    every = [found[size, rank]["lent"] for rank in range(size)]
    parts = [lent["held"][1] for lent in every]
    whole = every[0]["held"][2]
    assert sum(parts) == whole and max(parts) < 1.2 * whole / size
    for lent in every:
        assert lent["held"][0] == 0
        assert lent["same"] == [True, True]
        assert "broken" in lent["said"]


@pytest.mark.parametrize("size", SIZES)
def test_one_failure_is_everyones(found: dict[Any, Any], size: int) -> None:
    last, first = size - 1, f"StreamlineError: process 0 of {size} failed: ValueError: broken 0"
    for rank in range(size):
        told = f"StreamlineError: process {last} of {size} failed: ValueError: broken {last}"
        own = f"ValueError: broken {last}" if rank == last else told
        assert found[size, rank]["failures"] == {
            "in its part": own,
            "while others wait for its part": own,
            "while others wait in an exchange of their own": own,
            "before a step that the others have begun": own,
            "before layers are divided": own,
            "the first's": first if rank else "ValueError: broken 0",
            "all": first if rank else "ValueError: broken 0",
            "of what it was sent": "ValueError: not read"
            if rank == 1
            else f"StreamlineError: process 1 of {size} failed: ValueError: not read",
            "one of ours keeps its kind": "NotFiniteError: no number",
            "one that cannot be sent": first.replace("ValueError: broken 0", "Odd: 1")
            if rank
            else "Odd: 1",
            "afterwards": [rank_ for rank_ in range(size)],
        }


@pytest.mark.parametrize("size", SIZES)
def test_too_little_memory_of_one_process_ends_what_all_exchange(
    found: dict[Any, Any], size: int
) -> None:
    for rank in range(size):
        for place in ("for the parts", "for a sum"):
            said = found[size, rank]["no room"][place]
            named = "" if rank == size - 1 else f"process {size - 1} of {size} failed: RuntimeError"
            assert named in said and "allocate" in said, said


@pytest.mark.parametrize("size", SIZES)
def test_processes_of_one_machine_listen_on_loopback_alone(
    found: dict[Any, Any], size: int
) -> None:
    for rank in range(size):
        assert found[size, rank]["listening"] == ["127.0.0.1"]


@pytest.mark.parametrize("size", SIZES)
def test_who_is_left_behind_says_so(found: dict[Any, Any], size: int) -> None:
    said = [found[size, rank]["lost"] for rank in range(size)]
    assert said.pop() is None
    assert all(f"another of {size} processes is gone: it was killed" in text for text in said)


@pytest.mark.parametrize(
    ("what", "size"), [("records", 2), ("records", 3), ("recovered", 3), ("started", 2)]
)
def test_a_run_gives_the_same_records(found: dict[Any, Any], size: int, what: str) -> None:
    alone = found[1][what]
    status = [value for place, value in alone.items() if place.endswith("/status")]
    assert status == ["ok"] * len(status) and len(status) >= 4
    for rank in range(size):
        there = found[size, rank][what]
        measured = {place: value for place, value in alone.items() if isinstance(value, float)}
        assert {place: there[place] for place in measured} == pytest.approx(measured, rel=1e-4)
        assert there | measured == alone
