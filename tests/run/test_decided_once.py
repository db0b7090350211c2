"""A run of several recoveries decides once for all of them; its numbers are those of each alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamline.method import Method
from streamline.registry import build_method
from streamline.results.record import Record
from streamline.run import pipeline
from streamline.run.config import RunConfig
from streamline.run.pipeline import run
from streamline.run.shards.merging import merge

METHODS = "sleb,slicegpt,llm-streamline-ffn"
Make = Callable[..., RunConfig]


@pytest.fixture
def small(config: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """``small(out, **changes)``: a run that makes no report, which takes longer than the run."""
    monkeypatch.setattr(pipeline, "report_run", lambda _: None)

    def build(out: Path, **changes: Any) -> RunConfig:
        tuned = {"lora": {"n_tokens": 64}, "kd": {"trainees": "lora"}}
        return config(out, **{"methods": METHODS, **tuned, **changes})

    return build


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of the method of every decision."""
    found: list[str] = []
    for name in METHODS.split(","):
        cls = type(build_method(name))

        def noted(self: Method, *args: Any, decide: Any = cls.prune, **kwargs: Any) -> Any:
            found.append(self.name)
            return decide(self, *args, **kwargs)

        monkeypatch.setattr(cls, "prune", noted)
    return found


def test_a_run_decides_once_whatever_recovers(
    small: Make, numbers: Any, decided: list[str], tmp_path: Path
) -> None:
    records = run(small(tmp_path / "all", recovery="none,lora,kd"))
    assert sorted(decided) == sorted(METHODS.split(","))
    assert [record.status for record in records] == ["ok"] * 10

    def of(kind: str, found: list[Record]) -> list[Any]:
        return numbers([one for one in found if one.recovery == kind and one.sparsity])

    for kind in ("none", "lora", "kd"):
        alone = run(small(tmp_path / kind, recovery=kind))
        assert of(kind, records) == of(kind, alone), kind


class Killed(KeyboardInterrupt):
    pass


def test_a_killed_run_decides_nothing_twice(
    small: Make, decided: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(tmp_path, methods="sleb", recovery="none,lora")

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("streamline.run.model_run.evaluate", die)
        with pytest.raises(Killed):
            run(settings)
    assert [record.status for record in run(settings)] == ["ok"] * 3
    assert decided == ["sleb"]


def test_shards_decide_once_for_all_of_them(
    small: Make, numbers: Any, decided: list[str], tmp_path: Path
) -> None:
    given = {"methods": "sleb", "recovery": "none,lora"}
    whole = run(small(tmp_path / "whole", **given))
    decided.clear()
    for number in (1, 2, 3):
        (record,) = run(small(tmp_path / "parts", shard=f"{number}/3", **given))
        assert record.status == "ok"
    assert decided == ["sleb"]
    merge(tmp_path / "parts")
    assert numbers(run(small(tmp_path / "parts", **given))) == numbers(whole)


def test_a_cell_that_is_done_again_is_decided_anew_unless_others_share_it(
    small: Make, decided: list[str], tmp_path: Path
) -> None:
    settings = small(tmp_path, methods="sleb", recovery="none,lora")
    run(settings)
    run(settings, redo=["sleb@0.3,recovery=lora"])
    assert decided == ["sleb"], "the decision is the other cell's too"
    run(settings, redo=[""])
    assert decided == ["sleb", "sleb"]
