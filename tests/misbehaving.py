"""Methods that break their promises, each in one way: what they do must stay theirs."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from streamline.calibration import Calibration
from streamline.engine.decoder import Decoder
from streamline.method import DepthMethod, Method, Pruned, Size
from streamline.plan import Plan, Span
from streamline.training.student import Recipe, Student


@dataclass(frozen=True, kw_only=True)
class Good(DepthMethod):
    """Keeps every promise."""

    name: ClassVar[str] = "good"
    paper: ClassVar[str] = "a test"

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        n = calibration.n_layers
        return Plan.drop(n, range(n - 1 - n_remove, n - 1))

    def spoil(self, decoder: Decoder, calibration: Calibration, batches: Tensor) -> None:
        """What a subclass does before it prunes."""

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        self.spoil(decoder, calibration, batches)
        return super().prune(decoder, calibration, sparsity, batches, seed)


class Mutates(Good):
    @torch.no_grad()
    def spoil(self, decoder: Decoder, *_: Any) -> None:
        for parameter in decoder.layers[2].parameters():
            parameter.zero_()


class WritesData(Good):
    """Goes past torch's count of writes."""

    def spoil(self, decoder: Decoder, *_: Any) -> None:
        decoder.layers[2].mlp.up_proj.weight.data[3].zero_()


class SwapsData(Good):
    def spoil(self, decoder: Decoder, *_: Any) -> None:
        weight = decoder.layers[2].mlp.up_proj.weight
        weight.data = weight.data * 2


class SwapsParameter(Good):
    def spoil(self, decoder: Decoder, *_: Any) -> None:
        linear = decoder.layers[2].mlp.up_proj
        linear.weight = nn.Parameter(linear.weight.detach() * 2)


class SwapsLayer(Good):
    def spoil(self, decoder: Decoder, *_: Any) -> None:
        decoder.layers[1] = decoder.layers[2]


class SwapsModule(Good):
    def spoil(self, decoder: Decoder, *_: Any) -> None:
        decoder.layers[1].mlp.act_fn = nn.Identity()


class Hooks(Good):
    def spoil(self, decoder: Decoder, *_: Any) -> None:
        decoder.layers[1].register_forward_hook(
            lambda module, args, out: (
                (out[0] * 0.5, *out[1:]) if isinstance(out, tuple) else out * 0.5
            )
        )


class HooksAll(Good):
    def spoil(self, *_: Any) -> None:
        nn.modules.module.register_module_forward_hook(
            lambda module, args, out: out * 0.5 if isinstance(module, nn.SiLU) else None
        )


class Forwards(Good):
    def spoil(self, decoder: Decoder, *_: Any) -> None:
        decoder.layers[1].mlp.forward = lambda hidden: hidden


class Trains(Good):
    def spoil(self, decoder: Decoder, *_: Any) -> None:
        decoder.model.train()


class Freezes(Good):
    def spoil(self, decoder: Decoder, *_: Any) -> None:
        decoder.model.requires_grad_(False)


class Configures(Good):
    def spoil(self, decoder: Decoder, *_: Any) -> None:
        decoder.config.rms_norm_eps = 10.0
        decoder.layers[1].input_layernorm.variance_epsilon = 10.0


class Halves(Good):
    def spoil(self, *_: Any) -> None:
        torch.set_default_dtype(torch.float16)


class WritesTokens(Good):
    def spoil(self, decoder: Decoder, calibration: Calibration, batches: Tensor) -> None:
        batches.zero_()


class WritesTokensEarly(Good):
    def calibrate(self, decoder: Decoder, batches: Tensor) -> Calibration:
        found = super().calibrate(decoder, batches)
        batches.zero_()
        return found


class WritesStatistics(Good):
    def spoil(self, decoder: Decoder, calibration: Calibration, *_: Any) -> None:
        calibration.cosine.zero_()


class Poisons(Good):
    """Its own calibration, a random one, under the key that all share."""

    def calibrate(self, decoder: Decoder, batches: Tensor) -> Calibration:
        found = super().calibrate(decoder, batches)
        return replace(found, cosine=torch.rand_like(found.cosine))

    def calibration_key(self) -> str:
        return "shared"


class Seeds(Good):
    def spoil(self, *_: Any) -> None:
        torch.manual_seed(7)
        random.seed(7)


class SizeRaises(Good):
    def size(self, decoder: Decoder, sparsity: float) -> Size:
        raise RuntimeError("no size")


class SizeExits(Good):
    def size(self, decoder: Decoder, sparsity: float) -> Size:
        sys.exit(3)


class UnsupportedRaises(Good):
    def unsupported(self, decoder: Decoder) -> str | None:
        raise KeyError("no idea")


class KeyRaises(Good):
    def calibration_key(self) -> str:
        raise RuntimeError("no key")


@dataclass(frozen=True, kw_only=True)
class PostInitRaises(Good):
    def __post_init__(self) -> None:
        raise ZeroDivisionError("no start")


