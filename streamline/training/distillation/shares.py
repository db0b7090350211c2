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
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from streamline.distributed import sums
from streamline.distributed.sums import reduced
from streamline.distributed.team import leads, team
from streamline.engine.assemble import shared_copy
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError, UnsupportedModelError

__all__ = ["Shares", "can_divide"]

_PATIENCE = timedelta(minutes=1)  # for the others, which compute as much


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
        self._mesh = _mesh(student.device.type)
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
        fsdp.share_comm_ctx(cast("list[fsdp.FSDPModule]", self.layers))

    def _add(self, name: str, layer: nn.Module) -> None:
        """Divide a layer's weights."""
        copied = shared_copy(layer).eval()
        made: dict[int, nn.Parameter] = {}
        for part in copied.modules():
            for own, old in part._parameters.items():
                if old is not None:
                    new = old.detach().to(torch.float32, copy=True).contiguous()
                    part._parameters[own] = made.setdefault(id(old), nn.Parameter(new))
        divided = fsdp.fully_shard(copied, mesh=self._mesh, reshard_after_forward=True)
        divided.set_gradient_divide_factor(1.0)
        divided.set_force_sum_reduction_for_comms(True)
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
        squares = {True: 0.0, False: 0.0}
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                square = parameter.grad.double().square().sum()
                squares[name in self.parameters] += float(square)
        (parts,) = reduced((), [squares[True]])
        norm = math.sqrt(parts + squares[False])
        if math.isfinite(norm) and norm > most:
            for gradient in gradients:
                gradient.mul_(most / (norm + 1e-6))
        return norm

    def whole(self, name: str, part: Tensor) -> Tensor:
        """What the parts of a tensor that is divided as a weight make together.

        Args:
            name: The weight.
            part: This process's part.
        """
        held = self._divided[name]
        divided = DTensor.from_local(
            part.detach(), self._mesh, [Shard(0)], run_check=False,
            shape=held.shape, stride=held.stride(),
        )  # fmt: skip
        return divided.full_tensor()

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


@cache
def _mesh(device: str) -> DeviceMesh:
    """The processes, each at its place; asked for by all alike."""
    if not hasattr(fsdp, "share_comm_ctx"):
        raise ConfigError("weights that are trained in parts need a newer PyTorch, such as 2.13")
    if device == "cpu":
        return DeviceMesh.from_group(dist.new_group(backend="gloo", timeout=_PATIENCE), device)
    if sums.gpus is None:
        raise ConfigError(
            "weights that are trained in parts need a GPU for each process and NCCL; launch one "
            "process for each GPU, or take kd.trainees lora or replacement"
        )
    return DeviceMesh.from_group(sums.gpus, device)
