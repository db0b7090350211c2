"""The row of generation; a planted difference is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamline.benchmarks.speed import generation
from streamline.benchmarks.speed.common import Disagreement, Options
from streamline.evaluation.generation.prompts import Prompt
from streamline.testing.models import tiny_model, tiny_tokenizer


def part(limit: int) -> Any:
    """A task of written questions in the place of GSM8K."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    from streamline.evaluation.harness import task_part
    from streamline.evaluation.tasks.catalogue import TaskEntry

    docs = [{"q": "Examples: so it is. Then " + "why " * i, "a": "no"} for i in range(limit)]
    config = {
        "task": "toy",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "q",
        "doc_to_target": "a",
        "generation_kwargs": {"until": ["ab"], "max_gen_toks": 9, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
        "metadata": {"version": 1},
    }
    entry = TaskEntry(name="toy", tasks=("toy",), protocol="gen", metric="exact_match")
    return task_part(ConfigurableTask(config=config), entry, tiny_tokenizer(), max_length=512)


def test_generation_row(
    options: Options, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(generation)
    monkeypatch.setattr(generation, "task_parts", lambda *given: [part(given[-1])])
    monkeypatch.setattr(generation, "QUESTIONS", {"quick": 4})
    monkeypatch.setattr(generation, "NEW_TOKENS", {"quick": 4})
    monkeypatch.setattr(generation, "BATCH_SIZES", (1, 2))
    outcome = generation.run(options)
    assert outcome.facts["texts"] == 20 and set(outcome.facts["batch_size_seconds"]) == {"1", "2"}
    assert 20 <= outcome.facts["new_tokens"] <= 80 and outcome.ratio is not None
    monkeypatch.setattr(generation.harness, "text_of", lambda *_: "planted")
    with pytest.raises(Disagreement, match=r"texts of prompt 0 differ \(ours 'planted'"):
        generation.run(options)


def test_only_a_tie_may_part_texts(tokenizer: Any) -> None:
    model = tiny_model("llama", n_layers=1)
    prompt = Prompt((1, 2, 3), (), 2)
    (tokens,) = generation.side_by_side(
        [generation.dense_path(generation.Decoder(model))], [prompt], tokenizer
    )
    text = tokenizer.decode(tokens[0])
    given = ([tokens], [prompt], [model], tokenizer)
    assert generation.same_texts([[text]], [[text]], *given) == {"texts": 1, "ties": 0}
    with pytest.raises(Disagreement, match="apart where they part"):
        generation.same_texts([[text]], [["x" + text]], *given)
