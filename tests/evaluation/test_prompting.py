"""Examples, chat template and instruction: equal to lm-eval's own, question by question."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.errors import ConfigError
from streamline.evaluation.building import build
from streamline.evaluation.harness import task_part
from streamline.evaluation.prompting import Prompting
from streamline.evaluation.scoring.score import score
from streamline.evaluation.tasks.catalogue import TaskEntry, resolve
from streamline.testing.models import tiny_model, tiny_tokenizer

_ENTRY = TaskEntry(name="toy", tasks=("toy",), protocol="lm-eval", metric="acc")
_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_WORDS = "the cat sat on a warm mat while birds sang in the old garden of rue".split()  # noqa: SIM905


def _task(**more: Any) -> Any:
    from lm_eval.api.task import ConfigurableTask

    docs = [
        {"q": " ".join(_WORDS[i : i + 4]), "options": _WORDS[i + 4 : i + 7], "gold": i % 3}
        for i in range(9)
    ]
    form = {
        "task": "toy",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
        "test_split": "test",
        "fewshot_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{q}}\nAnswer:",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
        "description": "Answer well.\n\n",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    return ConfigurableTask(config=form | more)


@pytest.fixture
def chatting() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


@pytest.mark.parametrize(
    "prompting",
    [
        Prompting(),
        Prompting(num_fewshot=2),
        Prompting(system_instruction="Be brief."),
        Prompting(apply_chat_template=True),
        Prompting(num_fewshot=3, apply_chat_template=True, system_instruction="Be brief."),
        Prompting(num_fewshot=2, apply_chat_template=True, fewshot_as_multiturn=True),
    ],
)
def test_answers_are_those_of_lm_eval(
    chatting: PreTrainedTokenizerFast, prompting: Prompting
) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = tiny_model("llama")
    part = task_part(_task(), _ENTRY, chatting, max_length=512, prompting=prompting)
    (mine,) = score([dense_path(Decoder(model))], part.requests)
    theirs = _task()
    theirs.set_config("num_fewshot", prompting.num_fewshot or 0)
    theirs.set_fewshot_seed(1234)  # as simple_evaluate and the command do
    found = evaluate(
        HFLM(pretrained=model, tokenizer=chatting, softmax_dtype="float32"),
        {"tasks": {"toy": theirs}},
        apply_chat_template=prompting.apply_chat_template,
        fewshot_as_multiturn=prompting.fewshot_as_multiturn,
        system_instruction=prompting.system_instruction,
    )["samples"]["toy"]
    wanted = [answer[0] for row in found for answer in row["filtered_resps"]]
    np.testing.assert_allclose(mine.loglikelihood, wanted, rtol=1e-5, atol=1e-4)
    assert part.shots == (prompting.num_fewshot or 0)
    prompts = {row["arguments"][0][0] for row in found}
    assert {part.instances[i].args[0] for i in range(0, len(part.instances), 3)} == prompts


def test_a_task_that_says_no_examples_has_none(chatting: PreTrainedTokenizerFast) -> None:
    prompting = Prompting(num_fewshot=2)
    part = task_part(_task(num_fewshot=0), _ENTRY, chatting, max_length=512, prompting=prompting)
    assert part.shots == 0
    assert part.instances[0].args[0].count("Question") == 1


def test_the_question_itself_is_no_example(chatting: PreTrainedTokenizerFast) -> None:
    prompting = Prompting(num_fewshot=7)
    part = task_part(_task(), _ENTRY, chatting, max_length=4096, prompting=prompting)
    for instance in part.instances:
        assert instance.args[0].count(instance.doc["q"]) == 1


def test_what_changes_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"streamline_c3 has the prompts of its protocol"):
        build(
            resolve(["streamline_c3"]),
            tiny_tokenizer(),
            max_length=512,
            prompting=Prompting(num_fewshot=5),
        )
    with pytest.raises(ConfigError, match="no chat template"):
        task_part(
            _task(),
            _ENTRY,
            tiny_tokenizer(),
            max_length=512,
            prompting=Prompting(apply_chat_template=True),
        )
    with pytest.raises(ValidationError, match="give apply_chat_template too"):
        Prompting(fewshot_as_multiturn=True)


def test_a_prompt_has_words_for_a_table() -> None:
    assert Prompting(num_fewshot=5).words is None
    assert Prompting(apply_chat_template=True).words == "chat template"
    both = Prompting(
        apply_chat_template=True, fewshot_as_multiturn=True, system_instruction="Be brief."
    )
    assert both.words == "chat template with examples as turns, system instruction 'Be brief.'"
