"""Methods that break their promises: a run's other cells are what they are without them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from misbehaving import FAULTS, HARMLESS, TrainsDense
from torch import nn

from streamline.engine.decoder import Decoder
from streamline.method import Method
from streamline.results.record import Record
from streamline.run import pipeline
from streamline.run.config import RunConfig
from streamline.run.planning.estimate import plan_run
from streamline.run.planning.fitting import fitted, memory_plan
from streamline.run.planning.plan import MemoryRow

OTHERS = ("shortgpt", "given-layers+remove=2-3", "streamline-v1-mlp")
MISBEHAVING = [f"misbehaving:{name}" for name in (*FAULTS, *HARMLESS)]


@pytest.fixture(scope="module")
def records(
    tmp_path_factory: pytest.TempPathFactory, config: Callable[..., RunConfig]
) -> dict[str, Record]:
    """The records of a run of all of them, each before methods that it could harm."""
    methods = ",".join([*MISBEHAVING, *OTHERS])
    found = pipeline.run(config(tmp_path_factory.mktemp("together"), methods=methods))
    return {record.method: record for record in found}


@pytest.mark.parametrize("name", FAULTS)
def test_a_method_that_breaks_a_promise_fails_by_name(
    name: str, records: dict[str, Record]
) -> None:
    own = records[f"misbehaving:{name}"]
    assert (own.status, own.tasks) == ("failed", {})
    assert FAULTS[name] in (own.reason or "")


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_method_does_with_its_own_copies_is_its_affair(
    name: str, records: dict[str, Record]
) -> None:
    assert records[f"misbehaving:{name}"].status == "ok"


def test_the_other_cells_are_what_they_are_alone(
    records: dict[str, Record],
    tmp_path: Path,
    config: Callable[..., RunConfig],
    numbers: Callable[[list[Record]], list[Any]],
) -> None:
    alone = pipeline.run(config(tmp_path, methods=",".join(OTHERS)))
    assert [record.status for record in alone] == ["ok"] * 4
    assert numbers([records[record.method] for record in alone]) == numbers(alone)


@pytest.mark.slow
def test_a_module_that_computes_into_its_input_harms_no_path_beside_it(
    tmp_path: Path,
    config: Callable[..., RunConfig],
    numbers: Callable[[list[Record]], list[Any]],
) -> None:
    methods = f"misbehaving:WritesStates,{OTHERS[1]}"
    dense, own, beside = pipeline.run(config(tmp_path / "both", methods=methods))
    assert own.status == "ok"
    alone = pipeline.run(config(tmp_path / "alone", methods=OTHERS[1]))
    assert numbers([dense, beside]) == numbers(alone)


def test_a_plan_names_what_would_fail_and_has_all_other_rows(
    tmp_path: Path, config: Callable[..., RunConfig]
) -> None:
    rows = plan_run(config(tmp_path, methods=",".join([*MISBEHAVING, *OTHERS]))).rows
    reasons = {row.cell.method.removeprefix("misbehaving:"): row.reason for row in rows}
    early = ("SizeRaises", "SizeExits", "UnsupportedRaises", "PostInitRaises", "ReprRaises")
    for name in early:
        assert FAULTS[name] in (reasons[name] or "")
    assert [reasons[name] for name in ("dense", *OTHERS)] == [None] * 4


def _exits(*_: Any) -> None:
    sys.exit(3)


def _raises(*_: Any) -> None:
    raise RuntimeError("it does not work")


def _nothing(*_: Any) -> None:
    """Gives none of what is asked for."""


def _spoils(_: Method, decoder: Decoder, few: Decoder, *__: Any) -> None:
    few.layers[0] = nn.Identity()
    decoder.layers[1] = decoder.layers[2]


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ("networks", _raises), ("networks", _exits), ("networks", _nothing),
        ("rehearse", _raises), ("rehearse", _exits), ("rehearse", _spoils),
    ],
)  # fmt: skip
def test_what_a_method_does_while_memory_is_planned_changes_no_other_stage(
    part: str,
    fault: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    config: Callable[..., RunConfig],
) -> None:
    def stages() -> list[MemoryRow]:
        one, _ = fitted(
            config(tmp_path, methods="misbehaving:TrainsDense,shortgpt", efficiency="quick")
        )
        return [row for row in memory_plan(one, one.models[0]).rows if row.stage != "calibrate"]

    healthy = stages()
    monkeypatch.setattr(TrainsDense, part, fault)
    assert {row.stage for row in healthy} == {"train", "evaluate", "speed"}
    assert stages() == healthy
