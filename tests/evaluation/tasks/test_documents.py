"""Documents of the mean-NLL tasks: token counts, dropped examples, and the number itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from streamline.errors import ConfigError
from streamline.evaluation.tasks.documents import documents, load, mean_nll_results
from streamline.evaluation.tasks.overrides import overrides
from streamline.evaluation.tasks.sources import question_source
from streamline.testing.models import tiny_tokenizer


def _with_bos() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.fixture
def folder(tmp_path) -> Path:
    """CMMLU agronomy: five examples, two questions; and three C3 questions."""
    for part, n in (("dev", 6), ("test", 2)):
        path = tmp_path / "cmmlu" / part / "agronomy.csv"
        path.parent.mkdir(parents=True)
        lines = [f"{i},{part}{i},1,2,3,{'4' * (i + 1)},{'ABCD'[i % 4]}\n" for i in range(n)]
        path.write_text(",Question,A,B,C,D,Answer\n" + "".join(lines), "utf-8")
    path = tmp_path / "c3" / "c3-d-dev.json"
    path.parent.mkdir()
    questions = [
        {"question": f"q{i}", "choice": ["yes", "no way", "it depends"], "answer": "no way"}
        for i in range(3)
    ]
    path.write_text(json.dumps([[["one", "two"], questions, "1"]]), "utf-8")
    return tmp_path


def _docs(task: str, folder: Path, tokenizer: Any, **options: Any) -> list[dict[str, Any]]:
    return list(documents(question_source(task, data_dir=folder), tokenizer=tokenizer, **options))


def test_counts_are_those_of_the_tokenizer_with_its_bos(folder):
    plain = _docs("streamline_c3", folder, tiny_tokenizer())
    started = _docs("streamline_c3", folder, _with_bos())
    assert len(plain) == 3
    for doc in plain:
        assert doc["n_tokens"] == [len(text.encode()) for text in doc["texts"]]
        assert doc["texts"][0] == doc["texts"][3]
    assert [d["n_tokens"] for d in started] == [[n + 1 for n in d["n_tokens"]] for d in plain]


def test_the_first_five_examples_are_used(folder):
    (doc,) = _docs("streamline_cmmlu_agronomy", folder, _with_bos(), limit=1)
    text = doc["texts"][0]
    assert doc["n_shots"] == [5] * 4
    assert [f"dev{i}" in text for i in range(6)] == [True] * 5 + [False]
    assert text.index("dev0") < text.index("dev4") < text.index("test0")


def test_examples_are_dropped_from_the_end_until_texts_fit(folder):
    tokenizer = _with_bos()
    (whole,) = _docs("streamline_cmmlu_agronomy", folder, tokenizer, limit=1)
    full = whole["n_tokens"][0]
    (doc,) = _docs("streamline_cmmlu_agronomy", folder, tokenizer, limit=1, max_length=full - 1)
    assert doc["n_shots"] == [4] * 4
    assert "dev3" in doc["texts"][0] and "dev4" not in doc["texts"][0]
    (bare,) = _docs("streamline_cmmlu_agronomy", folder, tokenizer, limit=1, max_length=10)
    assert bare["n_shots"] == [0] * 4
    assert bare["texts"][0].startswith("\n\n以下是关于农学的")
    assert bare["n_tokens"] == [10] * 4


def test_a_dropped_example_stays_dropped_for_later_options(tmp_path):
    rows = {
        "dev": [{"stem": f"shot{i}", "long": "x"} for i in range(8)],
        "test": [{"stem": "q", "long": "y" * 40}],
    }
    for part, name in (("dev", "train_rand_split"), ("test", "dev_rand_split")):
        path = tmp_path / "commonsenseqa" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        lines = []
        for row in rows[part]:
            options = ["a", row["long"], "b", "c", "d"]
            choices = [{"label": x, "text": o} for x, o in zip("ABCDE", options, strict=True)]
            question = {"stem": row["stem"], "choices": choices}
            lines.append(json.dumps({"id": "1", "question": question, "answerKey": "B"}) + "\n")
        path.write_text("".join(lines))
    tokenizer = tiny_tokenizer()
    (whole,) = _docs("streamline_commonsense_qa", tmp_path, tokenizer)
    assert whole["n_shots"] == [8] * 5
    longest = max(whole["n_tokens"])
    (doc,) = _docs("streamline_commonsense_qa", tmp_path, tokenizer, max_length=longest - 1)
    assert doc["n_shots"] == [8, 7, 7, 7, 7]


def test_a_prompt_that_is_too_long_loses_its_beginning(tmp_path):
    rows = [{"dialogue": word * 100, "summary": "s"} for word in ("word ", "x")]
    (tmp_path / "xsum").mkdir()
    (tmp_path / "xsum" / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = _docs("streamline_xsum", tmp_path, tiny_tokenizer(), max_length=10_000)
    cut = _docs("streamline_xsum", tmp_path, tiny_tokenizer(), max_length=100 + 300)
    assert [d["target"] for d in cut] == ["s", "s"] and cut[1] == whole[1]
    assert len(tiny_tokenizer()(cut[0]["prompt"])["input_ids"]) == 300
    assert whole[0]["prompt"].endswith(cut[0]["prompt"])
    with pytest.raises(ConfigError, match="take 100 of the 120 tokens of the model's context"):
        _docs("streamline_xsum", tmp_path, tiny_tokenizer(), max_length=120)


def test_mean_nll_results_choose_the_smallest_and_the_first_of_equals():
    doc = {"n_tokens": [10, 5, 10], "gold": 0}
    results = [(-20.0, False), (-10.0, True), (-30.0, False)]
    assert mean_nll_results(doc, results) == {"acc": 1.0, "mean_nll": [2.0, 2.0, 3.0]}
    results[1] = (-9.0, False)
    assert mean_nll_results(doc, results)["acc"] == 0.0


def _direct(model: Any, tokenizer: Any, text: str) -> float:
    """OpenCompass's number, written out: cross-entropy of tokens 2..T over T."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        logits = model(ids).logits[0].double()
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum")
    return float(losses) / ids.shape[1]


