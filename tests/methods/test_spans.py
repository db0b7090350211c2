"""The span on which several texts agree, against all spans and ranks counted one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from streamline.calibration import Calibration, measure
from streamline.engine.budget import statistics_flops
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError
from streamline.methods.llm_streamline import StreamlineFFN, StreamlineNone
from streamline.methods.spans import ranked_spans, ranking_flops
from streamline.plan import Span
from streamline.testing.models import tiny_model
from streamline.testing.runner import check_method

N_LAYERS, TEXTS = 8, ("books", "news", "arxiv", "stories")


def random_calibration(seed: int) -> Calibration:
    values = torch.rand(9, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = values.round(decimals=1)  # with equal ones
    return Calibration(values, values.clone(), n_tokens=10, n_samples=2, facts={"seconds": 1.5})


@pytest.mark.parametrize("length", [1, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_that_of_mean_ranks_counted_one_by_one(seed: int, length: int) -> None:
    own, *others = (random_calibration(10 * seed + i) for i in range(5))
    found = ranked_spans(
        Decoder(tiny_model("llama", n_layers=1)),
        own.beside(dict(zip(TEXTS, others, strict=True))),
        torch.zeros(1, 2, dtype=torch.int64),
        length,
        "agreement",
    )
    starts = range(N_LAYERS - length + 1)
    distances = np.array(
        [[1 - float(c.cosine[i, i + length]) for i in starts] for c in (own, *others)]
    )
    ranks = np.array(
        [
            [1 + sum((d, j) < (row[i], i) for j, d in enumerate(row)) for i in starts]
            for row in distances
        ]
    )
    order = sorted(starts, key=lambda i: (ranks[:, i].sum(), math.fsum(distances[:, i]), i))
    assert [one.span for one in found] == [Span(i, i + length) for i in order]
    assert [one.ranks for one in found] == [tuple(ranks[:, i]) for i in order]


def test_a_span_that_all_texts_rank_second_beats_the_first_of_one() -> None:
    def text(*cosines: float) -> Calibration:
        whole = torch.eye(5, dtype=torch.float64)
        for start, value in enumerate(cosines):
            whole[start, start + 2] = value
        return Calibration(whole, whole, n_tokens=4, n_samples=1)

    own = text(0.9, 0.8, 0.1).beside({"a": text(0.1, 0.7, 0.8), "b": text(0.2, 0.5, 0.1)})
    decoder = Decoder(tiny_model("llama", n_layers=4))
    ids = torch.zeros(1, 2, dtype=torch.int64)
    sparsity = 2 * decoder.layer_parameters(0) / decoder.n_parameters()
    pruned = StreamlineNone(criterion="agreement").prune(decoder, own, sparsity, ids, 0)
    assert pruned.plan.removed_layers == [1, 2]
    assert pruned.notes["spans"][0] == {"span": [1, 3], "cosine": 0.8, "ranks": [2, 2, 1]}
    runner_up = StreamlineNone(criterion="agreement", runner_up=1)
    assert runner_up.prune(decoder, own, sparsity, ids, 0).plan.removed_layers == [0, 1]
    plain = StreamlineNone().prune(decoder, own, sparsity, ids, 0)
    assert plain.plan.removed_layers == [0, 1] and not StreamlineNone().by_domain
    with pytest.raises(ConfigError, match="agreement goes by several texts"):
        StreamlineNone(criterion="agreement").prune(decoder, text(0.9, 0.8, 0.1), sparsity, ids, 0)


def test_statistics_of_other_texts_are_kept_with_what_they_cost(tmp_path) -> None:
    own, other = random_calibration(0), random_calibration(1)
    both = own.beside({"books": other})
    both.save(tmp_path)
    again = Calibration.load(tmp_path)
    assert [c.tolist() for c in again.cosines] == [own.cosine.tolist(), other.cosine.tolist()]
    assert again.facts["seconds"] == 3.0 and again.facts["other_tokens"] == 10
    assert [c.tolist() for c in own.cosines] == [own.cosine.tolist()]


@pytest.mark.parametrize("method", [StreamlineNone, StreamlineFFN])
def test_what_every_method_keeps_holds_by_agreement_too(method: type) -> None:
    outcomes = list(check_method(method(criterion="agreement"), ["llama"]))
    assert [one for one in outcomes if one.status != "passed"] == []


def test_the_plan_counts_a_pass_over_each_domain() -> None:
    decoder = Decoder(tiny_model("llama", n_layers=4))
    domains = 6 * statistics_flops(decoder, 16 * 128)
    assert ranking_flops(decoder, 2, "agreement", (64, 128)) == domains
    assert ranking_flops(decoder, 2, "agreement", (64, 4_096)) == 4 * domains
    plain, more = (
        StreamlineNone(criterion=name).effort(decoder, 0.3, (64, 128))
        for name in ("cosine", "agreement")
    )
    assert plain.calibrate == more.calibrate and more.prune - plain.prune == domains
    assert measure(decoder, torch.ones(2, 8, dtype=torch.int64)).cosines[0].shape == (5, 5)
