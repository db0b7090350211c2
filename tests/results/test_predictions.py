from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
from typer.testing import CliRunner

from streamline.cli.main import app
from streamline.errors import ConfigError
from streamline.results.predictions import read_cells, read_predictions
from streamline.results.readers.sample_rows import from_samples
from streamline.results.record_file import load
from streamline.results.samples import samples_path


def row(doc, option, task="t", **changes):
    return {
        "task": task,
        "doc_id": doc,
        "doc_hash": f"h{doc}",
        "option": option,
        "loglikelihood": -6.0 - option,
        "n_tokens": 2,
        "correct": doc == 0,
        "metric": "acc",
        **changes,
    }


def frame(**changes):
    rows = [row(doc, option, **changes) for doc in (1, 0) for option in (1, 0)]
    return pd.DataFrame(rows)


def test_samples_become_answers_in_the_order_of_the_questions():
    answers = from_samples(frame())["t"]
    assert answers.ids == ("0", "1")
    assert answers.hashes == ("h0", "h1")
    assert answers.correct.tolist() == [True, False]
    assert [values.tolist() for values in answers.nll] == [[3.0, 3.5], [3.0, 3.5]]
    assert answers.nll_name == "option per token"


def test_the_full_prompt_is_preferred():
    answers = from_samples(frame(prompt_nll=2.25))["t"]
    assert answers.nll[0].tolist() == [2.25, 2.25]
    assert answers.nll_name == "full prompt"


def test_generated_answers_have_no_nll():
    rows = pd.DataFrame([row(doc, 0, loglikelihood=None, n_tokens=None) for doc in (0, 1)])
    answers = from_samples(rows)["t"]
    assert (answers.nll, answers.nll_name, answers.accuracy) == (None, None, 0.5)


def test_contradicting_rows_are_refused():
    rows = frame()
    rows.loc[0, "correct"] = True
    with pytest.raises(ConfigError, match="question 1 has two values of correct"):
        from_samples(rows)
    rows = frame()
    rows.loc[rows["doc_id"] == 1, "metric"] = "acc_norm"
    with pytest.raises(ConfigError, match="scored by acc and acc_norm"):
        from_samples(rows)


def test_a_cell_of_a_run_is_chosen_by_its_selector(run_folder):
    picked = read_predictions(f"{run_folder}:llm-streamline-ffn@0.25")
    assert (picked.kind, picked.record.method, picked.record.sparsity) == (
        "samples",
        "llm-streamline-ffn",
        0.25,
    )
    assert picked.tasks["piqa"].accuracy == picked.record.tasks["piqa"].value
    assert read_predictions(run_folder).record.method == "dense"
    assert read_predictions(f"{run_folder}:random-layers@0.1,seed=1").record.seed == 1
    assert read_predictions(f"{run_folder}:method=dense,recovery=none").record.method == "dense"


def test_a_samples_file_is_read_by_itself(run_folder):
    record = load(run_folder)[0]
    answers = read_predictions(samples_path(run_folder, record))
    assert answers.tasks["piqa"].accuracy == record.tasks["piqa"].value


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (":shortgpt", "2 finished cells fit"),
        (":slicegpt@0.25", "no finished cells fit"),
        (":shortgpt@much", "sparsity 'much' is not a number"),
        (":shortgpt,colour=red", "'colour=red' is no KEY=VALUE"),
        ("/nowhere", "does not exist"),
    ],
)
def test_selectors_that_name_no_single_cell_are_refused(run_folder, selector, message):
    with pytest.raises(ConfigError, match=message):
        read_predictions(f"{run_folder}{selector}")


def test_folders_without_predictions_are_refused(run_folder, tmp_path):
    with pytest.raises(ConfigError, match="holds no predictions"):
        read_predictions(tmp_path)
    with pytest.raises(ConfigError, match="samples of 13 cells"):
        read_predictions(run_folder / "samples")
    with pytest.raises(ConfigError, match=r"only a folder with results\.json accepts a selector"):
        read_predictions(f"{run_folder / 'samples'}:dense")


def test_a_file_of_one_record_brings_the_samples_beside_it(run_folder, tmp_path):
    record = load(run_folder)[0]
    (tmp_path / "short.json").write_text(json.dumps(record.to_json()))
    beside = tmp_path / ".short-run"
    shutil.copytree(run_folder / "samples", beside / "samples")
    source = tmp_path / "short.json"
    assert read_predictions(source).tasks["piqa"].accuracy == record.tasks["piqa"].value
    assert list(read_cells(source)) == [str(source)]


def test_all_cells_of_a_run_are_read_by_name(run_folder):
    cells = read_cells(run_folder)
    assert len(cells) == 13
    assert {"dense", "shortgpt@0.1", "random-layers@0.25 seed 1"} <= set(cells)
    assert list(read_cells(f"{run_folder}:shortgpt")) == ["shortgpt@0.1", "shortgpt@0.25"]


def test_the_stability_verb_gives_what_the_record_says(run_folder):
    record = next(item for item in load(run_folder) if item.method == "shortgpt")
    arguments = ["stability", f"{run_folder}:dense", f"{run_folder}:shortgpt@0.1", "--json"]
    result = CliRunner().invoke(app, arguments)
    rows = {item["task"]: item for item in json.loads(result.stdout)}
    for task, block in record.tasks.items():
        assert rows[task]["stability"] == round(block.stability, 4)
        assert rows[task]["lost"] == block.model_extra["counts"]["lost"]
