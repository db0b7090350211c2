"""Row: the same answers in float32 and the model's dtype, on the device and on the CPU.

No times: it says how far rounding moves the numbers that the other rows compare.
"""

from __future__ import annotations

import copy

import torch

from streamline.benchmarks.gpu import answers
from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.speed.common import Disagreement, Outcome
from streamline.engine.decoder import Decoder
from streamline.engine.memory import free_memory
from streamline.engine.paths import dense_path
from streamline.evaluation.scoring.score import score

__all__ = ["run"]

_BATCH_SIZE = 16
_NEARER = 1.25
"""How much further from float32 than lm-eval's our sums may be."""


def run(bench: Bench) -> Outcome:
    """Compare."""
    asked = bench.inputs.questions(bench.sizes.few)
    outcome = Outcome(
        name="agreement",
        work=f"{len(asked.parts)} tasks, {bench.sizes.few} questions of each, dense: float32 and "
        f"{bench.decoder.dtype}, device and CPU",
        against="lm-eval hf in float32; our own sums on the CPU",
    )
    light = score([dense_path(bench.decoder)], asked.requests)[0]
    peer = answers.FloatSoftmax([bench.model], bench.tokenizer, _BATCH_SIZE).answer(asked)[0]
    exact = copy.deepcopy(bench.model).float()
    reference = answers.FloatSoftmax([exact], bench.tokenizer, _BATCH_SIZE).answer(asked)
    ours = score([dense_path(Decoder(exact))], asked.requests)
    answers.require_same(asked, ours, reference, exact=True)
    outcome.facts |= {
        "float32": answers.agreement(asked, ours[0], reference[0]),
        "rounded": answers.agreement(asked, light, reference[0]),
        "rounded_lm_eval": answers.agreement(asked, peer, reference[0]),
    }
    gaps = [outcome.facts[name]["mean_difference"] for name in ("rounded", "rounded_lm_eval")]
    if not bench.exact and not gaps[0] <= _NEARER * gaps[1]:
        raise Disagreement(
            f"in {bench.decoder.dtype} our sums are {gaps[0]:.3g} from float32 and lm-eval's "
            f"{gaps[1]:.3g}; ours must not be further than {_NEARER} times that"
        )
    few = bench.inputs.questions(bench.sizes.very_few)
    there = score([dense_path(Decoder(exact))], few.requests)
    exact = exact.to(torch.device("cpu"))
    free_memory()
    here = score([dense_path(Decoder(exact))], few.requests)
    answers.require_same(few, there, here, exact=True)
    outcome.facts["cpu"] = answers.agreement(few, there[0], here[0])
    return outcome
