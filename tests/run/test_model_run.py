"""The runner on a tiny model of its own: records, resumption, failures, skips."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from broken import Broken
from torch import Tensor

from streamline.api import variants
from streamline.calibration import Calibration
from streamline.engine.decoder import Decoder
from streamline.errors import AssetError, UnsupportedModelError
from streamline.evaluation import evaluate as evaluation
from streamline.plan import Plan
from streamline.results.record import Record
from streamline.results.samples import read_samples
from streamline.run import model_run
from streamline.run.cell import cell_job, expand
from streamline.run.config import RunConfig
from streamline.run.inputs import settle, shared_inputs
from streamline.run.pipeline import run
from streamline.testing.models import tiny_model, tiny_tokenizer

METHODS = "random-layers,shortgpt,llm-streamline-layer,llm-streamline-ffn"


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, config: Callable[..., RunConfig]
) -> tuple[Path, list[Record]]:
    """One uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(config(out))


def test_every_cell_has_a_record_the_dense_one_first(whole):
    _, records = whole
    assert [r.method for r in records] == ["dense", *METHODS.split(",")]
    assert {r.status for r in records} == {"ok"}
    dense, *others = records
    assert dense.parameters.removed_fraction == 0.0
    assert dense.summary.stability == 1.0
    assert dense.summary.relative_accuracy == 1.0
    for record in others:
        assert record.plan.removed_layers
        assert record.parameters.dense - record.parameters.pruned > 0
        assert record.tasks["piqa"].n == 8
        assert record.tasks["piqa"].metric == "acc"
        assert record.summary.perplexity and all(record.summary.perplexity.values())
        assert record.cost.eval_s > 0
    assert others[2].cost.train_tokens == 512
    assert others[0].cost.train_tokens is None


def test_a_run_leaves_what_the_records_were_made_of(whole):
    out, records = whole
    assert len(list((out / "samples").glob("*.parquet"))) == len(records)
    assert len(list((out / "plans").glob("*.json"))) == len(records) - 1
    assert len(list((out / "losses").glob("*.jsonl"))) == 2
    rows = read_samples(next((out / "samples").glob("*--shortgpt--*.parquet")))
    piqa = records[2].tasks["piqa"]
    assert rows.groupby("doc_id")["correct"].first().mean() == piqa.value
    assert (piqa.extra("protocol"), piqa.extra("shots")) == ("lm-eval", 0)
    assert (out / "report.md").is_file()
    assert (out / "report.html").is_file()


def test_the_same_run_again_computes_nothing(whole, monkeypatch, config, numbers):
    out, records = whole

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run must not load a model")

    monkeypatch.setattr(variants, "load_model", never)
    assert numbers(run(config(out))) == numbers(records)


@pytest.mark.parametrize("stop_after", ["train", "answer"])
def test_an_interrupted_run_goes_on_and_ends_equal(
    whole, tmp_path, monkeypatch, stop_after, config, numbers
):
    """Stopped after the training, or in the middle of evaluation, then run again."""
    answer_all = evaluation.answer_all

    class Killed(BaseException):
        pass

    def dies(*args: Any, **options: Any) -> Iterator[Any]:
        if stop_after == "answer":
            yield next(answer_all(*args, **options))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "answer_all", dies)
        with pytest.raises(Killed):
            run(config(tmp_path))
    from streamline.training.state import TrainingState

    trained: list[int] = []
    original = TrainingState.update

    def counted(self: Any, *args: Any) -> None:
        trained.append(1)
        original(self, *args)

    monkeypatch.setattr(TrainingState, "update", counted)
    again = run(config(tmp_path))
    assert trained == [], "a finished training must only be loaded"
    assert numbers(again) == numbers(whole[1])


def test_a_new_method_leaves_finished_cells_alone(whole, tmp_path, monkeypatch, config, numbers):
    out = tmp_path / "more"
    shutil.copytree(whole[0], out)
    asked: list[set[str]] = []
    original = model_run.evaluate

    def watched(paths: Any, *args: Any, **options: Any) -> Any:
        asked.append({path.name for path in paths.values()})
        return original(paths, *args, **options)

    monkeypatch.setattr(model_run, "evaluate", watched)
    records = run(config(out, methods=f"{METHODS},last-layers"))
    assert asked == [{"last-layers 0.3"}]
    assert numbers(records)[:-1] == numbers(whole[1])


