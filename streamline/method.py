"""The contract of a pruning method, and what a method hands on.

A method is a frozen keyword-only dataclass: its fields are its hyper-parameters with the paper's
defaults, and its repr is the provenance of a run. Most methods are a scoring rule of a few lines on
:class:`DepthMethod`.

Example:
    @dataclass(frozen=True, kw_only=True)
    class Deepest(DepthMethod):
        name: ClassVar[str] = "deepest"
        paper: ClassVar[str] = "a control"

        def select(self, calibration: Calibration, n_remove: int) -> Plan:
            n = calibration.n_layers
            return Plan.drop(n, range(n - n_remove, n))
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from torch import Tensor, nn

from streamline.calibration import BATCH_TOKENS, Calibration, measure
from streamline.engine.budget import Effort, layers_to_remove, statistics_flops
from streamline.engine.budget import Size as Size
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, Path, dense_path
from streamline.errors import ConfigError, MethodError
from streamline.fields import check_fields
from streamline.plan import Plan
from streamline.training.student import Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Class attributes of :class:`Method` that have another name now: old name, new name.
RENAMED = {"streams": "supports_streaming", "whole": "returns_model"}


@dataclass
class Pruned:
    """What a method makes of a model.

    Attributes:
        plan: Which layers stay, go, or are replaced.
        modules: For each step of the plan that is not a dense layer, the module that runs there.
        model: A model of its own, for methods that change every layer; else None.
        students: Modules that the training stage has to fit.
        notes: Facts worth showing (runner-up spans, thresholds found, trials counted); JSON.
        changed: For each step what a recovery has put in its place, of a model whose layers come
            one at a time; not a method's.
    """

    plan: Plan
    modules: dict[int, nn.Module] = field(default_factory=dict)
    model: PreTrainedModel | None = None
    students: list[Student] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    changed: dict[int, nn.Module] = field(default_factory=dict)

    def path(self, decoder: Decoder, name: str = "") -> Path:
        """The way through the model that this plan describes.

        Args:
            decoder: The dense model.
            name: A label for progress and errors.

        Returns:
            A path that shares the dense model's layers, or the dense path of its own model.
        """
        if self.model is not None:
            return dense_path(Decoder(self.model), name)
        dense = {i: decoder.layers[s.layer] for i, s in enumerate(self.plan.steps) if s.dense}
        run = {**self.modules, **dense, **self.changed}
        nodes = tuple(Node(run[i], step.layer) for i, step in enumerate(self.plan.steps))
        return Path(decoder, nodes, name)

    def n_parameters(self, decoder: Decoder) -> int:
        """Parameters of the pruned model, tied ones once."""
        return self.path(decoder).n_parameters()


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to make a model smaller.

    Class attributes:
        name: The name on the command line.
        paper: Where it comes from (``arXiv:...``), or what it is a control for.
        trains: Whether it needs the training stage.
        families: Names of the model families it works on, or ``("all",)``.
        supports_streaming: Whether a ``calibrate`` or ``prune`` of its own needs of the model no
            more than its config, statistics and losses of paths, so that it works where layers are
            read one at a time (:mod:`streamline.streaming.decoder`).
        returns_model: Whether ``prune`` returns a model of its own (:attr:`Pruned.model`); a run
            makes and evaluates these one at a time, so that memory holds one beside the dense
            model.
        trainable: Whether LoRA or distillation may follow it.
        by_domain: Whether ``prune`` is also given, as extras of its calibration, the cosines of
            each domain of the packaged text (:meth:`Calibration.beside`).
        in_all: Whether ``--methods all`` means it too; written as False, in the class itself, by a
            method that can do nothing before a field is set, or prunes nothing.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    trains: ClassVar[bool] = False
    families: ClassVar[tuple[str, ...]] = ("all",)
    supports_streaming: ClassVar[bool] = False
    returns_model: ClassVar[bool] = False
    trainable: ClassVar[bool] = True
    by_domain: ClassVar[bool] = False
    in_all: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class that sets an attribute under its old name, which nothing reads.

        Raises:
            ConfigError: If it has one of :data:`RENAMED`.
        """
        super().__init_subclass__(**kwargs)
        for old, new in RENAMED.items():
            if hasattr(cls, old):
                raise ConfigError(
                    f"{cls.__module__}.{cls.__qualname__} sets `{old}`, which is now called "
                    f"`{new}`; rename it (a field of its own needs another name)"
                )

    def __post_init__(self) -> None:
        """Hold the fields against their annotations.

        Raises:
            ConfigError: If a value does not fit.
        """
        check_fields(self)

    def calibrate(self, decoder: Decoder, batches: Tensor) -> Calibration:
        """Measure what the method decides by; leaves the model as it was.

        Args:
            decoder: The dense model.
            batches: Calibration tokens, [N, T], int64.

        Returns:
            By default the statistics of :func:`streamline.calibration.measure`.
        """
        return measure(decoder, batches)

    def calibration_key(self) -> str:
        """Methods with equal keys share one calibration pass and its cache.

        By default all share one that do not measure for themselves; of those that do, methods of
        one class and equal fields. A run keeps the calibrations of different classes apart.
        """
        return "shared" if type(self).calibrate is Method.calibrate else repr(self)

    @abstractmethod
    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Decide what goes, for one sparsity.

        Args:
            decoder: The dense model; it is not changed.
            calibration: What :meth:`calibrate` returned for this model.
            sparsity: Fraction of parameters to remove, in [0, 1); 0 must be the identity.
            batches: Calibration tokens, [N, T], for methods that search.
            seed: Seed of everything random.

        Returns:
            The pruned model as a plan with modules, or as a model of its own.
        """

    def fits(self, decoder: Decoder, calibration: Calibration, sparsity: float) -> Sequence[Any]:
        """What :meth:`prune` will fit to the dense model's states, if that is known beforehand.

        A run sums the fits of all its cells in one pass; a method that names none makes its own.

        Args:
            decoder: The dense model.
            calibration: What :meth:`calibrate` returned for this model.
            sparsity: Fraction of parameters to remove.

        Returns:
            Objects of :class:`streamline.methods.teacher_fits.Fit`.
        """
        return ()

    def rehearse(self, decoder: Decoder, few: Decoder, batches: Tensor, sparsity: float) -> None:
        """Do what holds most memory, on tensors without data, so that a run can be planned.

        It ends where a value is asked for; what lives until then is counted. Nothing here may
        read a tensor's memory (``numpy``). By default the shared calibration, of as many batches
        as it ever holds: one that is read beside the next, and one more.

        Args:
            decoder: The whole model; its weights lie on the meta device.
            few: A model of the same shapes with a few of its layers.
            batches: Calibration tokens without values, [N, T].
            sparsity: Fraction of parameters to remove.
        """
        measure(few, batches[: 3 * max(1, BATCH_TOKENS // batches.shape[1])])

    @property
    def rehearses_shared(self) -> bool:
        """Whether :meth:`rehearse` does the shared calibration and nothing else."""
        return type(self).rehearse is Method.rehearse

    def networks(self, decoder: Decoder, n_removed: int) -> list[nn.Module]:
        """Networks of the shapes trained in place of layers, for planning; none if unknown.

        Args:
            decoder: A model in float32 whose tensors hold no data.
            n_removed: Layers that they replace.
        """
        return []

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort | None:
        """What calibrating and pruning takes, so that a run's hours can be planned.

        Args:
            decoder: The model; its weights may lie on the meta device.
            sparsity: Fraction of parameters to remove, above 0.
            shape: Calibration sequences, and tokens of each.

        Returns:
            None, by default, for a method that does not tell.
        """
        return None

    def unsupported(self, decoder: Decoder) -> str | None:
        """Why the method cannot work on a model, or None if it can."""
        if self.families != ("all",) and decoder.family.name not in self.families:
            return f"{self.name} supports {', '.join(self.families)}, not {decoder.family.name}"
        return None

    def loads(self, model: str, sparsity: float) -> Sequence[str]:
        """Other models that :meth:`prune` loads, beside those that its fields name.

        What they hold is in the key of a cell, and a run keeps to their commits on the hub.

        Args:
            model: The dense model: a short name, hub id or folder.
            sparsity: Fraction of parameters to remove.

        Returns:
            Names as :data:`streamline.fields.ModelName`; by default none.
        """
        return ()

    def size(self, decoder: Decoder, sparsity: float) -> Size | None:
        """What would remain, from the config alone; None if only a run can count it.

        Args:
            decoder: A decoder whose weights may lie on the meta device.
            sparsity: Fraction of parameters to remove.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class DepthMethod(Method):
    """A method that removes whole layers: write :meth:`select`, the rest is given."""

    @abstractmethod
    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        """Choose the layers to remove. Pure: no model, no input or output.

        Args:
            calibration: Statistics of the dense model.
            n_remove: How many layers to remove, at least 1.

        Returns:
            A plan that removes exactly ``n_remove`` layers.
        """

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Solve the number of layers for the sparsity, then :meth:`select`."""
        n_remove = layers_to_remove(decoder, sparsity)
        if n_remove == 0:
            return Pruned(Plan.dense(decoder.n_layers))
        return Pruned(self.select(calibration, n_remove), notes=self.explain(calibration, n_remove))

    def explain(self, calibration: Calibration, n_remove: int) -> dict[str, Any]:
        """Facts of the choice to keep with the plan (scores, runner-ups); JSON."""
        return {}

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort | None:
        """The shared calibration; None for a subclass that measures or decides in another way."""
        own = (type(self).calibrate, type(self).prune)
        if own != (Method.calibrate, DepthMethod.prune):
            return None
        return Effort(statistics_flops(decoder, math.prod(shape)))

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """The count from the layers that would go."""
        return Size.without(decoder, layers_to_remove(decoder, sparsity))


@dataclass(frozen=True, kw_only=True, repr=False)
class Unmade(Method):
    """Stands for a ``spec`` that its own code could not make, and fails wherever it is used."""

    name: ClassVar[str] = "unmade"
    paper: ClassVar[str] = "none"

    spec: str
    reason: str

    def __repr__(self) -> str:
        """What was asked for and why there is none."""
        return f"{self.spec} ({self.reason})"

    def _fail(self) -> NoReturn:
        raise MethodError(f"{self.spec} cannot be made: {self.reason}")

    def unsupported(self, decoder: Decoder) -> str | None:
        """Raise the reason."""
        self._fail()

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Raise the reason."""
        self._fail()
