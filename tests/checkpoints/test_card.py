"""The card of a checkpoint: metadata that the hub reads, text in which names are no markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from streamline.checkpoints.card import CARD, write_card
from streamline.checkpoints.checkpoint import save
from streamline.engine.decoder import Decoder
from streamline.method import Pruned
from streamline.plan import Plan
from streamline.results.record import Record
from streamline.testing.models import tiny_model

CELL = {"method": "shortgpt", "sparsity": 0.3, "seed": 0, "recovery": "none"}
BAD = "<script>x</script>|](javascript:1)\n# head `code`"


def card_of(
    folder: Path,
    model: str | None,
    record: Record | None = None,
    dense: Record | None = None,
    **known: Any,
) -> str:
    provenance = {"cell": {**CELL, "model": model}, "plain": True, **known}
    write_card(folder, Plan.drop(6, [1, 4]), provenance, record=record, dense=dense)
    return (folder / CARD).read_text(encoding="utf-8")


def measured(task: str = "piqa") -> Record:
    tasks = {
        task: {"metric": "acc", "value": 0.5, "stderr": 0.125, "n": 16, "stability": 0.75},
        "absent": {"metric": "acc"},
    }
    summary = {"relative_accuracy": 0.9, "perplexity": {"heldout": 12.5, "absent": None}}
    fields = {**CELL, "model": "m", "status": "ok", "tasks": tasks, "summary": summary}
    return Record.build(fields)


def test_metadata_are_those_of_the_hub(tmp_path):
    text = card_of(tmp_path, "opt-1.3b", measured(), dense_parameters=100, parameters=75)
    data = ModelCard.load(tmp_path / CARD).data
    assert data.base_model == "facebook/opt-1.3b"
    assert {"pruned", "layer-pruning"} <= set(data.tags)
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    found = {(r.dataset_type, r.metric_type): r.metric_value for r in data.eval_results}
    assert found == {("piqa", "acc"): 0.5, ("heldout", "perplexity"): 12.5}
    assert "| piqa | acc | 50.0 ±12.5 | 16 | 75.0 |" in text
    assert "75 of 100 parameters remain (25.0 % removed)" in text
    assert "| layers removed | 1, 4 |" in text
    assert "- relative to the base model: 90.0 %" in text


def averaged(accuracy: float, **changes: Any) -> Record:
    """Two tasks whose errors are legs of right triangles."""
    stable = [{"stability": 0.7, "stability_stderr": 0.06}, {"stability": 0.8}]
    stable[1]["stability_stderr"] = 0.08
    errors = ({"stderr": 0.03}, {"stderr": 0.04})
    both = [{"metric": "acc", "value": accuracy, "n": 100, **e} for e in errors]
    tasks = {name: facts | more for name, facts, more in zip("ab", both, stable, strict=True)}
    read = {"mean_nll_stderr": 0.1, "n_tokens": 4088}
    summary = {
        "accuracy": accuracy, "relative_accuracy": accuracy / 0.6, "stability": 0.75,
        "perplexity": {"heldout": 20.0}, "perplexity_facts": {"heldout": read},
    }  # fmt: skip
    cell = {**CELL, "model": "m", "status": "ok", "tasks": tasks, "summary": summary}
    return Record.build(cell | changes)


def test_averages_have_the_errors_of_a_report(tmp_path):
    pruned, dense = averaged(0.5), averaged(0.6, method="dense", sparsity=0.0)
    text = card_of(tmp_path, None, pruned, dense)
    assert "| a | acc | 50.0 ±3.0 | 100 | 70.0 ±6.0 |" in text
    assert "- mean accuracy: 50.0 ±2.5 %, 200 questions of 2 tasks" in text
    assert "- relative to the base model: 83.3 ±5.4 %" in text  # 2.5 and 2.1 of 60
    assert "- mean stability: 75.0 ±5.0 %" in text
    assert "- perplexity of heldout: 20.0 ±2.0, 4,088 tokens" in text
    assert "- relative to the base model: 83.3 %\n" in card_of(tmp_path, None, pruned)


def test_the_mean_accuracy_is_said_of_the_tasks_that_it_is_of(tmp_path):
    one = {"metric": "acc", "value": 0.5, "stderr": 0.03, "n": 100, "protocol": "lm-eval"}
    tasks = {"a": one, "b": one, "c": one | {"value": 0.1, "protocol": "opencompass-ppl"}}
    parts = {"lm-eval": {"accuracy": 0.5}, "opencompass-ppl": {"accuracy": 0.1}}
    summary = {"by_protocol": parts}
    cell = {**CELL, "model": "m", "status": "ok", "tasks": tasks, "summary": summary}
    text = card_of(tmp_path, None, Record.build(cell))
    assert "- mean accuracy: 50.0 ±2.1 %, 200 questions of 2 tasks" in text


def test_subjects_are_one_task_and_bits_no_percent(tmp_path):
    tasks = {
        "mmlu_anatomy": {"metric": "acc", "value": 0.25, "stderr": 0.03, "n": 4},
        "mmlu_virology": {"metric": "acc", "value": 0.75, "stderr": 0.04, "n": 4},
        "bits": {"metric": "bits_per_byte", "value": 0.875, "stderr": 0.125, "n": 9},
    }
    record = Record.build({**CELL, "model": "m", "status": "ok", "tasks": tasks})
    text = card_of(tmp_path, "opt-1.3b", record)
    assert "| mmlu | acc | 50.0 ±2.5 | 8 | - |" in text and "anatomy" not in text
    assert "| bits | bits_per_byte | 0.88 ±0.12 | 9 | - |" in text


def test_what_was_not_measured_has_no_number(tmp_path):
    text = card_of(tmp_path, None)
    assert "Nothing was measured" in text
    assert "absent" not in card_of(tmp_path, "opt-1.3b", measured())
    assert ModelCard.load(tmp_path / CARD).data.eval_results is not None


@pytest.mark.parametrize("verified", [True, False])
def test_it_says_whether_it_was_compared(tmp_path, verified):
    assert ("was not compared" in card_of(tmp_path, None, verified=verified)) is not verified


def test_licence_and_origin_of_a_folder_are_those_of_its_own_card(tmp_path):
    base = tmp_path / "base"
    tiny_model("llama", n_layers=1).save_pretrained(base)
    (base / CARD).write_text("---\nlicense: mit\nbase_model: some/model\n---\n# base\n")
    card_of(tmp_path, str(base))
    data = ModelCard.load(tmp_path / CARD).data
    assert (data.license, data.base_model) == ("mit", "some/model")
    row = "| base model | [some/model](https://huggingface.co/some/model), as base |"
    assert row in (tmp_path / CARD).read_text(encoding="utf-8")
    (base / CARD).write_text("---\nlicense: [\n---\n")
    assert str(tmp_path) not in card_of(tmp_path, str(base))
    assert ModelCard.load(tmp_path / CARD).data.license is None


def test_the_embedded_model_is_said_to_be_quantised(tmp_path):
    text = card_of(tmp_path, "smollm2-135m-instruct")
    assert ModelCard.load(tmp_path / CARD).data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "SmolLM2-135M-Instruct), as SmolLM2-135M-Instruct.Q4\\_1 |" in text.replace("4_", "4\\_")


def test_names_are_inert(tmp_path):
    text = card_of(
        tmp_path,
        f"/models/{BAD}",
        measured(BAD),
        method=f"M(x={BAD!r})",
        paper=BAD,
        texts={BAD: BAD},
        training={BAD: {"tokens": 3}},
        versions={BAD: BAD},
    )
    body = text.split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"html_block", "html_inline", "link_open", "image"}
    heads = [token.tag for token in tokens if token.type == "heading_open"]
    assert heads == ["h1"] + ["h2"] * 4
    rows = sum(token.type == "tr_open" for token in tokens)
    cells = sum(token.type in ("td_open", "th_open") for token in tokens)
    assert (rows, cells) == (13, 2 * 11 + 5 * 2)
    (result,) = [
        r for r in ModelCard.load(tmp_path / CARD).data.eval_results if r.metric_type == "acc"
    ]
    assert result.dataset_type == BAD


def test_a_saved_model_has_its_card_and_its_generation_config(tmp_path):
    decoder = Decoder(tiny_model("llama", n_layers=3))
    decoder.model.generation_config.temperature = 0.6
    decoder.model.generation_config.do_sample = True
    folder = save(Pruned(Plan.drop(3, [1])), decoder, None, tmp_path / "c", {}, verify=False)
    assert "| layers kept | 0, 2 |" in (folder / CARD).read_text(encoding="utf-8")
    assert '"temperature": 0.6' in (folder / "generation_config.json").read_text()
