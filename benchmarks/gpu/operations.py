"""How many floating-point operations answering some requests needs, whoever does it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from streamline.engine.decoder import Decoder
from streamline.evaluation.scoring.packing import Request

__all__ = ["distinct", "useful_operations"]


def distinct(requests: Sequence[Request]) -> tuple[int, int, int]:
    """Nodes of the requests' prefix trees, their summed depths, and scored places.

    Returns:
        Distinct tokens; for these the sum of the numbers of tokens each attends to, itself
        included; distinct places whose output is scored. Tasks share nothing.
    """
    tokens = attended = places = 0
    tasks: dict[str, list[Request]] = {}
    for request in requests:
        tasks.setdefault(request.task, []).append(request)
    for members in tasks.values():
        before: tuple[int, ...] = ()
        scored: set[tuple[int, ...]] = set()
        for request in sorted(members, key=lambda r: r.inputs):
            ids = request.inputs
            shared = 0
            while shared < min(len(ids), len(before)) and ids[shared] == before[shared]:
                shared += 1
            tokens += len(ids) - shared
            attended += (len(ids) * (len(ids) + 1) - shared * (shared + 1)) // 2
            scored.update(ids[:n] for n in range(len(request.context), len(ids) + 1))
            before = ids
        places += len(scored)
    return tokens, attended, places


def useful_operations(decoder: Decoder, requests: Sequence[Request]) -> float:
    """Operations of the dense model, a product counting two: linear layers, attention, head."""
    tokens, attended, places = distinct(requests)
    weights = sum(
        part.weight.numel()
        for layer in decoder.layers
        for part in layer.modules()
        if isinstance(part, nn.Linear)
    )
    config = decoder.config
    width = int(config.hidden_size)  # of all heads together
    return (
        2.0 * weights * tokens
        + 4.0 * width * attended * decoder.n_layers
        + 2.0 * width * config.vocab_size * places
    )
