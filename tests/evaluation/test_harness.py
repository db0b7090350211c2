"""Our evaluation against lm-eval's own, on tiny models and questions in memory."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.errors import AssetError, ConfigError
from streamline.evaluation.building import build
from streamline.evaluation.harness import continuations, generate, task_part
from streamline.evaluation.part import Part
from streamline.evaluation.scoring.score import score
from streamline.evaluation.task_results import finish
from streamline.evaluation.tasks.catalogue import TaskEntry, resolve
from streamline.evaluation.tasks.documents import mean_nll_results
from streamline.evaluation.tasks.text_ids import full_text_ids
from streamline.results.samples import COLUMNS, write_samples
from streamline.testing.models import tiny_model

CHOICES = {
    "doc_to_text": "Question: {{q}}\nAnswer:",
    "doc_to_choice": "options",
    "doc_to_target": "gold",
    "output_type": "multiple_choice",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm", "acc_bytes")
    ],
}
FILLED = {  # Winogrande's form: the option is in the context, the rest is scored
    "doc_to_text": lambda doc: doc["gold"],
    "doc_to_choice": lambda doc: [doc["q"] + " " + option for option in doc["options"]],
    "doc_to_target": lambda doc: "and so on",
    "output_type": "multiple_choice",
    "metric_list": CHOICES["metric_list"][:1],
}
WHOLE = {
    "doc_to_text": "",
    "doc_to_choice": "texts",
    "doc_to_target": "gold",
    "target_delimiter": "",
    "output_type": "multiple_choice",
    "process_results": mean_nll_results,
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "mean_nll", "aggregation": "bypass", "higher_is_better": False},
    ],
}
LAST_WORD = {
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{options[0]}}",
    "output_type": "loglikelihood",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ],
}
WRITTEN = {
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{options[0]}}",
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["e"], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
FORMS = {"choices": CHOICES, "filled": FILLED, "last_word": LAST_WORD}


def documents(n: int, tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Any]]:
    text = "the cat sat on a warm mat while élan vital grew in the old garden of rue"
    words = text.split()
    docs = []
    for i in range(n):
        q = " ".join(words[(i * k) % len(words)] for k in range(1, 6 + i % 4))
        options = [" ".join(words[(i + j) % 17 : (i + j) % 17 + 1 + j % 3]) for j in range(4)]
        texts = [f"{q} {option}" for option in options]
        counts = [len(ids) for ids in full_text_ids(tokenizer, texts)]
        docs.append({"q": q, "options": options, "gold": i % 4, "texts": texts, "n_tokens": counts})
    return docs


def make_task(form: dict[str, Any], docs: list[dict[str, Any]], name: str = "toy") -> Any:
    from lm_eval.api.task import ConfigurableTask

    def dataset(**_: Any) -> dict[str, Dataset]:
        return {"test": Dataset.from_list(docs)}

    config = {"task": name, "custom_dataset": dataset, "test_split": "test", **form}
    return ConfigurableTask(config=config | {"metadata": {"version": 1}})


def entry(metric: str = "acc", protocol: Any = "lm-eval") -> TaskEntry:
    return TaskEntry(name="toy", tasks=("toy",), protocol=protocol, metric=metric)


def ours(
    form: dict[str, Any], tokenizer: PreTrainedTokenizerFast, model: Any, row: TaskEntry, **how: Any
) -> tuple[Part, Any, dict[str, Any], Any]:
    task = make_task(form, documents(9, tokenizer))
    part = task_part(task, row, tokenizer, max_length=how.pop("max_length", 512), **how)
    (answers,) = score([dense_path(Decoder(model))], part.requests)
    return part, answers, *finish(part, answers)


def theirs(
    form: dict[str, Any], tokenizer: PreTrainedTokenizerFast, model: Any, **how: Any
) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=4,
        softmax_dtype="float32",
        max_length=how.pop("max_length", None),
    )
    task = make_task(form, documents(9, tokenizer))
    return evaluate(lm, {"tasks": {"toy": task}}, bootstrap_iters=1000, **how)


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_bytes"])
def test_multiple_choice_equals_lm_eval(tokenizer: PreTrainedTokenizerFast, metric: str) -> None:
    model = tiny_model("llama", n_layers=2)
    part, answers, block, rows = ours(CHOICES, tokenizer, model, entry(metric))
    reference = theirs(CHOICES, tokenizer, model)
    theirs_ll = [r[0] for s in reference["samples"]["toy"] for r in s["filtered_resps"]]
    np.testing.assert_allclose(answers.loglikelihood, theirs_ll, atol=1e-4)
    assert block["value"] == reference["results"]["toy"][f"{metric},none"]
    assert block["stderr"] == pytest.approx(reference["results"]["toy"][f"{metric}_stderr,none"])
    assert block["metric"] == metric and block["n"] == 9 and block["version"] == 1
    questions = rows.drop_duplicates("doc_id")
    assert questions["correct"].mean() == block["value"]
    assert (questions["chosen"] == questions["gold"]).tolist() == questions["correct"].tolist()
    hashes = [s["doc_hash"] for s in reference["samples"]["toy"]]
    assert questions["doc_hash"].tolist() == hashes


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_lm_eval(tokenizer: PreTrainedTokenizerFast, form: str) -> None:
    model = tiny_model("opt", n_layers=2)
    _, answers, block, _ = ours(FORMS[form], tokenizer, model, entry())
    reference = theirs(FORMS[form], tokenizer, model)
    resps = [r for s in reference["samples"]["toy"] for r in s["filtered_resps"]]
    np.testing.assert_allclose(answers.loglikelihood, [r[0] for r in resps], atol=1e-4)
    assert answers.greedy.tolist() == [r[1] for r in resps]
    for name, value in block["metrics"].items():
        assert value == pytest.approx(reference["results"]["toy"][f"{name},none"], rel=1e-5)


def test_contexts_are_truncated_on_the_left_like_lm_eval(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny_model("llama", n_layers=2)
    part, answers, _, _ = ours(CHOICES, tokenizer, model, entry(), max_length=30)
    reference = theirs(CHOICES, tokenizer, model, max_length=30)
    resps = [r[0] for s in reference["samples"]["toy"] for r in s["filtered_resps"]]
    assert max(len(request.inputs) for request in part.requests) == 30
    np.testing.assert_allclose(answers.loglikelihood, resps, atol=1e-4)


@pytest.mark.parametrize(
    ("form", "protocol"), [(CHOICES, "lm-eval"), (WHOLE, "opencompass-ppl"), (WRITTEN, "gen")]
)
def test_texts_are_encoded_together_however_many_there_are(
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    form: dict[str, Any],
    protocol: str,
) -> None:
    tasks = [make_task(form, documents(n, tokenizer)) for n in (3, 9)]
    calls: list[str] = []
    for name in ("__call__", "encode"):
        original = getattr(type(tokenizer), name)

        def noted(*given: Any, original: Any = original, **more: Any) -> Any:
            calls.append(original.__name__)
            return original(*given, **more)

        monkeypatch.setattr(type(tokenizer), name, noted)
    counts = []
    for task in tasks:
        calls.clear()
        part = task_part(task, entry("acc", protocol), tokenizer, max_length=512)
        if part.generates:
            assert len(continuations(part, tokenizer, max_length=512)) == part.n_docs
        counts.append(len(calls))
    assert counts[0] == counts[1] <= 2


def test_mean_nll_over_the_whole_text(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama", n_layers=2)
    part, answers, block, rows = ours(WHOLE, tokenizer, model, entry("acc", "opencompass-ppl"))
    assert part.requests[0].context == tuple(tokenizer("t").input_ids)  # no BOS: the first token
    expected = -answers.loglikelihood / rows["prompt_tokens"].to_numpy()
    np.testing.assert_allclose(rows["prompt_nll"], expected)
    best = rows.loc[rows.groupby("doc_id")["prompt_nll"].idxmin()]
    assert best["option"].tolist() == best["chosen"].tolist()
    assert block["value"] == (best["option"] == best["gold"]).mean()
    assert "mean_nll" not in block["metrics"]


def test_generation_equals_lm_eval(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama", n_layers=2)
    task = make_task(WRITTEN, documents(4, tokenizer))
    part = task_part(task, entry("exact_match", "gen"), tokenizer, max_length=512, limit=3)
    assert part.generates and not part.requests
    texts = generate(model, part, tokenizer, batch_size=2)
    block, rows = finish(part, texts)
    reference = theirs(WRITTEN, tokenizer, model, limit=3)
    assert texts == [s["filtered_resps"][0] for s in reference["samples"]["toy"]]
    assert block["value"] == reference["results"]["toy"]["exact_match,none"]
    assert rows["option"].tolist() == [0, 0, 0]


def test_answers_of_one_model_do_not_leak_into_the_next(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = entry()
    task = make_task(CHOICES, documents(6, tokenizer))
    part = task_part(task, row, tokenizer, max_length=512)
    paths = [dense_path(Decoder(tiny_model("llama", n_layers=1, seed=seed))) for seed in (0, 1)]
    first, second = score(paths, part.requests)
    before = finish(part, first)
    finish(part, second)
    after = finish(part, first)
    assert before[0] == after[0] and before[1].equals(after[1])


def test_rows_are_what_the_samples_file_takes(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Any
) -> None:
    model = tiny_model("llama", n_layers=1)
    *_, rows = ours(CHOICES, tokenizer, model, entry(), limit=3)
    write_samples(tmp_path / "rows.parquet", rows)
    assert set(rows.columns) <= set(COLUMNS) and len(rows) == 12
    assert rows["n_bytes"].iloc[0] == len((" " + documents(1, tokenizer)[0]["options"][0]).encode())


def test_tasks_are_loaded_by_name(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamline.evaluation import building

    docs = Dataset.from_list(
        [
            {"goal": f"to sit {i}", "sol1": "use a chair", "sol2": "use a cat", "label": 0}
            for i in range(3)
        ]
    )

    def changes(task: str, **_: Any) -> dict[str, Any]:
        splits = {"questions": docs}
        return {
            "custom_dataset": lambda **_: splits,
            "training_split": None,
            "validation_split": None,
            "test_split": "questions",
        }

    monkeypatch.setattr(building, "overrides", changes)
    (part,) = build(resolve(["piqa", "heldout"]), tokenizer, max_length=512, limit=2)
    assert part.name == "piqa" and part.n_docs == 2 and len(part.requests) == 4
    assert tokenizer.decode(part.requests[0].continuation) == " use a chair"


def test_an_answer_longer_than_the_context_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    task = make_task(CHOICES, documents(2, tokenizer))
    with pytest.raises(ConfigError, match=r"question 0 of 'toy' has 4 tokens, .* context 3"):
        task_part(task, entry(), tokenizer, max_length=3)


def test_a_limit_is_split_among_subjects(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamline.evaluation import building

    limits: dict[str, int | None] = {}

    def changes(task: str, *, limit: int | None, **_: Any) -> dict[str, Any]:
        limits[task] = limit
        raise AssetError("enough is known")

    monkeypatch.setattr(building, "overrides", changes)
    for name in ("streamline_mmlu", "streamline_mmlu_anatomy", "piqa"):
        with pytest.raises(AssetError):
            build(resolve([name]), tokenizer, max_length=512, limit=50)
    assert limits == {
        "streamline_mmlu_abstract_algebra": 1,
        "streamline_mmlu_anatomy": 50,
        "piqa": 50,
    }
