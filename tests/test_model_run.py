"""The runner on a tiny model of its own: records, resumption, failures, skips."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import Tensor

from streamline import model_run
from streamline.calibration import Calibration
from streamline.config import RunConfig, build_config
from streamline.decoder import Decoder
from streamline.errors import ConfigError, UnsupportedModelError
from streamline.evaluation.samples import read_samples
from streamline.evaluation.session import Session
from streamline.method import DepthMethod
from streamline.model_run import ModelRun
from streamline.pipeline import evaluate_model, prune_to_checkpoint, run
from streamline.plan import Plan
from streamline.progress import Silent
from streamline.results.record import Record
from streamline.testing import tiny_model, tiny_tokenizer

METHODS = "random-layers,shortgpt,llm-streamline-layer,llm-streamline-ffn"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a text and questions in their original form."""
    folder = tmp_path_factory.mktemp("place")
    tiny_model("llama", n_layers=6).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "nobody",
        "looks",
    ]
    lines = [" ".join(words[i % 12 :] + words[: i % 7]) for i in range(400)]
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    questions = folder / "data" / "piqa"
    questions.mkdir(parents=True)
    rows = [
        {"goal": f"keep {i} dry", "sol1": f"put {i} in a box", "sol2": "leave it", "label": i % 2}
        for i in range(8)
    ]
    (questions / "dev.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def config(place: Path, out: Path, **changes: Any) -> RunConfig:
    text = str(place / "text.jsonl")
    return build_config(
        {
            "models": str(place / "model"),
            "methods": METHODS,
            "sparsities": "0.3",
            "tasks": "piqa",
            "out": out,
            "device": "cpu",
            "data_dir": place / "data",
            "calibration": {"texts": text, "n_samples": 4, "length": 16},
            "training": {
                "texts": text,
                "n_tokens": 256,
                "length": 16,
                "batch_tokens": 64,
                "validation_tokens": 64,
                "evaluations": 1,
            },
            "perplexity": {"texts": text, "n_tokens": 64, "length": 16},
            **changes,
        }
    )


def numbers(records: list[Record]) -> list[Any]:
    """Everything measured but the times and the memory."""
    return [(r.identity, r.status, r.plan, r.parameters, r.tasks, r.summary) for r in records]


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """One uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(config(place, out))


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
    share = rows.groupby("doc_id")["correct"].first().mean()
    assert share == records[2].tasks["piqa"].value
    assert (out / "report.md").is_file()
    assert (out / "report.html").is_file()


def test_the_same_run_again_computes_nothing(whole, place, monkeypatch):
    out, records = whole

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run must not load a model")

    monkeypatch.setattr(model_run, "load_model", never)
    assert numbers(run(config(place, out))) == numbers(records)


@pytest.mark.parametrize("stop_after", ["train", "answer"])
def test_an_interrupted_run_goes_on_and_ends_equal(whole, place, tmp_path, monkeypatch, stop_after):
    """Stopped behind the training, or in the middle of evaluation, then run again."""

    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    name = "_perplexity" if stop_after == "answer" else "_answer"
    with monkeypatch.context() as patch:
        patch.setattr(Session, name, die)
        with pytest.raises(Killed):
            run(config(place, tmp_path))
    from streamline import training

    trained: list[int] = []
    original = training.Trainee.update

    def counted(self: Any, *args: Any) -> None:
        trained.append(1)
        original(self, *args)

    monkeypatch.setattr(training.Trainee, "update", counted)
    again = run(config(place, tmp_path))
    assert trained == [], "a finished training must only be loaded"
    assert numbers(again) == numbers(whole[1])


def test_a_new_method_leaves_finished_cells_alone(whole, place, tmp_path, monkeypatch):
    out = tmp_path / "more"
    shutil.copytree(whole[0], out)
    asked: list[set[str]] = []
    original = Session.run

    def watched(self: Session, paths: Any) -> Any:
        asked.append({path.name for path in paths.values()})
        return original(self, paths)

    monkeypatch.setattr(Session, "run", watched)
    records = run(config(place, out, methods=f"{METHODS},last-layers"))
    assert asked == [{"last-layers 0.3"}]
    assert numbers(records)[:-1] == numbers(whole[1])


def test_lost_answers_of_the_dense_model_are_asked_again(whole, place, tmp_path):
    out = tmp_path / "lost"
    shutil.copytree(whole[0], out)
    shutil.rmtree(out / "cache")
    records = run(config(place, out, methods=f"{METHODS},last-layers"))
    assert [r.status for r in records] == ["ok"] * 6
    assert numbers(records)[:-1] == numbers(whole[1])


def test_a_fault_in_the_common_evaluation_stays_with_its_cell(place, tmp_path, monkeypatch):
    original = Session.run

    def faulty(self: Session, paths: Any) -> Any:
        if any(path.name.startswith("shortgpt") for path in paths.values()):
            raise RuntimeError("no kernel")
        return original(self, paths)

    monkeypatch.setattr(Session, "run", faulty)
    dense, shortgpt, last = run(config(place, tmp_path, methods="shortgpt,last-layers"))
    assert (dense.status, last.status) == ("ok", "ok")
    assert (shortgpt.status, shortgpt.reason) == ("failed", "RuntimeError('no kernel')")


def test_tasks_without_questions_are_left_out_and_named(place, tmp_path):
    settings = config(place, tmp_path, methods="dense", tasks="piqa,streamline_xsum")
    [dense] = run(settings.model_copy(update={"data": "packaged"}))
    assert list(dense.tasks) == ["piqa"]
    assert "streamline_xsum" in dense.notes["data"]["unavailable"]


@dataclass(frozen=True, kw_only=True)
class Broken(DepthMethod):
    """Fails while it chooses."""

    name: ClassVar[str] = "broken"
    paper: ClassVar[str] = "a fault"

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        raise ZeroDivisionError("no scores")


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


def test_a_cell_that_cannot_be_met_is_skipped_with_its_reason(place, tmp_path):
    _, record = run(config(place, tmp_path, methods=f"{__name__}:OutOfReach"))
    assert (record.status, record.reason) == ("skipped", "would grow by 3 parameters")


def test_another_model_can_stand_in_a_row(place, tmp_path):
    """Asked and achieved stand beside each other, and what is far off is flagged."""
    small = tmp_path / "small"
    tiny_model("llama", n_layers=2, seed=1).save_pretrained(small)
    tiny_tokenizer().save_pretrained(small)
    methods = f"smaller-dense,smaller-dense+model={small},last-layers"
    _, unknown, row, last = run(config(place, tmp_path / "out", methods=methods))
    assert unknown.status == "skipped" and "has no known family" in str(unknown.reason)
    assert (row.status, last.status) == ("ok", "ok")
    assert row.sparsity == 0.3
    assert row.parameters.removed_fraction > 0.4
    assert row.plan.kept_layers == [] and row.plan.replacement == "smaller-dense"
    assert row.notes["flag"].startswith("asked 0.3000, achieved 0.")
    assert row.notes["smaller_model"] == str(small)
    assert row.tasks["piqa"].n == 8 and row.summary.perplexity


def test_a_failed_and_a_refused_cell_are_records_and_the_others_go_on(place, tmp_path):
    methods = f"{__name__}:Broken,{__name__}:Refusing,shortgpt"
    _, broken, refusing, good = run(config(place, tmp_path, methods=methods))
    assert (broken.status, broken.reason) == ("failed", "ZeroDivisionError('no scores')")
    assert broken.notes["where"].startswith("test_model_run.py:")
    assert broken.summary.accuracy is None
    assert (refusing.status, refusing.reason) == ("skipped", "needs another model")
    assert good.status == "ok"


def test_a_failed_training_fails_its_cells_only(place, tmp_path, monkeypatch):
    from streamline import training

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("diverged")

    monkeypatch.setattr(training, "fit", fail)
    _, shortgpt, layer = run(config(place, tmp_path, methods="shortgpt,llm-streamline-layer"))
    assert shortgpt.status == "ok"
    assert (layer.status, layer.reason) == ("failed", "RuntimeError('diverged')")


def test_healing_is_a_cell_of_its_own(place, tmp_path):
    records = run(
        config(
            place,
            tmp_path,
            methods="shortgpt",
            recovery="none,lora",
            healing={"preset": "llm-pruner", "n_tokens": 128},
        )
    )
    assert [(r.method, r.recovery, r.status) for r in records] == [
        ("dense", "none", "ok"),
        ("shortgpt", "none", "ok"),
        ("shortgpt", "lora", "ok"),
    ]
    none, lora = records[1:]
    assert lora.parameters.pruned == none.parameters.pruned
    assert lora.cost.train_tokens == 128
    assert lora.notes["training"]["lora"]["trained_parameters"] > 0


@pytest.mark.parametrize("recovery", ["none", "lora"])
def test_pruning_writes_a_checkpoint_that_evaluates(place, tmp_path, recovery):
    folder = tmp_path / "pruned"
    settings = config(place, folder, methods="llm-streamline-layer", recovery=recovery)
    facts = prune_to_checkpoint(
        str(place / "model"),
        method="llm-streamline-layer",
        sparsity=0.3,
        out=folder,
        config=settings,
        progress=Silent(),
    )
    assert facts["cell"]["method"] == "llm-streamline-layer"
    assert ("lora" in facts["training"]) == (recovery == "lora")
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]
    with pytest.raises(ConfigError, match="is there already and not empty"):
        prune_to_checkpoint("x", method="dense", sparsity=0.3, out=folder, config=settings)
    record = evaluate_model(str(folder), out=tmp_path / "record.json", config=settings)
    assert record.status == "ok"
    written = json.loads((tmp_path / "record.json").read_text())
    assert len(read_samples(tmp_path / "record.parquet")) == 16
    assert written["tasks"]["piqa"]["value"] == record.tasks["piqa"].value


POST = {"n_tokens": 128, "learning_rate": 1e-3}
V1 = "streamline-v1-mlp,streamline-v1-multiple-mlp"


def post_trained(place: Path, out: Path, **changes: Any) -> RunConfig:
    settings = config(place, out, methods=V1)
    training = settings.training.model_dump() | {"post_train": POST, **changes}
    return settings.model_copy(
        update={"training": type(settings.training).model_validate(training)}
    )


def test_replacements_are_post_trained_on_the_next_token(place, tmp_path):
    """First hidden states, then the next token, in one cell; both are in its record."""
    _, plain, _ = run(config(place, tmp_path / "plain", methods=V1))
    _, one, several = run(post_trained(place, tmp_path / "post"))
    first, second = one.notes["training"].values()
    assert [first["objective"], second["objective"]] == ["mse", "lm"]
    assert first["best"] == next(iter(plain.notes["training"].values()))["best"]
    assert second["best"] < second["before"]
    assert one.cost.train_tokens == 512 + 128
    assert one.summary.perplexity != plain.summary.perplexity
    objectives = [stage["objective"] for stage in several.notes["training"].values()]
    assert objectives == ["mse"] * (len(objectives) - 1) + ["lm"], "one path, one second training"
    assert several.cost.train_tokens == 512 + 128
    seconds = [stage["seconds"] for stage in several.notes["training"].values()]
    assert several.cost.train_s == pytest.approx(sum(seconds))
    names = {path.stem[-5:] for path in (tmp_path / "post" / "losses").glob("*.jsonl")}
    assert "-post" in names
    report = (tmp_path / "post" / "report.md").read_text()
    assert "post-training, next token" in report


def test_a_killed_post_training_goes_on_where_it_stopped(place, tmp_path, monkeypatch):
    from streamline import training

    whole = run(post_trained(place, tmp_path / "whole"))
    original, steps = training.Trainee.update, []

    class Killed(BaseException):
        pass

    def dying(self: Any, *args: Any) -> None:
        if self.label.endswith("-post"):
            raise Killed
        original(self, *args)

    def counted(self: Any, *args: Any) -> None:
        steps.append(self.label)
        original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainee, "update", dying)
        with pytest.raises(Killed):
            run(post_trained(place, tmp_path / "again"))
    monkeypatch.setattr(training.Trainee, "update", counted)
    assert numbers(run(post_trained(place, tmp_path / "again"))) == numbers(whole)
    assert steps and all(label.endswith("-post") for label in steps)


def instructions(folder: Path, n: int = 60) -> str:
    rows = [
        {"instruction": f"Add {i} and {i}.", "input": "", "output": f"It is {2 * i}."}
        for i in range(n)
    ]
    path = folder / "instructions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_recovery_learns_only_the_answers_of_instructions(place, tmp_path, monkeypatch):
    from streamline import healing_loop

    seen: list[Any] = []
    original = healing_loop.HealingLoop._sum

    def watched(self: Any, sequences: Any, indices: Any) -> Any:
        seen.append(sequences.part(indices))
        return original(self, sequences, indices)

    monkeypatch.setattr(healing_loop.HealingLoop, "_sum", watched)
    healing = {
        "texts": instructions(tmp_path),
        "n_tokens": 1500,
        "validation_tokens": 300,
    }
    _, lora = run(
        config(place, tmp_path / "out", methods="shortgpt", recovery="lora", healing=healing)
    )
    assert lora.status == "ok", lora.reason
    summary = lora.notes["training"]["lora"]
    assert summary["after"] < summary["before"]
    tokenizer = tiny_tokenizer()
    texts = {
        tokenizer.decode(row[keep])
        for ids, scored in seen
        for row, keep in zip(ids, scored, strict=True)
    }
    assert texts and all(text.startswith("It is ") and text.endswith("</s>") for text in texts)


def test_settings_that_are_not_used_do_not_change_a_key(place, tmp_path):
    """Cells made before there was a second training keep their records."""
    settings = config(place, tmp_path, methods=V1, recovery="none,lora")
    model = ModelRun(settings, settings.models[0], Silent())
    values = settings.model_dump(mode="json")
    assert "post_train" in values["training"] and "validation_tokens" in values["healing"]
    cells = model_run.expand(settings, settings.models[0])
    used: list[Any] = []

    def watched(value: Any) -> str:
        used.append(value)
        return "key"

    from streamline import cells as cells_module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells_module, "content_key", watched)
        for cell in cells:
            model._work(cell)
    assert all("post_train" not in value.get("training", {}) for value in used)
    assert all("validation_tokens" not in value.get("healing", {}) for value in used)
    with_post = post_trained(place, tmp_path)
    other = ModelRun(with_post, with_post.models[0], Silent())
    assert other._work(cells[1]).key != model._work(cells[1]).key


def test_seeds_are_cells_of_their_own(place, tmp_path):
    records = run(config(place, tmp_path, methods="random-layers", seeds="0,1,2"))
    assert [r.seed for r in records] == [0, 0, 1, 2]
    assert len({tuple(r.plan.removed_layers) for r in records[1:]}) > 1


def test_cells_keep_their_key_and_change_it_with_the_inputs(place, tmp_path):
    def keys(**changes: Any) -> list[str]:
        settings = config(place, tmp_path, methods="shortgpt", **changes)
        model = ModelRun(settings, settings.models[0], Silent())
        return [model._work(cell).key for cell in model_run.expand(settings, settings.models[0])]

    assert keys() == keys()
    assert keys()[0] == keys(training={"n_tokens": 99})[0], "dense does not depend on training"
    assert keys()[1] != keys(training={"n_tokens": 99})[1]
    assert keys()[0] != keys(limit=3)[0]
    assert keys()[0] != keys(data="packaged")[0]


def test_calibration_is_measured_once_for_all_methods(place, tmp_path, monkeypatch):
    from streamline import method

    calls: list[Tensor] = []
    original = method.measure

    def counted(decoder: Decoder, batches: Tensor) -> Calibration:
        calls.append(batches)
        return original(decoder, batches)

    monkeypatch.setattr(method, "measure", counted)
    run(config(place, tmp_path, methods="shortgpt,llm-streamline-none", sparsities="0.2,0.4"))
    assert len(calls) == 1