def test_lost_answers_of_the_dense_model_are_asked_again(whole, tmp_path, config, numbers):
    out = tmp_path / "lost"
    shutil.copytree(whole[0], out)
    shutil.rmtree(out / "cache")
    records = run(config(out, methods=f"{METHODS},last-layers"))
    assert [r.status for r in records] == ["ok"] * 6
    assert numbers(records)[:-1] == numbers(whole[1])


def test_models_of_their_own_are_compared_with_lost_answers_too(tmp_path, config, numbers):
    [dense, first] = run(config(tmp_path, methods="slicegpt+max_slicing=0.8"))
    shutil.rmtree(tmp_path / "cache" / "answers")
    records = run(config(tmp_path, methods="slicegpt+max_slicing=0.8,llm-pruner"))
    assert [r.status for r in records] == ["ok"] * 3
    assert numbers(records[:2]) == numbers([dense, first])


def test_a_text_longer_than_the_model_is_left_out(place, tmp_path, config):
    long = {"texts": str(place / "text.jsonl"), "n_tokens": 1024, "length": 1024}
    with pytest.raises(AssetError, match="windows of 1,024 tokens are longer than the 512"):
        run(config(tmp_path, methods="dense", perplexity=long))
    [dense] = run(config(tmp_path, methods="dense", perplexity=long, skip_missing=True))
    assert dense.status == "ok" and dense.summary.perplexity == {}
    (reason,) = dense.notes["data"]["unavailable"].values()
    assert reason.startswith("windows of 1,024 tokens are longer than the 512 positions")


def test_a_fault_in_the_common_evaluation_stays_with_its_cell(tmp_path, monkeypatch, config):
    original = model_run.evaluate

    def faulty(paths: Any, *args: Any, **options: Any) -> Any:
        if any(path.name.startswith("shortgpt") for path in paths.values()):
            raise RuntimeError("no kernel")
        return original(paths, *args, **options)

    monkeypatch.setattr(model_run, "evaluate", faulty)
    dense, shortgpt, last = run(config(tmp_path, methods="shortgpt,last-layers"))
    assert (dense.status, last.status) == ("ok", "ok")
    assert (shortgpt.status, shortgpt.reason) == ("failed", "RuntimeError: no kernel")


def test_tasks_without_questions_are_left_out_and_named(tmp_path, config):
    settings = config(tmp_path, methods="dense", tasks="piqa,streamline_xsum,wikitext2")
    [dense] = run(settings.model_copy(update={"data": "packaged", "skip_missing": True}))
    assert {name: row.value is None for name, row in dense.tasks.items()} == {
        "piqa": False,
        "streamline_xsum": True,
    }
    assert dense.summary.perplexity["wikitext2"] is None
    assert set(dense.notes["missing"]) == {"streamline_xsum", "wikitext2"}
    assert set(dense.notes["data"]["unavailable"]) == {"streamline_xsum", "wikitext2"}


@dataclass(frozen=True, kw_only=True)
class Refusing(Broken):
    """Never works."""

    name: ClassVar[str] = "refusing"

    def unsupported(self, decoder: Decoder) -> str | None:
        return "needs another model"


@dataclass(frozen=True, kw_only=True)
class OutOfReach(Broken):
    """Works on the model, but not at this sparsity."""

    name: ClassVar[str] = "out-of-reach"

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        raise UnsupportedModelError("would grow by 3 parameters")


def test_a_cell_that_cannot_be_met_is_skipped_with_its_reason(tmp_path, config):
    _, record = run(config(tmp_path, methods=f"{__name__}:OutOfReach"))
    assert (record.status, record.reason) == ("skipped", "would grow by 3 parameters")


def test_another_model_can_stand_in_a_row(tmp_path, config):
    """Asked and achieved stand beside each other, and what is far off is flagged."""
    small = tmp_path / "small"
    tiny_model("llama", n_layers=2, seed=1).save_pretrained(small)
    tiny_tokenizer().save_pretrained(small)
    methods = f"smaller-dense,smaller-dense+model={small},last-layers"
    _, unknown, row, last = run(config(tmp_path / "out", methods=methods))
    assert unknown.status == "skipped" and "has no known family" in str(unknown.reason)
    assert (row.status, last.status) == ("ok", "ok")
    assert row.sparsity == 0.3
    assert row.parameters.removed_fraction > 0.4
    assert row.plan.kept_layers == [] and row.plan.replacement == "smaller-dense"
    assert row.notes["flag"].startswith("target 0.3000, achieved 0.")
    assert row.notes["smaller_model"] == str(small)
    assert row.tasks["piqa"].n == 8 and row.summary.perplexity


