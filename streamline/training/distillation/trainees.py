"""Weights of a model that are trained themselves, in float32, without adapters.

Example::

    with weights(decoder, dense, "replacement") as (parameters, _):
        ...                                     # the model holds float32 copies
    # the model has the trained weights in its own dtype; the dense model is as it was
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from streamline.distributed.team import team
from streamline.distributed.work import shared
from streamline.engine.decoder import Decoder, eval_mode
from streamline.engine.memory import free_memory, room
from streamline.errors import UnsupportedModelError
from streamline.training.distillation.settings import Trainees
from streamline.training.parts.shares import Shares, can_divide, views_allowed
from streamline.training.schedule import divides

__all__ = ["divided_among", "weights"]


@contextmanager
def weights(
    student: Decoder, dense: Decoder, trainees: Trainees, shares: Shares | None = None
) -> Iterator[tuple[dict[str, nn.Parameter], list[nn.Module]]]:
    """Train weights of a model, and nothing else.

    Tensors that the model shares with the dense one are not written to: trained weights are new
    tensors. If the body fails, the model has its old ones again.

    Args:
        student: The pruned model.
        dense: The dense model.
        trainees: ``"all"``, or ``"replacement"``: what its layers have that the dense model has
            not.
        shares: Of all weights, the layers' in parts; None to train them here.

    Yields:
        The trained parameters by name, float32, and the modules whose dropout is on: none.

    Raises:
        UnsupportedModelError: If the model has no weights of its own.
    """
    model = student.model
    chosen = _chosen(student, dense, trainees)
    touched = [model] if trainees == "all" else [x for x in student.layers if _holds(x, chosen)]
    elsewhere = {id(p) for x in student.layers for p in x.parameters()} if shares else set()
    places = [
        (part, name, parameter)
        for module in touched
        for part in module.modules()
        for name, parameter in part._parameters.items()
        if parameter is not None and id(parameter) not in elsewhere
    ]
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    held = {id(old): old for _, _, old in places}
    if any(old.is_meta for old in held.values()):
        raise UnsupportedModelError(
            f"distillation of {trainees} trains whole layers, and those of {student.name} come one "
            "at a time: take kd.trainees lora, or run it without --stream"
        )
    copies = {
        key: nn.Parameter(old.detach().to(torch.float32, copy=True), requires_grad=key in chosen)
        for key, old in held.items()
    }
    try:
        with eval_mode(model), views_allowed():
            model.requires_grad_(False)
            for part, name, old in places:
                part._parameters[name] = copies[id(old)]
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            yield trained | (shares.parameters if shares else {}), []
        if shares is not None:
            _take_back(model, shares, flags)
        for key in chosen & set(held):
            held[key] = nn.Parameter(
                copies[key].detach().to(held[key].dtype), requires_grad=flags[held[key]]
            )
    finally:
        for part, name, old in places:
            part._parameters[name] = held[id(old)]
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def divided_among(decoder: Decoder, wanted: bool | None) -> bool:
    """Whether each process trains its part of a model's weights.

    Args:
        decoder: The model.
        wanted: What the caller says; None for what :func:`streamline.training.schedule.divides`
            says of the first one's GPU.
    """
    if team().size == 1 or wanted is not None:
        return bool(wanted) and team().size > 1

    def too_large() -> bool:
        free_memory()
        if decoder.device.type != "cuda":
            return False
        there, able = room(decoder.device), can_divide("cuda")
        return divides(decoder.n_parameters(), there, team().size, able=able)

    return shared(too_large)


def _take_back(model: nn.Module, shares: Shares, flags: dict[nn.Parameter, bool]) -> None:
    """Put whole trained weights, new tensors, in the place of those that were divided."""
    made = {}
    by_name = dict(model.named_parameters())
    for name, part in shares.parameters.items():
        found = by_name[name]
        whole = shares.whole(name, part).to(found.dtype)
        made[id(found)] = nn.Parameter(whole, requires_grad=flags[found])
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and id(old) in made:
                module._parameters[name] = made[id(old)]


def _chosen(student: Decoder, dense: Decoder, trainees: Trainees) -> set[int]:
    """The ids of the parameters that are trained."""
    if trainees == "all":
        return {id(parameter) for parameter in student.model.parameters()}
    shared = {id(parameter) for parameter in dense.model.parameters()}
    own = {id(p) for layer in student.layers for p in layer.parameters()} - shared
    if not own:
        raise UnsupportedModelError(
            "distillation of the replacement: the pruned model has no weights of its own to train, "
            "only layers of the dense one; take kd.trainees lora or all"
        )
    return own


def _holds(module: nn.Module, chosen: set[int]) -> bool:
    return any(id(parameter) in chosen for parameter in module.parameters())
