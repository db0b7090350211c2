"""Shards of a run: the same cells, numbers and files as the run of all, however they are worked."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run.shards.conftest import outcome

from streamline.cli.main import main
from streamline.errors import ConfigError
from streamline.results.record_file import load
from streamline.run import model_run, pipeline, reporting
from streamline.run.cell import expand
from streamline.run.config import RunConfig
from streamline.run.folder import claimed, refuse_claimed
from streamline.run.shards.dense import DenseTurn
from streamline.run.shards.dividing import divided
from streamline.run.shards.merging import merge
from streamline.run.shards.part import Part, busy_parts, claims_of, part_folders, working
from streamline.sharing.claims import Claim, held

Make = Callable[..., RunConfig]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["streamline.run.pipeline"])


def _work(config: RunConfig) -> None:
    import torch

    torch.set_num_threads(1)
    assert all(record.status == "ok" for record in pipeline.run(config))


def _exit(*argv: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in argv])
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def _reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run makes no report, which takes longer than the run."""
    monkeypatch.setattr(pipeline, "report_run", lambda _: None)


@pytest.mark.parametrize("total", [1, 2, 3, 7, 20])
def test_every_cell_is_in_one_part(config: Make, tmp_path: Path, total: int) -> None:
    run = config(tmp_path, seeds="0,1")
    parts = divided(run, total)
    cells = expand(run, run.models[0])
    assert len(parts) == total and parts == divided(run, total)
    assert sorted(map(str, (cell for part in parts for cell in part))) == sorted(map(str, cells))


def test_what_is_trained_on_one_teacher_stays_together(config: Make, tmp_path: Path) -> None:
    def places(total: int) -> list[int]:
        """How many parts have cells that are trained on the teacher of each seed."""
        found: dict[int, set[int]] = {}
        for number, part in enumerate(divided(config(tmp_path, seeds="0,1"), total)):
            for cell in part:
                if cell.method.startswith("llm-streamline"):
                    found.setdefault(cell.seed, set()).add(number)
        return [len(numbers) for numbers in found.values()]

    assert places(4) == [1, 1]
    assert places(9) == [2, 2], "balance counts more"


def test_shards_one_after_the_other_are_the_run_of_all(
    config: Make, tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "out", []
    evaluate = model_run.evaluate

    def counted(paths: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        asked.append(list(paths))
        return evaluate(paths, *args, **kwargs)

    monkeypatch.setattr(model_run, "evaluate", counted)
    for number in (3, 1, 2):
        records = pipeline.run(config(out, shard=f"{number}/3"))
        assert len(records) == len(divided(config(out), 3)[number - 1])
        assert not (out / "results.json").exists()
    assert len({tuple(keys) for keys in asked}) == len(asked)
    found = merge(out)
    assert (found.missing, found.busy) == ([], [])
    assert outcome(out, load(out)) == whole and part_folders(out) == []
    assert [record.identity for record in load(out)] == [
        cell.identity for cell in expand(config(out), config(out).models[0])
    ]
    monkeypatch.setattr(model_run, "load_dense", None)  # nothing is to be done any more
    assert len(pipeline.run(config(out))) == 5


def test_shards_at_the_same_time_are_the_run_of_all(
    config: Make, tmp_path: Path, whole: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    given = [(config(out, shard=f"{number}/3"),) for number in (1, 2, 3)]
    processes = [_FORKS.Process(target=_work, args=one) for one in given]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    merge(out)
    assert outcome(out, load(out)) == whole
    assert list((out / "shards" / "claims").iterdir()) == []


def test_merge_names_what_is_missing_and_the_next_run_does_it(
    config: Make,
    tmp_path: Path,
    whole: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(reporting, "write_report", lambda *_, **__: Path("report.html"))
    pipeline.run(config(out, shard="1/3"))
    assert _exit("merge", out) == 1
    shown = capsys.readouterr()
    assert "no shard has begun it" in shown.err and "slicegpt" in shown.err
    pipeline.run(config(out, shard="3/3"))
    assert _exit("report", out) == 1
    pipeline.run(config(out))
    assert outcome(out, load(out)) == whole
    assert _exit("merge", out) == 0


def test_a_part_that_is_worked_on_is_taken_as_far_as_it_is_and_stays(
    config: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pipeline.run(config(out, shard="1/2", methods="shortgpt"))
    with held(claims_of(out) / "1-of-2"):
        found = merge(out)
    assert found.busy == ["1-of-2"] and len(found.missing) == 1
    assert [folder.name for folder in part_folders(out)] == ["1-of-2"]
    assert merge(out).busy == [] and part_folders(out) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shard": "2/3"}, "parts of another division than 2-of-3"),
        ({"methods": "uidl"}, r'methods was \["shortgpt"\], is \["uidl"\]'),
        ({"limit": 3}, "limit was null, is 3"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(
    config: Make, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    out, small = tmp_path / "out", {"methods": "shortgpt"}
    pipeline.run(config(out, shard="1/2", **small))
    before = json.loads((out / "run.json").read_text(encoding="utf-8"))
    with pytest.raises(ConfigError, match=f"{words}.*streamline-bench merge"):
        pipeline.run(config(out, **{"shard": "2/2", **small, **change}))
    assert json.loads((out / "run.json").read_text(encoding="utf-8")) == before
    assert [folder.name for folder in part_folders(out)] == ["1-of-2"]
    pipeline.run(config(out, shard="2/2", device="auto", **small))


def test_who_comes_to_a_folder_in_use_is_refused(config: Make, tmp_path: Path) -> None:
    out, part = tmp_path / "out", Part("1-of-2", frozenset())
    with working(out, part):
        with pytest.raises(ConfigError, match="shards are working in"), claimed(out):
            pass
        with pytest.raises(ConfigError, match="another process is working on"), working(out, part):
            pass
    with claimed(out), pytest.raises(ConfigError, match="a run of all cells is using"):
        pipeline.run(config(out, shard="1/2"))
    assert _exit("rm", out, "shortgpt@0.3") == 2
    with pytest.raises(ConfigError, match="without --shard"):
        pipeline.run(config(out, shard="1/2"), redo=[""])


def test_the_dense_models_turn_is_given_up_by_who_waited_for_it(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DenseTurn, "attempt", lambda _: False)  # somebody is at it
    [dense, _] = pipeline.run(config(tmp_path, shard="1/1", methods="shortgpt"))
    assert dense.status == "ok" and dense.method == "dense"
    assert list(claims_of(tmp_path).iterdir()) == []


def test_shards_that_begin_together_are_not_in_each_others_way(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working(tmp_path, Part("1-of-2", frozenset())), monkeypatch.context() as patch:
        patch.setattr(Claim, "_take", lambda *_: pytest.fail("a look is no claim"))
        assert busy_parts(tmp_path) == ["1-of-2"]
        refuse_claimed(tmp_path)
    assert busy_parts(tmp_path) == []


def test_records_of_shards_are_named_where_they_are_looked_for(
    config: Make, tmp_path: Path
) -> None:
    pipeline.run(config(tmp_path / "out", shard="2/2", methods="shortgpt"))
    with pytest.raises(ConfigError, match="streamline-bench merge .*out"):
        load(tmp_path / "out")


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "-1/2", "a/b", "1/2/3"])
def test_what_names_no_shard_is_refused(config: Make, tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="shard: .*write I/N, the I-th of N parts counted from 1"):
        config(tmp_path, shard=text)
    with pytest.raises(ConfigError, match="give --save to the same command without --shard"):
        config(tmp_path, shard="1/2", save="all")
