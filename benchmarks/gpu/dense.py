"""Row: six commonsense tasks on the dense model, against lm-eval's ``hf`` at its best batch."""

from __future__ import annotations

import time

from streamline.benchmarks.gpu import answers
from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.gpu.operations import distinct, useful_operations
from streamline.benchmarks.gpu.rate import matrix_rates
from streamline.benchmarks.speed.common import Outcome
from streamline.benchmarks.speed.questions import encode
from streamline.engine.paths import dense_path
from streamline.evaluation.scoring.score import score

__all__ = ["run"]


def run(bench: Bench) -> Outcome:
    """Time the row."""
    asked = bench.inputs.questions(bench.sizes.questions)
    paths = [dense_path(bench.decoder)]
    started = time.perf_counter()
    answers.ours(bench, paths, asked)  # warm up; finds the batch size, as a run does once
    first = time.perf_counter() - started
    size, seconds = answers.best_peer(bench, asked)
    peer = answers.FloatSoftmax([bench.model], bench.tokenizer, size)
    outcome = Outcome(
        name="dense",
        work=f"{len(asked.parts)} tasks, {bench.sizes.questions} questions of each, "
        f"{len(asked.requests):,} requests",
        against=f"lm-eval hf at its best batch size, {size}",
        target=5.0,
        notes=["Both sides encode the requests in their time."],
    )
    bench.race(
        outcome,
        2,
        lambda: answers.ours(bench, paths, asked),
        lambda: peer.answer(asked),
        lambda mine, other: answers.require_same(asked, mine, other, exact=bench.exact),
    )
    scoring = bench.seconds(lambda: score(paths, asked.requests, batch_tokens=bench.budget))
    encoding = bench.seconds(lambda: encode(asked.instances, bench.tokenizer))
    rate = useful_operations(bench.decoder, asked.requests) / scoring
    outcome.facts |= {
        "first_seconds": first,
        "seconds_without_encoding": scoring,
        "share_of_encoding": encoding / (encoding + scoring),
        "peer_seconds_by_batch_size": {str(k): v for k, v in seconds.items()},
        "distinct_tokens": distinct(asked.requests)[0],
        "tflops": rate / 1e12,
        "fraction_of_matrix_rate": rate / max(matrix_rates(bench).values()),
        "batch_tokens": bench.budget.facts(),
    }
    return outcome
