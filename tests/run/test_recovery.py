"""Recovery stages in a run: LoRA, post-training of replacements, instructions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamline.api import training
from streamline.run.pipeline import run
from streamline.testing.models import tiny_tokenizer
from streamline.training.fit import fit
from streamline.training.sequences import Sequences


def test_lora_fine_tuning_is_a_cell_of_its_own(tmp_path, config):
    records = run(
        config(
            tmp_path,
            methods="shortgpt",
            recovery="none,lora",
            lora={"preset": "llm-pruner", "n_tokens": 128},
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


V1 = "streamline-v1-mlp,streamline-v1-multiple-mlp"


def test_replacements_are_post_trained_on_the_next_token(tmp_path, config, post_trained):
    """First hidden states, then the next token, in one cell; both are in its record."""
    _, plain, _ = run(config(tmp_path / "plain", methods=V1))
    _, one, several = run(post_trained(tmp_path / "post"))
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
    assert "post-training" in (tmp_path / "post" / "report.html").read_text()
    assert "post-training" not in (tmp_path / "plain" / "report.html").read_text()


def test_post_training_takes_the_first_of_the_tokens_of_the_training(
    tmp_path, monkeypatch, post_trained
):
    drawn: list[Any] = []

    def watched(decoder: Any, students: Any, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        drawn.append(tokens)
        return fit(decoder, students, tokens, *args, **kwargs)

    monkeypatch.setattr(training, "fit", watched)
    _, one, _ = run(post_trained(tmp_path))
    first, second = drawn
    assert second[: 128 // 16].equal(first[: 128 // 16])
    assert [text["use"] for text in one.texts] == ["held-out text", "calibration"] + [
        "training"
    ] * 2


def test_a_killed_post_training_goes_on_where_it_stopped(
    tmp_path, monkeypatch, numbers, post_trained
):
    from streamline.training.state import TrainingState

    whole = run(post_trained(tmp_path / "whole"))
    original, steps = TrainingState.update, []

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
        patch.setattr(TrainingState, "update", dying)
        with pytest.raises(Killed):
            run(post_trained(tmp_path / "again"))
    monkeypatch.setattr(TrainingState, "update", counted)
    assert numbers(run(post_trained(tmp_path / "again"))) == numbers(whole)
    assert steps and all(label.endswith("-post") for label in steps)


def instructions(folder: Path, n: int = 60) -> str:
    rows = [
        {"instruction": f"Add {i} and {i}.", "input": "", "output": f"It is {2 * i}."}
        for i in range(n)
    ]
    path = folder / "instructions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_recovery_learns_only_the_answers_of_instructions(tmp_path, monkeypatch, config):
    seen: list[Any] = []
    part = Sequences.part

    def watched(self: Sequences, indices: Any) -> Any:
        seen.append(part(self, indices))
        return seen[-1]

    monkeypatch.setattr(Sequences, "part", watched)
    lora = {
        "texts": instructions(tmp_path),
        "n_tokens": 1500,
        "validation_tokens": 300,
    }
    _, lora = run(config(tmp_path / "out", methods="shortgpt", recovery="lora", lora=lora))
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


def test_examples_in_place_of_documents_are_seen_as_often_as_the_preset_says(tmp_path, config):
    settings = config(
        tmp_path / "out",
        methods="shortgpt",
        recovery="lora",
        lora={"texts": instructions(tmp_path)},
        training={"n_documents": 8, "length": 16, "validation_tokens": 64},
    )
    _, lora = run(settings)
    assert lora.status == "ok", lora.reason
    assert lora.notes["training"]["lora"]["n_steps"] == 8 // 4  # one epoch in batches of four
