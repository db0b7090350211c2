from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from streamline.evaluation.efficiency.memory import peak_of
from streamline.training import fit as fitting
from streamline.training.fit import fit
from streamline.training.schedule import taking_turns, training_bytes, waves

CPU = torch.device("cpu")


def group(n_parameters: int) -> Any:
    return SimpleNamespace(state=SimpleNamespace(n_parameters=n_parameters))


def test_students_are_divided_into_few_waves_and_a_large_one_is_alone() -> None:
    groups = [group(n) for n in (6, 5, 4, 20, 2, 8, 3)]
    sizes = [[g.state.n_parameters for g in wave] for wave in waves(groups, training_bytes(10))]
    assert sizes == [[6, 4], [5, 3], [20], [2, 8]]
    assert waves(groups, None) == [groups]


def test_waves_change_no_bit(
    decoder, tmp_path, train, validation, student, weights, assert_equal, monkeypatch
):
    def several() -> list[Any]:
        return [
            student(decoder, 2, 4, "layer"),
            student(decoder, 2, 4, "ffn"),
            student(decoder, 1, 5, "swiglu"),
            student(decoder, 2, 4, "ffn"),  # equal to the second: trained once
            student(decoder, 0, 2, "layer", objective="lm"),
            student(decoder, 2, 4, "layer", objective="lm"),
        ]

    runs: list[int] = []
    original = fitting.train_run
    monkeypatch.setattr(
        fitting,
        "train_run",
        lambda args, run, show: (runs.append(len(run)), original(args, run, show)),
    )
    joint, parted = several(), several()
    names = [f"student{n}" for n in range(6)]
    told: list[tuple[int, int]] = []
    at_once = fit(decoder, joint, train, validation, labels=names)
    in_waves = fit(
        decoder, parted, train, validation, labels=names, directory=tmp_path, memory=1,
        progress=lambda done, total, text: told.append((done, total)),
    )  # fmt: skip
    assert runs == [3, 2, 1, 1, 1, 1, 1]
    assert_equal(weights(*joint), weights(*parted))
    assert [x.best for x in at_once] == [x.best for x in in_waves]
    assert told == sorted(told) and told[-1][0] == told[-1][1]


def test_a_wave_keeps_to_its_memory(decoder, train, validation, student):
    """What trained a wave is let go before the next; otherwise moments and copies pile up."""

    def added(memory: int | None) -> int:
        several = [student(decoder, 1, n, "ffn") for n in (2, 3, 4, 5)]
        with peak_of(CPU) as peak:
            fit(decoder, several, train, validation, memory=memory, micro_batch=16)
        return peak.bytes

    one = sum(p.numel() for p in student(decoder, 1, 2, "ffn").module.parameters())
    # Of each student at once: gradient, two moments and the best weights.
    saved = added(None) - added(training_bytes(one))
    assert saved == pytest.approx(3 * 4 * 4 * one, rel=0.15)


def test_students_take_turns_on_a_device() -> None:
    parts = [[SimpleNamespace(modules=nn.Linear(2, 2).to("meta"))] for _ in range(2)]
    moved: list[tuple[int, str]] = []
    for n, (one,) in enumerate(parts):
        one.modules.to = lambda device, n=n: moved.append((n, str(device)))
    assert list(taking_turns(parts, None)) == parts and moved == []
    seen = [list(moved) for _ in taking_turns(parts, torch.device("meta"))]
    assert seen == [[(0, "meta")], [(0, "meta"), (0, "cpu"), (1, "meta")]]
    assert moved[-1] == (1, "cpu")
