"""All weights of a model trained by several processes, of which each holds a part.

Float32 weights, gradients and moments of a model that learns are ten times its weights in bfloat16.
PyTorch's ``fully_shard`` (FSDP2) divides those of the layers among the processes, brings a layer's
weights together while it runs, and its gradients, summed, to the parts. What is outside the layers
each process holds whole. The engine runs layer by layer, so accelerate's wrapper of a whole model,
which does the same below, has nothing to wrap.

All processes must run each layer equally often. A sum that waits for a process that failed or is
gone ends after a minute.

Example::

    shares = Shares(student)
    loss(shares.layers).backward()
    shares.collect()                                    # gradients
    optimise(shares.parameters)                         # plain tensors: this process's parts
    shares.whole(name, shares.parameters[name])         # by all processes alike
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from itertools import pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.utils.checkpoint import checkpoint

from streamline.distributed import sums
from streamline.distributed.exchange import meet
from streamline.distributed.sums import reduced
from streamline.distributed.team import leads, team
from streamline.engine.assemble import shared_copy
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError, UnsupportedModelError

__all__ = [
    "Shares", "brought_together", "can_divide", "divided", "in_order", "processes", "run_again",
    "views_allowed",
]  # fmt: skip

_PATIENCE = timedelta(minutes=1)  # for the others, which compute as much
_groups: list[Any] = []  # the last training's, where there are no GPUs


class Shares:
    """The layers of a model with float32 weights, of which this process holds a part.

    Args:
        student: The model; its own layers stay as they are.

    Attributes:
        layers: What runs in the place of its layers.
        parameters: This process's parts of their weights, by the names that the model has for them.
        sizes: Numbers in the whole ones.

    Raises:
        ConfigError: If processes share a GPU.
        UnsupportedModelError: If layers share weights.
    """

    def __init__(self, student: Decoder) -> None:
        self._mesh = processes(student.device.type)
        self.layers: list[nn.Module] = []
        self.parameters: dict[str, nn.Parameter] = {}
        self.sizes: dict[str, int] = {}
        self._divided: dict[str, DTensor] = {}
        seen: set[int] = set()
        for index, layer in enumerate(student.layers):
            own = {id(parameter) for parameter in layer.parameters()}
            if own & seen:
                raise UnsupportedModelError(
                    f"layer {index} of {student.name} shares weights with another one, and cannot "
                    "be trained in parts; take kd.trainees lora or replacement"
                )
            seen |= own
            self._add(f"{student.family.layers}.{index}", layer)
        in_order(self.layers)

    def _add(self, name: str, layer: nn.Module) -> None:
        """Divide a layer's weights."""

        def trained(old: nn.Parameter) -> nn.Parameter:
            return nn.Parameter(old.detach().to(torch.float32, copy=True).contiguous())

        copied = divided(shared_copy(layer).eval(), self._mesh, trained)
        shared = cast("fsdp.FSDPModule", copied)
        shared.set_gradient_divide_factor(1.0)
        shared.set_force_sum_reduction_for_comms(True)
        self.layers.append(copied)
        for own, parameter in copied.named_parameters():
            held = cast("DTensor", parameter)
            self._divided[f"{name}.{own}"] = held
            self.sizes[f"{name}.{own}"] = held.numel()
            with torch.no_grad():
                self.parameters[f"{name}.{own}"] = nn.Parameter(held.to_local())

    def collect(self) -> None:
        """Give the parts the gradients that were summed."""
        for name, held in self._divided.items():
            gradient = cast("DTensor | None", held.grad)
            self.parameters[name].grad = None if gradient is None else gradient.to_local()
            held.grad = None

    def clip(self, parameters: Mapping[str, nn.Parameter], most: float) -> float:
        """Bound the norm of all gradients, as :func:`torch.nn.utils.clip_grad_norm_`.

        Args:
            parameters: All that are trained; those that are no parts are alike on all processes.
            most: The largest norm.

        Returns:
            The norm as it was.
        """
        gradients: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                gradients[name in self.parameters].append(parameter.grad)
        every = [*gradients[True], *gradients[False]]
        squares = [_squares(found) for found in gradients.values() if found]
        read = iter(torch.stack(squares).tolist() if squares else [])  # once waits for the device
        own, alike = (next(read) if found else 0.0 for found in gradients.values())
        (parts,) = reduced((), [own])
        norm = math.sqrt(parts + alike)
        if math.isfinite(norm) and norm > most:
            torch._foreach_mul_(every, most / (norm + 1e-6))
        return norm

    def whole(self, name: str, part: Tensor) -> Tensor:
        """What the parts of a tensor that is divided as a weight make together.

        Args:
            name: The weight.
            part: This process's part.
        """
        return brought_together(self._divided[name], part, self._mesh)

    def gathered(self, name: str, parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Tensors of a parameter as a file holds them; the first process has them whole.

        Args:
            name: The parameter; one that is not divided has whole tensors.
            parts: This process's, of the parameter's shape or of one number.
        """
        if name not in self.sizes:
            return parts
        found = {}
        for key, part in parts.items():
            whole = self.whole(name, part) if part.dim() else part
            if leads():
                found[key] = whole.cpu()
            else:  # keeps pace: a part that is sent long before the first one copies counts as lost
                whole.flatten()[:1].cpu()
        return found

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a tensor of a parameter, if it is divided."""
        if name not in self.sizes or not whole.dim():
            return whole
        shard, parts = team(), whole.chunk(team().size)
        return (parts[shard.rank] if shard.rank < len(parts) else whole[:0]).clone()


def can_divide(device: str) -> bool:
    """Whether these processes can train weights in parts on their devices of a kind."""
    return hasattr(fsdp, "share_comm_ctx") and (device == "cpu" or sums.gpus is not None)


def divided(
    layer: nn.Module, mesh: DeviceMesh, made: Callable[[nn.Parameter], nn.Parameter]
) -> nn.Module:
    """Divide the weights of a layer, in place; what is trained beside them stays as it is.

    Args:
        layer: A layer of its own; its parameters may be those of others.
        mesh: The processes.
        made: Gives the whole weight of which this process keeps a part; one that it gives back as
            it came is not divided.
    """
    known: dict[int, nn.Parameter] = {}
    beside: set[nn.Parameter] = set()
    for part in layer.modules():
        for own, old in part._parameters.items():
            if old is None:
                continue
            if id(old) not in known:
                known[id(old)] = made(old)
            part._parameters[own] = new = known[id(old)]
            if new is old:
                beside.add(new)
    fsdp.fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=beside)
    return layer


