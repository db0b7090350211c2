from __future__ import annotations

import json

import pytest

from streamline.errors import ConfigError
from streamline.results.readers.lm_eval_logs import find, read

CHOICES = [" yes it is", " no", " très bien"]


def sample(doc, lls=(-4.0, -1.5, -6.0), **changes):
    pairs = {
        f"gen_args_{i}": {"arg_0": f"Question {doc}:", "arg_1": choice}
        for i, choice in enumerate(CHOICES)
    }
    return {
        "doc_id": doc,
        "doc": {"q": doc},
        "target": "0",
        "arguments": pairs,
        "resps": [[[str(ll), "False"]] for ll in lls],
        "filtered_resps": [[str(ll), "False"] for ll in lls],
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "doc_hash": f"hash{doc}",
        "acc": 1.0,
        "acc_norm": 0.0,
        **changes,
    }


def save(folder, rows, task="toy_mc", time="2026-11-22T19-29-14.845591"):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"samples_{task}_{time}.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    return file


def test_log_likelihoods_are_per_byte_and_the_metric_is_named(tmp_path):
    save(tmp_path / "model", [sample(1), sample(0, acc_norm=1.0)])
    answers = read(find(tmp_path))[0]["toy_mc"]
    assert answers.ids == ("0", "1")
    assert answers.hashes == ("hash0", "hash1")
    assert answers.correct.tolist() == [True, False]
    assert (answers.metric, answers.nll_name) == ("acc_norm", "option per byte")
    assert answers.nll[0].tolist() == [4.0 / 10, 1.5 / 3, 6.0 / 11]
    assert read(find(tmp_path), "acc")[0]["toy_mc"].correct.tolist() == [True, True]


def test_a_logged_mean_nll_of_the_full_prompt_is_preferred(tmp_path):
    save(tmp_path, [sample(0, mean_nll=[2.5, 2.25, 3.0])])
    answers = read(find(tmp_path))[0]["toy_mc"]
    assert answers.nll[0].tolist() == [2.5, 2.25, 3.0]
    assert answers.nll_name == "full prompt"


def test_generated_answers_have_no_options(tmp_path):
    row = sample(0, arguments=[["Question", {"until": ["\n"]}]], filtered_resps=["42"])
    for metric in ("acc", "acc_norm"):
        del row[metric]
    save(tmp_path, [row | {"exact_match": 1.0}], "gsm8k")
    answers = read(find(tmp_path))[0]["gsm8k"]
    assert (answers.nll, answers.metric, answers.correct.tolist()) == (None, "exact_match", [True])


def test_of_several_filters_the_first_counts(tmp_path):
    save(tmp_path, [sample(0), sample(0, filter="other", acc_norm=1.0)])
    assert read(find(tmp_path))[0]["toy_mc"].correct.tolist() == [False]


def test_the_newest_log_of_a_task_counts(tmp_path):
    save(tmp_path, [sample(0)], time="2026-01-01T00-00-00.0")
    newest = save(tmp_path, [sample(0)], time="2026-01-02T00-00-00.0")
    assert find(tmp_path) == {"toy_mc": newest}


def test_logs_in_several_folders_are_refused(tmp_path):
    save(tmp_path / "a", [sample(0)])
    save(tmp_path / "b", [sample(0)])
    with pytest.raises(ConfigError, match="toy_mc has logs in several folders"):
        find(tmp_path)


def test_unusable_logs_are_refused(tmp_path):
    save(tmp_path / "a", [sample(0, acc_norm=0.5)])
    with pytest.raises(ConfigError, match="question 0 has acc_norm 0.5"):
        read(find(tmp_path / "a"))
    with pytest.raises(ConfigError, match="toy_mc: its rows carry no f1"):
        read(find(tmp_path / "a"), "f1")
    (tmp_path / "samples_x.jsonl").write_text('{"resps": []}\n')
    with pytest.raises(ConfigError, match=r"samples_x\.jsonl:1 is no lm-eval sample"):
        read(find(tmp_path / "samples_x.jsonl"))
    (tmp_path / "samples_x.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="has no samples"):
        read(find(tmp_path / "samples_x.jsonl"))
