"""Why a variant is not as much faster as the removed share of its parameters promises.

Example::

    explain(model, dense, values)
    # "decode 1.23x, where 25 % fewer parameters promise 1.33x: weights of widths such as 433 ..."
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import nn

from streamline.engine.decoder import submodule
from streamline.engine.families import family_of
from streamline.evaluation.efficiency.counts import layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["explain"]

_FAR = 0.05  # of the promise; what is nearer needs no reason
_WORTH = 0.05  # a share of the parameters that shows
_EVEN = 16  # kernels like widths that are multiples of it


def explain(model: PreTrainedModel, dense: PreTrainedModel, values: dict[str, Any]) -> str | None:
    """Why measured ratios differ from what the removed share promises, or None if they do not.

    Args:
        model: The variant.
        dense: The dense model.
        values: Of :class:`streamline.results.blocks.efficiency.Efficiency`, as far as measured.
    """
    left = values["parameters"] / values["dense"]["parameters"]
    if model is dense or not left:
        return None
    far = {}
    for phase in ("decode", "prefill"):
        ratio = values[phase][0]["ratio"] if values[phase] else None
        if ratio is None or ratio["lower"] <= 1 / left <= ratio["upper"]:
            continue
        if abs(ratio["median"] * left - 1) > _FAR:
            far[phase] = ratio["median"]
    if not far:
        return None
    measured = ", ".join(f"{phase} {ratio:.2f}x" for phase, ratio in far.items())
    reasons = _reasons(model, dense, values, far) or ["nothing in its shapes explains it"]
    promise = f"{100 * (1 - left):.0f} % fewer parameters promise {1 / left:.2f}x"
    return f"{measured}, where {promise}: {'; '.join(reasons)}"


def _reasons(
    model: PreTrainedModel, dense: PreTrainedModel, values: dict[str, Any], far: dict[str, float]
) -> list[str]:
    found = []
    head, table = _head(model), cast("nn.Embedding", model.get_input_embeddings()).weight
    share = head.numel() / values["parameters"]
    if share > _WORTH and "prefill" in far:
        found.append(
            f"the head, {100 * share:.0f} % of what is left, is computed for the last token of a "
            "prompt alone"
        )
    looked_up = table.numel() / values["parameters"]
    if looked_up > _WORTH and table is not head:
        found.append(f"the embeddings, {100 * looked_up:.0f} % of what is left, are only looked up")
    free = [layer for layer in layers_of(model) if not _attends(layer)]
    if free:
        found.append(
            f"{len(free)} of {len(layers_of(model))} layers have no attention, whose cost grows "
            "with the context and not with its parameters"
        )
    odd = sorted(_odd_widths(model) - _odd_widths(dense))
    if odd:
        found.append(
            f"weights of widths such as {odd[0]}, no multiple of {_EVEN}, are slow to multiply with"
        )
    flops = values["dense"]["flops_per_token"] / max(1, values["flops_per_token"])
    promise = values["dense"]["parameters"] / values["parameters"]
    if abs(flops / promise - 1) > _FAR:
        found.append(f"a token takes {flops:.2f} times fewer FLOPs")
    if values.get("way") in ("static-cache", "cache") and "cuda" in str(model.device):
        found.append("decoding is bound by the launches of kernels, whatever is in them")
    return found


def _head(model: PreTrainedModel) -> Any:
    return submodule(model, family_of(model.config.model_type).head).weight


def _attends(layer: Any) -> bool:
    return any(getattr(module, "layer_idx", None) is not None for module in layer.modules())


def _odd_widths(model: PreTrainedModel) -> set[int]:
    """Widths of the layers' matrices that are no multiples of what kernels like."""
    shapes = (p.shape for layer in layers_of(model) for p in layer.parameters() if p.dim() == 2)
    return {size for shape in shapes for size in shape if size % _EVEN}
