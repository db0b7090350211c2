"""Row: requests as token ids, as an evaluation makes them, against lm-eval text by text."""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

from lm_eval.models.huggingface import HFLM

from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.speed.common import Outcome, require_equal
from streamline.benchmarks.speed.questions import encode

__all__ = ["run"]

Pairs = list[tuple[list[int], list[int]]]


def run(bench: Bench) -> Outcome:
    """Time the row."""
    asked = bench.inputs.questions(bench.sizes.questions)
    lm = HFLM(pretrained=bench.model, tokenizer=bench.tokenizer, batch_size=1)

    def theirs() -> Pairs:
        with mock.patch.object(lm, "_loglikelihood_tokens", lambda requests, **_: requests):
            found = lm.loglikelihood(list(asked.instances), disable_tqdm=True)
        return [(context, continuation) for _, context, continuation in found]

    def same(mine: Pairs, other: Pairs) -> dict[str, Any]:
        require_equal("token ids", mine, other)
        return {"tokens": sum(len(context) + len(continuation) for context, continuation in mine)}

    outcome = Outcome(
        name="encoding",
        work=f"{len(asked.requests):,} requests as token ids",
        against="lm-eval hf, text by text",
        facts={
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "parallel": os.environ.get("TOKENIZERS_PARALLELISM", "as the tokenizer likes"),
        },
        notes=["No device has a part in it; the other rows that answer questions contain it."],
    )
    return bench.race(outcome, 3, lambda: encode(asked.instances, bench.tokenizer), theirs, same)
