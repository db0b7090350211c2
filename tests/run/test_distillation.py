"""Distillation as a cell of a run: its record, its key, its tokens, and a kill."""

from __future__ import annotations

from typing import Any

import pytest

from streamline.errors import StreamlineError
from streamline.run.pipeline import run
from streamline.training import lora
from streamline.training.state import TrainingState

LORA = {"n_tokens": 5000, "validation_tokens": 64}


def test_distillation_is_a_cell_of_its_own_on_the_tokens_of_lora(tmp_path, config, monkeypatch):
    seen: list[Any] = []
    original = lora.plan_batches

    def watched(sequences: Any, *args: Any) -> Any:
        batches = original(sequences, *args)
        seen.append([sequences.ids[indices].tolist() for indices in batches])
        return batches

    monkeypatch.setattr(lora, "plan_batches", watched)
    settings = {"methods": "shortgpt", "recovery": "none,lora,kd", "lora": LORA}
    records = run(config(tmp_path, **settings, kd={"top_k": 20, "temperature": 2.0}))
    assert [(r.recovery, r.status, r.reason) for r in records] == [
        ("none", "ok", None), ("none", "ok", None), ("lora", "ok", None), ("kd", "ok", None),
    ]  # fmt: skip
    _, none, tuned, taught = records
    assert len(seen) == 2 and seen[0] == seen[1]
    summary = taught.notes["training"]["kd"]
    assert summary["distillation"] == {
        "trainees": "lora", "temperature": 2.0, "top_k": 20, "learning_rate": None, "text": 0.0,
    }  # fmt: skip
    assert summary["recipe"] == tuned.notes["training"]["lora"]["recipe"]
    assert summary["after"] < summary["before"]
    assert taught.parameters.pruned == none.parameters.pruned
    assert taught.cost.train_tokens == tuned.cost.train_tokens == 5008
    assert taught.cost.train_flops > tuned.cost.train_flops
    assert [text["use"] for text in taught.texts] == [text["use"] for text in tuned.texts]
    assert "recovery" in {text["use"] for text in taught.texts}
    assert "shortgpt +kd" in (tmp_path / "report.md").read_text()

    def keys(**changes: Any) -> list[str]:
        return [r.key for r in run(config(tmp_path, **settings, **changes))]

    first, again = [r.key for r in records], keys(kd={"top_k": 20, "temperature": 1.0})
    assert first[:3] == again[:3] and first[3] != again[3]


def test_a_killed_distillation_goes_on_where_it_stopped(tmp_path, monkeypatch, numbers, config):
    def again(folder: str) -> Any:
        return config(
            tmp_path / folder, methods="llm-streamline-ffn", recovery="kd",
            lora=LORA, kd={"trainees": "replacement"},
        )  # fmt: skip

    whole = run(again("whole"))
    assert whole[1].status == "ok", whole[1].reason
    original, steps = TrainingState.update, []

    class Killed(BaseException):
        pass

    def dying(self: Any, *args: Any) -> None:
        if self.label == "kd" and self.step == 1:
            raise Killed
        original(self, *args)

    def counted(self: Any, *args: Any) -> None:
        steps.append((self.label, self.step))
        original(self, *args)

    monkeypatch.setitem(lora.fine_tune.__kwdefaults__, "save_seconds", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "update", dying)
        with pytest.raises(Killed):
            run(again("killed"))
    monkeypatch.setattr(TrainingState, "update", counted)
    assert numbers(run(again("killed"))) == numbers(whole)
    assert steps[0] == ("kd", 1)


def test_a_method_that_inserts_nothing_has_no_replacement_to_teach(tmp_path, config):
    _, record = run(
        config(tmp_path, methods="shortgpt", recovery="kd", lora=LORA,
               kd={"trainees": "replacement"})
    )  # fmt: skip
    assert record.status == "skipped"
    assert "no weights of its own to train" in record.reason


def test_own_answers_are_written_once_for_all_cells_and_told_in_the_records(
    tmp_path, config, monkeypatch, numbers
):
    from streamline.evaluation.generation import own_answers

    calls: list[int] = []
    original = own_answers.generate_shared

    def counted(paths: Any, prompts: Any, *args: Any, **options: Any) -> None:
        calls.append(len(prompts))
        original(paths, prompts, *args, **options)

    monkeypatch.setattr(own_answers, "generate_shared", counted)
    settings = {"methods": "shortgpt,llm-streamline-none", "recovery": "kd", "lora": LORA}
    kd = {"top_k": 20, "own_answers": 6}
    records = run(config(tmp_path / "own", **settings, kd=kd))
    assert [(r.recovery, r.status, r.reason) for r in records[1:]] == [("kd", "ok", None)] * 2
    assert len(calls) == 1
    first, second = (r.notes["training"]["kd"] for r in records[1:])
    own = first["own_answers"]
    assert own == second["own_answers"]
    assert own["seed"] == 0 and own["temperature"] == 1.0 and len(own["sha256"]) == 64
    assert own["answers"] == calls[0] and 0 < own["tokens"] <= 6 * calls[0]
    assert own["prompt_tokens"] == 10 * calls[0]
    assert first["distillation"]["own_answers"] == 6
    text = run(config(tmp_path / "text", **settings, kd={"top_k": 20}))
    assert "own_answers" not in text[1].notes["training"]["kd"]
    assert records[1].key != text[1].key and records[1].summary != text[1].summary
    assert records[1].cost.train_flops > text[1].cost.train_flops
    (tmp_path / "own" / "results.json").unlink()
    again = run(config(tmp_path / "own", **settings, kd=kd))
    assert len(calls) == 1 and numbers(again) == numbers(records)


def test_own_answers_longer_than_the_sequences_end_the_run_at_its_start(tmp_path, config):
    wanted = config(
        tmp_path, methods="shortgpt", recovery="kd", lora=LORA, kd={"own_answers": 16}
    )  # fmt: skip
    with pytest.raises(StreamlineError, match="own_answers is 16, and a sequence has 16 tokens"):
        run(wanted)