def test_lm_evals_own_model_gives_opencompass_numbers(folder, tiny_llama):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = tiny_llama().eval(), _with_bos()
    changes = overrides("streamline_c3", data_dir=folder, tokenizer=tokenizer)
    own = str(Path(__file__).parents[3] / "tasks")
    manager = TaskManager(include_path=own, include_defaults=False)
    loaded = manager.load([{"group": "run", "task": [{"task": "streamline_c3", **changes}]}])
    task = loaded["tasks"]["streamline_c3"]
    task.build_all_requests(limit=2)
    lm = HFLM(
        pretrained=model, tokenizer=tokenizer, max_length=512, softmax_dtype="float32", batch_size=4
    )
    answers = lm.loglikelihood(task.instances, disable_tqdm=True)
    for index in range(2):
        doc = task.eval_docs[index]
        found = task.process_results(doc, answers[4 * index : 4 * index + 4])
        expected = [_direct(model, tokenizer, text) for text in doc["texts"]]
        assert found["mean_nll"] == pytest.approx(expected, abs=1e-5)
        assert found["acc"] == float(expected.index(min(expected)) == doc["gold"])


def test_load_serves_lm_evals_command_line(folder, tmp_path):
    _with_bos().save_pretrained(tmp_path / "model")
    task = {"task": "streamline_c3", "pretrained": str(tmp_path / "model")}
    docs = load(**task, data=str(folder), max_length=30, version=1)["test"]
    assert [max(d["n_tokens"]) <= 30 for d in docs] == [True] * 3
    assert docs[0]["texts"][1].endswith("no way")
    assert len(load(**task, data_dir=str(folder))["test"]) == 3


def test_yaml_loads_through_lm_eval_alone(folder, tmp_path):
    from lm_eval.tasks import TaskManager

    _with_bos().save_pretrained(tmp_path / "model")
    manager = TaskManager(
        include_path=str(Path(__file__).parents[3] / "tasks"),
        include_defaults=False,
        metadata={"pretrained": str(tmp_path / "model"), "data": str(folder)},
    )
    task = manager.load(["streamline_cmmlu_agronomy"])["tasks"]["streamline_cmmlu_agronomy"]
    task.build_all_requests()
    assert len(task.instances) == 8
    assert task.instances[2].arguments[0] == ""
    assert task.instances[2].arguments[1].endswith("答案是: C")
    assert task.VERSION == 1
