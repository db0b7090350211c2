"""Trainings whose files came to harm: set aside by name, trained again, to the same bits."""

from __future__ import annotations

import stat

import pytest
import torch
from damages import DAMAGES

from streamline.training.fit import fit
from streamline.training.schedule import Schedule
from streamline.training.state import TrainingState


class Stop(Exception):
    pass


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("folder", ["state", "students"])
def test_a_training_is_made_again_from_what_is_whole(
    decoder, tmp_path, train, validation, student, weights, assert_equal, folder, damage
):
    def die(done: int, *_: object) -> None:
        if folder == "state" and done > 96:
            raise Stop

    first = student(decoder, 1, 3)
    options = {"directory": tmp_path, "micro_batch": 32, "save_seconds": 0.0}
    (expected,) = fit(decoder, [first], train, validation, micro_batch=32)
    try:
        fit(decoder, [student(decoder, 1, 3)], train, validation, progress=die, **options)
    except Stop:
        assert folder == "state"
    for file in list((tmp_path / folder).iterdir()):
        DAMAGES[damage](file)
        again = student(decoder, 1, 3)
        (found,) = fit(decoder, [again], train, validation, **options)
        assert_equal(weights(again), weights(first))
        assert (found.before, found.best) == (expected.before, expected.best)
        aside = [path.name for path in file.parent.iterdir() if path.name != file.name]
        assert aside == ([] if damage == "missing" else [f"{file.name}.damaged"])


def test_a_training_leaves_files_of_the_ordinary_mode(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2))
    state = TrainingState(
        label="a",
        key="k",
        parameters={"w": weight},
        schedule=Schedule(n_steps=1, peak=0.1, final=0.1, warmup_steps=0),
        directory=tmp_path,
    )
    weight.grad = torch.ones(2)
    state.update(1.0, 1)
    state.save()
    plain = tmp_path / "plain"
    plain.touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*.*")}
    assert modes == {stat.S_IMODE(plain.stat().st_mode)}