def run_again(layer: nn.Module, again: Callable[[], AbstractContextManager[None]]) -> nn.Module:
    """Let a layer keep nothing for its gradients but its input, in place; it runs again for them.

    Args:
        layer: A layer of its own, before it is divided: so its weights are there when it runs.
        again: Called when it runs, for what is to be in force when it does so again.
    """
    forward = layer.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(
            forward, *args, **kwargs, use_reentrant=False, preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), again()),
        )  # fmt: skip

    layer.forward = run
    return layer


@contextmanager
def views_allowed() -> Iterator[None]:
    """Within it layers in parts may give views: nothing computes into what a layer gives."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        yield


def brought_together(held: DTensor, part: Tensor, mesh: DeviceMesh) -> Tensor:
    """What the parts of a tensor that is divided as a weight make together.

    Args:
        held: The divided weight.
        part: This process's part.
        mesh: The processes.
    """
    whole = DTensor.from_local(
        part.detach(), mesh, [Shard(0)], run_check=False, shape=held.shape, stride=held.stride()
    )
    return whole.full_tensor()


def in_order(*models: Sequence[nn.Module]) -> None:
    """Let each layer bring the next one's weights together while it runs.

    Args:
        *models: The layers of each model in their order; those that are whole are passed over.
    """
    orders: list[list[fsdp.FSDPModule]] = [
        [one for one in layers if isinstance(one, fsdp.FSDPModule)] for layers in models
    ]
    every = [one for order in orders for one in order]
    for one in every:  # each is run by itself: first, or it would start what the others share anew
        one._get_fsdp_state()._lazy_init()
    fsdp.share_comm_ctx(every)
    for order in orders:
        for one, following in pairwise(order):
            one.set_modules_to_forward_prefetch([following])


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of all squares in some tensors of one device, a scalar, float64."""
    norms = torch._foreach_norm(list(tensors), 2, dtype=torch.float64)
    return torch.stack(norms).square().sum()


def processes(device: str) -> DeviceMesh:
    """The processes, each at its place; asked for by all alike, anew for each training.

    One that failed before is not waited for, and what is left of its exchange is not met again.

    Args:
        device: The kind of device that each of them works on.

    Raises:
        ConfigError: If processes share a GPU, or PyTorch is too old.
    """
    if not hasattr(fsdp, "share_comm_ctx"):
        raise ConfigError(
            "weights of which each process has a part need a newer PyTorch, such as 2.13"
        )
    meet("weights in parts")
    if device == "cpu":
        while _groups:
            dist.destroy_process_group(_groups.pop())
        _groups.append(dist.new_group(backend="gloo", timeout=_PATIENCE))
        return DeviceMesh.from_group(_groups[0], device)
    if sums.gpus is None:
        raise ConfigError(
            "weights of which each process has a part need a GPU for each process and NCCL; launch "
            "one process for each GPU"
        )
    return DeviceMesh.from_group(sums.gpus, device)
