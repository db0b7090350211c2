"""What is required of what a method has made: finite numbers, and the same on every process.

Example::

    require_finite(target, pruned, decoder)
    require_alike(target, pruned, decoder)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from streamline.api.variants import Target
from streamline.distributed.sums import alike
from streamline.distributed.work import broadcast
from streamline.engine.decoder import Decoder
from streamline.engine.finite import bad_weight
from streamline.errors import MethodError, NotFiniteError
from streamline.method import Pruned

__all__ = ["require_alike", "require_finite"]


def require_finite(target: Target, pruned: Pruned, decoder: Decoder) -> None:
    """Refuse modules, a model or notes of a method that are not finite.

    Raises:
        NotFiniteError: With the layer and the weight, or the note.
    """
    given = {id(p) for p in decoder.model.parameters()}
    made: dict[str, nn.Module] = {
        f"the module in place of layer {pruned.plan.steps[i].layer}": module
        for i, module in pruned.modules.items()
    }
    made |= {f"the start of {student.span}": student.module for student in pruned.students}
    if pruned.model is not None:
        made["the model it made"] = pruned.model
    for what, module in made.items():
        own = ((name, p) for name, p in module.named_parameters() if id(p) not in given)
        bad = bad_weight(own)
        if bad is not None:
            raise NotFiniteError(
                f"prune {target.name}: {bad} of {what} holds NaN or infinity; no model can be "
                "made of it (a float16 model: take bfloat16)"
            )
    odd = _odd_note(pruned.notes)
    if odd is not None:
        raise NotFiniteError(f"prune {target.name}: its note {odd} is not finite")


def require_alike(target: Target, pruned: Pruned, decoder: Decoder) -> None:
    """Let all processes have what the first decided: its weights are sent, its plan must be theirs.

    Raises:
        MethodError: If the method decided otherwise here.
    """
    plan = pruned.plan.to_json()
    if broadcast(plan) != plan:
        raise MethodError(
            f"prune {target.name}: it decided otherwise on another process, of the same model, "
            "calibration and seed; a method must take what is random from its seed"
        )
    given = {id(p) for p in decoder.model.parameters()}
    made = [*pruned.modules.values(), *(student.module for student in pruned.students)]
    every = nn.ModuleList([*made, *([pruned.model] if pruned.model is not None else [])])
    alike(p for p in every.parameters() if id(p) not in given)


def _odd_note(value: Any, name: str = "") -> str | None:
    """The dotted name of the first float of some notes that is not finite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else name
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    found = (_odd_note(item, f"{name}.{key}" if name else str(key)) for key, item in items)
    return next((odd for odd in found if odd is not None), None)
