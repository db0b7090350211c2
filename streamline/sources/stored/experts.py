"""The experts of a mixture, which checkpoints hold one by one, as the tensors that models have.

A layer of `transformers` keeps what goes into all its experts in one tensor, `gate_up_proj`
[experts, 2 * inner, D], and what comes out in another, `down_proj` [experts, D, inner]; files hold
three matrices for each expert. In the order of experts, gate before up, the numbers of the one are
those of the others, so nothing is computed: the tensor's parts are read one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from streamline.sources.stored.places import StoredTensor

__all__ = ["with_experts_joined"]

_EXPERT = re.compile(
    r"(?P<layer>.*)\.(mlp|block_sparse_moe)\.experts\.(?P<number>\d+)"
    r"\.(?P<matrix>gate_proj|up_proj|down_proj|w1|w2|w3)\.weight"
)
_ROUTER = re.compile(r"(?P<layer>.*)\.block_sparse_moe\.gate\.weight")
#: Which tensor a matrix belongs to, and its place there.
_PLACES = {
    "gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1), "down_proj": ("down_proj", 0),
    "w1": ("gate_up_proj", 0), "w3": ("gate_up_proj", 1), "w2": ("down_proj", 0),
}  # fmt: skip


def with_experts_joined(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Stored tensors under the names that a model has for them.

    Args:
        tensors: Stored tensors by their names in the files.

    Returns:
        The same, the matrices of a layer's experts as two tensors. Those that do not make one (an
        expert is missing, or shapes or number formats differ) stay as they are.
    """
    joined: dict[str, StoredTensor] = {}
    groups: dict[str, dict[tuple[int, int], str]] = {}
    for name, place in tensors.items():
        expert, router = _EXPERT.fullmatch(name), _ROUTER.fullmatch(name)
        if expert is not None:
            tensor, rank = _PLACES[expert["matrix"]]
            group = groups.setdefault(f"{expert['layer']}.mlp.experts.{tensor}", {})
            group[int(expert["number"]), rank] = name
        elif router is not None:
            joined[f"{router['layer']}.mlp.gate.weight"] = _join([(name, place)], place.shape)
        else:
            joined[name] = place
    for name, found in groups.items():
        ranks = 2 if name.endswith("gate_up_proj") else 1
        n, parts = len(found) // ranks, [(found[at], tensors[found[at]]) for at in sorted(found)]
        whole = sorted(found) == [(number, rank) for number in range(n) for rank in range(ranks)]
        kinds = {(one.shape, one.dtype, one.stride) for _, one in parts}
        if whole and len(kinds) == 1 and len(parts[0][1].shape) == 2 and not parts[0][1].stride:
            n_out, n_in = parts[0][1].shape
            joined[name] = _join(parts, (n, ranks * n_out, n_in))
        else:
            joined |= dict(parts)
    return joined


def _join(parts: list[tuple[str, StoredTensor]], shape: tuple[int, ...]) -> StoredTensor:
    first = parts[0][1]
    return StoredTensor(
        first.file, first.start, first.stop, shape, first.dtype, first.stride, tuple(parts)
    )
