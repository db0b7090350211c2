"""LoRP: remove the most redundant layers of clusters of layers that do alike."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.cluster import SpectralClustering
from torch import Tensor

from streamline.calibration import Calibration
from streamline.method import DepthMethod
from streamline.plan import Plan


@dataclass(frozen=True, kw_only=True)
class LoRP(DepthMethod):
    """Thin out clusters of layers whose inputs are alike.

    With ``S`` the mean token cosine between the inputs of any two layers, the model's redundancy
    level is ``-log2`` of the mean of ``S`` over pairs: 2 clusters from 1.0 on, 3 from 0.7 on, else
    4, by spectral clustering of ``(S + 1) / 2``. A layer's redundancy is its mean ``S`` with the
    other members of its cluster. The most redundant layer of each cluster goes first, in the order
    of depth; then the cluster whose remaining members are most alike gives its next one. The first
    and the last layer are kept.

    Reference:
        LoRP, arXiv:2605.27786.

    Differs from the released code:
        The run's calibration texts instead of 128 sequences of 2048 tokens of C4. A mean cosine
        that is not positive has no logarithm and means 2 clusters; a model with fewer layers than
        clusters gets fewer. A layer alone in its cluster goes last. Where more layers are to go
        than there are between the first and the last, the last one goes too, then the first.
    """

    name: ClassVar[str] = "lorp"
    paper: ClassVar[str] = "arXiv:2605.27786"

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        """Remove the first layers of the order."""
        order = removal_order(_similarity(calibration), clusters_of(_similarity(calibration)))
        return Plan.drop(calibration.n_layers, order[:n_remove])

    def explain(self, calibration: Calibration, n_remove: int) -> dict[str, Any]:
        """The redundancy level, each layer's cluster and the order of removal."""
        similarity = _similarity(calibration)
        labels = clusters_of(similarity)
        return {
            "redundancy_level": redundancy_level(similarity),
            "clusters": labels,
            "order": removal_order(similarity, labels),
        }


def _similarity(calibration: Calibration) -> Tensor:
    """Mean cosine between the inputs of any two layers, [L, L], float64."""
    n = calibration.n_layers
    return calibration.cosine[:n, :n]


def redundancy_level(similarity: Tensor) -> float | None:
    """``-log2`` of the mean cosine over pairs of layers; None where it is not positive.

    Args:
        similarity: Cosines, [L, L].
    """
    rows, columns = np.triu_indices(len(similarity), 1)
    mean = float(similarity[rows, columns].mean()) if len(rows) else 1.0
    return -math.log2(mean) if mean > 0 else None


def clusters_of(similarity: Tensor) -> list[int]:
    """The cluster of each layer, numbered by the mean depth of their members.

    Args:
        similarity: Cosines, [L, L], float64.
    """
    level, n = redundancy_level(similarity), len(similarity)
    wanted = 2 if level is None or level >= 1.0 else 3 if level >= 0.7 else 4
    k = min(wanted, n - 1)
    if k < 2:
        return [0] * n
    affinity = ((similarity + 1.0) / 2.0).clamp(0.0, 1.0).numpy()
    clustering = SpectralClustering(n_clusters=k, affinity="precomputed", random_state=0)
    with warnings.catch_warnings():  # fewer distinct points than clusters: it makes fewer
        warnings.simplefilter("ignore")
        labels = clustering.fit_predict((affinity + affinity.T) / 2.0).tolist()
    depth = {label: np.mean([i for i in range(n) if labels[i] == label]) for label in set(labels)}
    number = {label: place for place, label in enumerate(sorted(depth, key=lambda x: depth[x]))}
    return [number[label] for label in labels]


def removal_order(similarity: Tensor, clusters: list[int]) -> list[int]:
    """All layers in the order in which they go.

    Args:
        similarity: Cosines, [L, L].
        clusters: Cluster of each layer, numbered by depth.
    """
    n, s = len(clusters), similarity.tolist()
    members = [[i for i in range(n) if clusters[i] == c] for c in range(max(clusters) + 1)]

    def redundancy(layer: int) -> float:
        others = [s[layer][m] for m in members[clusters[layer]] if m != layer]
        return sum(others) / len(others) if others else -math.inf

    def alike(cluster: int) -> float:
        left = [i for i in members[cluster] if i not in order]
        pairs = [s[i][j] for i in left for j in left if i < j]
        return sum(pairs) / len(pairs) if pairs else -math.inf

    waiting = [
        sorted((i for i in own if 0 < i < n - 1), key=lambda i: (-redundancy(i), i))
        for own in members
    ]
    order: list[int] = []
    alone = [c for c, own in enumerate(members) if len(own) == 1]
    order += [queue.pop(0) for c, queue in enumerate(waiting) if queue and c not in alone]
    while any(waiting):
        best = max((c for c, queue in enumerate(waiting) if queue), key=lambda c: (alike(c), -c))
        order.append(waiting[best].pop(0))
    return [*order, *([n - 1] if n > 1 else []), 0]