@dataclass(frozen=True, kw_only=True)
class PostInitExits(Good):
    def __post_init__(self) -> None:
        sys.exit(0)


@dataclass(frozen=True, kw_only=True, repr=False)
class ReprRaises(Good):
    def __repr__(self) -> str:
        raise TypeError("no name")


class Exits(Good):
    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        sys.exit(3)


class CalibrateExits(Good):
    def calibrate(self, decoder: Decoder, batches: Tensor) -> Calibration:
        sys.exit("enough")


class GivesNothing(Good):
    def prune(self, *_: Any, **__: Any) -> Any:
        return None


class Measures(Good):
    def calibrate(self, decoder: Decoder, batches: Tensor) -> Any:
        return {"cosine": 1}


class Scribbles(Good):
    def explain(self, calibration: Calibration, n_remove: int) -> dict[str, Any]:
        return {"scores": torch.ones(2), "best": float("nan")}


@dataclass(frozen=True, kw_only=True)
class Replacing(Method):
    """Replaces layer 2 by a module that a subclass makes."""

    name: ClassVar[str] = "replacing"
    paper: ClassVar[str] = "a test"

    def module(self, decoder: Decoder) -> nn.Module | None:
        return None

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        if not sparsity:
            return Pruned(Plan.dense(decoder.n_layers))
        module = self.module(decoder)
        modules = {} if module is None else {2: module}
        return Pruned(Plan.replace(decoder.n_layers, Span(2, 4), "own"), modules)


class _InPlace(nn.Module):
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states.mul_(0.5)


class WritesStates(Replacing):
    """Computes into its input, which other paths read too: right for itself."""

    def module(self, decoder: Decoder) -> nn.Module:
        return _InPlace()


class _Leaving(nn.Module):
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sys.exit(5)


class ForwardExits(Replacing):
    def module(self, decoder: Decoder) -> nn.Module:
        return _Leaving()


class TrainsDense(Replacing):
    trains: ClassVar[bool] = True

    def prune(self, decoder: Decoder, *rest: Any, **more: Any) -> Pruned:
        pruned = super().prune(decoder, *rest, **more)
        layer = decoder.layers[3]
        return replace(pruned, modules={2: layer}, students=[Student(Span(2, 4), layer, Recipe())])


@dataclass(frozen=True, kw_only=True)
class Abstract(Method):
    name: ClassVar[str] = "abstract"
    paper: ClassVar[str] = "a test"


@dataclass(frozen=True, kw_only=True)
class Fields(Good):
    """Fields of kinds that no check knows."""

    name: ClassVar[str] = "fields"

    anything: object = None
    sloppy: int = None  # type: ignore[assignment]
    table: dict[str, list[int]] = field(default_factory=dict)


#: What each must be told, in a run; the others must be none the wiser.
FAULTS = {
    "Mutates": "prune changed the weight model.layers.2",
    "WritesData": "prune changed the weight model.layers.2.mlp.up_proj.weight; ",
    "SwapsData": "prune changed the weight model.layers.2.mlp.up_proj.weight; ",
    "SwapsParameter": "prune changed the parameters of model.layers.2.mlp.up_proj",
    "SwapsLayer": "prune changed the list of layers",
    "SwapsModule": "prune changed the modules of model.layers.1.mlp",
    "Hooks": "prune changed the hooks of model.layers.1;",
    "HooksAll": "prune changed torch's hooks of all modules",
    "Forwards": "prune changed the forward of model.layers.1.mlp",
    "Trains": "prune changed the training mode of the model itself",
    "Freezes": "prune changed the gradient of model.embed_tokens.weight",
    "Configures": "prune changed the config",
    "Halves": "prune changed torch's default dtype",
    "SizeRaises": "no size",
    "SizeExits": "unsupported or size called sys.exit(3)",
    "UnsupportedRaises": "no idea",
    "KeyRaises": "no key",
    "PostInitRaises": "cannot be made: ZeroDivisionError: no start",
    "PostInitExits": "cannot be made: it called sys.exit(0)",
    "ReprRaises": "cannot be made: TypeError: no name",
    "Exits": "prune called sys.exit(3)",
    "CalibrateExits": "calibrate called sys.exit('enough')",
    "GivesNothing": "prune must return a Pruned with a Plan, got None",
    "Measures": "calibrate must return a Calibration, got {'cosine': 1}",
    "Scribbles": "prune gave notes that JSON cannot hold",
    "Replacing": "prune gave no module for step 2 of its plan",
    "ForwardExits": "called sys.exit(5)",
    "TrainsDense": "prune gave the student for layers 2 to 3 the dense model's own weights",
}
#: What is right for itself and must be nothing to the others.
HARMLESS = (
    "WritesTokens",
    "WritesTokensEarly",
    "WritesStatistics",
    "Poisons",
    "Seeds",
    "WritesStates",
)
