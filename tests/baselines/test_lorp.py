"""LoRP on cosines whose blocks are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from streamline.baselines.lorp import LoRP, clusters_of, redundancy_level, removal_order
from streamline.calibration import Calibration, measure
from streamline.engine.decoder import Decoder
from streamline.plan import Plan


def planted(sizes: list[int], inside: float, between: float) -> Tensor:
    """Cosines of blocks of layers in a row."""
    labels = [block for block, size in enumerate(sizes) for _ in range(size)]
    n = len(labels)
    rows = [[inside if labels[i] == labels[j] else between for j in range(n)] for i in range(n)]
    return torch.tensor(rows, dtype=torch.float64).fill_diagonal_(1.0)


def calibration(similarity: Tensor) -> Calibration:
    n = len(similarity)
    cosine = torch.eye(n + 1, dtype=torch.float64)
    cosine[:n, :n] = similarity
    return Calibration(cosine, torch.zeros(n + 1, n + 1, dtype=torch.float64), 1, 1)


@pytest.mark.parametrize(
    ("sizes", "between", "n_clusters"), [([5, 7], 0.05, 2), ([4, 4, 4], 0.45, 3)]
)
def test_a_planted_structure_is_found(sizes, between, n_clusters):
    similarity = planted(sizes, 0.95, between)
    labels = clusters_of(similarity)
    assert labels == [block for block, size in enumerate(sizes) for _ in range(size)]
    assert max(labels) + 1 == n_clusters


def test_the_level_is_minus_the_log_of_the_mean_over_pairs():
    similarity = planted([2, 2], 0.5, 0.25)
    assert redundancy_level(similarity) == pytest.approx(-math.log2((2 * 0.5 + 4 * 0.25) / 6))
    assert redundancy_level(planted([2, 2], -0.5, -0.5)) is None
    assert max(clusters_of(planted([3, 3], 0.2, -0.9))) == 1, "no logarithm: two clusters"


def test_the_order_by_hand():
    """Blocks 0-3 and 4-7: the second is more alike, and its layer 5 the most redundant of all."""
    similarity = planted([4, 4], 0.6, 0.1)
    similarity[4:, 4:] = planted([4], 0.8, 0.0)
    for layer, other, value in ((5, 6, 0.95), (1, 2, 0.7), (1, 3, 0.7)):
        similarity[layer, other] = similarity[other, layer] = value
    clusters = [0] * 4 + [1] * 4
    # One of each block in the order of depth (1, then 5 before 6), then the block most alike, that
    # is the second until no candidate is left, then the first; the ends last.
    assert removal_order(similarity, clusters) == [1, 5, 6, 4, 2, 3, 7, 0]
    plan = LoRP().select(calibration(planted([4, 4], 0.9, 0.05)), 2)
    assert plan == Plan.drop(8, [1, 4])


def test_the_first_and_the_last_layer_stay_while_others_can_go():
    for sizes in ([6, 6], [1, 11], [3, 3, 3, 3]):
        order = removal_order(planted(sizes, 0.9, 0.2), clusters_of(planted(sizes, 0.9, 0.2)))
        assert sorted(order) == list(range(12))
        assert order[-2:] == [11, 0]


@pytest.mark.parametrize("n_layers", [1, 2, 3, 6])
def test_every_count_can_be_removed(tiny_llama, n_layers):
    decoder = Decoder(tiny_llama(n_layers=n_layers))
    found = measure(decoder, torch.arange(32).view(2, 16))
    for n_remove in range(1, n_layers + 1):
        plan = LoRP().select(found, n_remove)
        assert len(plan.removed_layers) == n_remove
    facts = LoRP().explain(found, 1)
    assert len(facts["clusters"]) == n_layers and sorted(facts["order"]) == list(range(n_layers))