def test_a_failed_and_a_refused_cell_are_records_and_the_others_go_on(tmp_path, config):
    methods = f"broken:Broken,{__name__}:Refusing,shortgpt"
    _, broken, refusing, good = run(config(tmp_path, methods=methods))
    assert (broken.status, broken.reason) == ("failed", "ZeroDivisionError: no scores")
    assert broken.notes["where"].startswith("broken.py:")
    assert broken.summary.accuracy is None
    assert (refusing.status, refusing.reason) == ("skipped", "needs another model")
    assert good.status == "ok"


def test_a_failed_training_fails_its_cells_only(tmp_path, monkeypatch, config):
    from streamline.api import training

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("diverged")

    monkeypatch.setattr(training, "fit", fail)
    _, shortgpt, layer = run(config(tmp_path, methods="shortgpt,llm-streamline-layer"))
    assert shortgpt.status == "ok"
    assert (layer.status, layer.reason) == ("failed", "RuntimeError: diverged")


def test_seeds_are_cells_of_their_own(tmp_path, config):
    records = run(config(tmp_path, methods="random-layers", seeds="0,1,2"))
    assert [r.seed for r in records] == [0, 0, 1, 2]
    assert len({tuple(r.plan.removed_layers) for r in records[1:]}) > 1


def test_cells_keep_their_key_and_change_it_with_the_inputs(tmp_path, config):
    def keys(**changes: Any) -> list[str]:
        settings = config(tmp_path, methods="shortgpt", **changes)
        cells = expand(settings, settings.models[0])
        shared = shared_inputs(settings, "fingerprint", settle(settings))
        return [cell_job(cell, shared).key for cell in cells]

    assert keys() == keys()
    assert keys()[0] == keys(training={"n_tokens": 99})[0], "dense does not depend on training"
    assert keys()[1] != keys(training={"n_tokens": 99})[1]
    assert keys()[0] != keys(limit=3)[0]
    assert keys() == keys(data="packaged"), "the folder's questions win over both"
    assert keys(data_dir=None, data="packaged")[0] != keys()[0]
    lora = {"n_tokens": 64}
    assert keys(lora=lora) == keys(), "LoRA fine-tuning matters to its own cells alone"
    assert keys(recovery="lora", lora=lora)[1] != keys(recovery="lora")[1]


def test_calibration_is_measured_once_for_all_methods(tmp_path, monkeypatch, config):
    from streamline import method

    calls: list[Tensor] = []
    original = method.measure

    def counted(decoder: Decoder, batches: Tensor) -> Calibration:
        calls.append(batches)
        return original(decoder, batches)

    monkeypatch.setattr(method, "measure", counted)
    run(config(tmp_path, methods="shortgpt,llm-streamline-none", sparsities="0.2,0.4"))
    assert len(calls) == 1


def test_a_text_that_is_too_short_is_found_before_any_model_is_pruned(
    place, tmp_path, monkeypatch, config
):
    again = place.parent / "again"
    shutil.copytree(place / "model", again, dirs_exist_ok=True)
    much = {"texts": str(place / "text.jsonl"), "n_tokens": 10**6, "length": 16}
    asked = {
        "models": [str(again), str(place / "model")],
        "methods": "shortgpt",
        "per_model": {str(place / "model"): {"perplexity": much}},
    }
    with monkeypatch.context() as patch:
        patch.setattr(model_run, "load_dense", lambda *_, **__: pytest.fail("too late"))
        with pytest.raises(AssetError, match=r"model: 1 of the .* tokens are needed and the text"):
            run(config(tmp_path, **asked))
    records = run(config(tmp_path, **asked, skip_missing=True))
    assert [record.status for record in records] == ["ok"] * 4
    assert [list(record.notes.get("missing", {})) for record in records] == [
        [],
        [],
        ["held-out text"],
        ["held-out text"],
    ]
