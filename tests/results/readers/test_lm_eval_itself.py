"""The reader on logs that lm-eval itself writes with ``--log_samples``, of every kind of task."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.evaluation.building import build
from streamline.evaluation.harness import max_length
from streamline.evaluation.scoring.score import score
from streamline.evaluation.task_results import finish
from streamline.evaluation.tasks.catalogue import resolve
from streamline.results.answers import align
from streamline.results.readers.lm_eval_logs import find, read
from streamline.results.readers.sample_rows import from_samples
from streamline.testing.models import tiny_model, tiny_tokenizer

DATA = """
dataset_path: json
dataset_kwargs:
  data_files: {docs}
test_split: train
metadata:
  version: 1
"""
TASKS = {
    "toy_choice": """
task: toy_choice
output_type: multiple_choice
doc_to_text: 'Question: {{q}}'
doc_to_choice: options
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_mutual_info
""",
    "toy_written": """
task: toy_written
output_type: generate_until
doc_to_text: '{{q}}'
doc_to_target: '{{a}}'
generation_kwargs:
  until: ['e']
  max_gen_toks: 4
metric_list:
  - metric: exact_match
filter_list:
  - name: strict
    filter:
      - function: take_first
  - name: flexible
    filter:
      - function: regex
        regex_pattern: '(a)'
      - function: take_first
""",
    "toy_rolling": """
task: toy_rolling
output_type: loglikelihood_rolling
doc_to_text: ''
doc_to_target: '{{q}}'
metric_list:
  - metric: word_perplexity
""",
    "toy_word": """
task: toy_word
output_type: loglikelihood
doc_to_text: '{{q}}'
doc_to_target: ' {{a}}'
metric_list:
  - metric: acc
""",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, the YAML of the tasks, and the logs of a tiny model on them."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("lm-eval")
    docs = [
        {"q": f"why {i}", "options": ["so", "no", "may be"], "gold": i % 3, "a": "because"}
        for i in range(5)
    ]
    (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)))
    piqa = [
        {"goal": f"keep {i} dry", "sol1": "a box", "sol2": f"no {i}", "label": i % 2}
        for i in range(4)
    ]
    (folder / "data" / "piqa").mkdir(parents=True)
    (folder / "data" / "piqa" / "dev.jsonl").write_text("\n".join(map(json.dumps, piqa)))
    (folder / "tasks").mkdir()
    for name, text in TASKS.items():
        data = DATA.format(docs=folder / "docs.jsonl")
        (folder / "tasks" / f"{name}.yaml").write_text(text + data)
    own = files("streamline.tasks") / "paper_ppl"
    for name in ("_mean_nll.yaml", "piqa.yaml"):
        (folder / "tasks" / name).write_text((own / name).read_text(encoding="utf-8"))
    tokenizer = tiny_tokenizer()
    lm = HFLM(pretrained=tiny_model("llama", n_layers=2), tokenizer=tokenizer, batch_size=4)
    results = simple_evaluate(
        model=lm,
        tasks=[*TASKS, "streamline_piqa"],
        task_manager=TaskManager(
            include_path=str(folder / "tasks"),
            include_defaults=False,
            metadata={"data": str(folder / "data"), "tokenizer": tokenizer},
        ),
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = results.pop("samples")
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    tracker.general_config_tracker.model_source = "hf"
    tracker.general_config_tracker.model_name_sanitized = "tiny"
    tracker.date_id = "2026-01-02T03-04-05.000006"
    for name, rows in samples.items():
        tracker.save_results_samples(task_name=name, samples=rows)
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> Any:
    return read(find(place / "out"))


def test_our_own_tasks_are_recognised_and_pair_with_our_own_samples(place, found):
    theirs = found.tasks["streamline_piqa"]
    assert theirs.nll_name == "full prompt" and theirs.metric == "acc"
    model = tiny_model("llama", n_layers=2)
    tokenizer = tiny_tokenizer()
    length = max_length(model.config, tokenizer)
    [part] = build(
        resolve(["streamline_piqa"]), tokenizer, max_length=length, data_dir=place / "data"
    )
    (answers,) = score([dense_path(Decoder(model))], part.requests)
    ours = from_samples(finish(part, answers)[1])["streamline_piqa"]
    same = align(ours, theirs)
    assert same.correct.tolist() == ours.correct.tolist()
    for mine, other in zip(ours.nll, same.nll, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0.05)  # lm-eval scores one token more


def test_options_are_those_of_the_question_not_every_request(found):
    answers = found.tasks["toy_choice"]
    assert [len(values) for values in answers.nll] == [3] * 5
    assert (answers.metric, answers.nll_name) == ("acc_norm", "option per byte")


def test_generated_texts_and_single_continuations_have_no_options(found):
    written, word = found.tasks["toy_written"], found.tasks["toy_word"]
    assert (written.nll, written.metric) == (None, "exact_match,strict")
    assert (word.nll, word.metric) == (None, "acc")


def test_rolling_likelihoods_are_no_answers(found):
    assert "toy_rolling" not in found.tasks
    assert "carry no acc_norm" in found.skipped["toy_rolling"]
