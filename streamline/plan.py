"""Plans: which layers of a model stay, go, or are replaced.

A plan is the outcome of a depth-pruning decision. Layer indices are always those of the dense
model, 0-based; spans are half-open. It holds no weights and is written as JSON.

Example:
    Plan.drop(32, range(21, 29)).removed_layers       # [21, 22, ..., 28]
    Plan.replace(32, Span(21, 30), "ffn").to_json()
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from streamline.errors import PlanError


@dataclass(frozen=True, order=True)
class Span:
    """Consecutive layers ``[start, stop)`` of the dense model."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        """Check the order of the two ends."""
        if not 0 <= self.start <= self.stop:
            raise PlanError(f"span [{self.start}, {self.stop}) needs 0 <= start <= stop")

    def __len__(self) -> int:
        """Number of layers in the span."""
        return self.stop - self.start

    def __contains__(self, layer: int) -> bool:
        """Whether a layer lies in the span."""
        return self.start <= layer < self.stop

    @property
    def layers(self) -> list[int]:
        """The layers of the span."""
        return list(range(self.start, self.stop))


@dataclass(frozen=True)
class Step:
    """One stop on the path of a pruned model.

    Attributes:
        layer: Original index of the layer that runs here, or whose mask and
            positions are used.
        kind: ``"layer"`` without a span for the dense layer as it is; otherwise what runs instead
            (``"ffn"``, ``"swiglu"``, a trained ``"layer"``, ``"merged"``,
            ``"no-attention"``, ...).
        span: The layers that a replacement replaces; None for a dense layer.
    """

    layer: int
    kind: str = "layer"
    span: Span | None = None

    @property
    def dense(self) -> bool:
        """Whether the dense model's own layer runs here."""
        return self.kind == "layer" and self.span is None


@dataclass(frozen=True)
class Plan:
    """The path of a pruned model through the dense model's layers.

    Attributes:
        n_layers: Number of layers of the dense model.
        steps: What runs, in order.
        replacement: Name of the kind of replacement, or None.
    """

    n_layers: int
    steps: tuple[Step, ...]
    replacement: str | None = None

    def __post_init__(self) -> None:
        """Check that every step lies in the model and that dense layers rise."""
        for step in self.steps:
            stop = step.layer if step.span is None else max(step.layer, step.span.stop - 1)
            if not 0 <= step.layer <= stop < self.n_layers:
                raise PlanError(
                    f"step at layer {step.layer} (span {step.span}) lies outside a model of "
                    f"{self.n_layers} layers"
                )
        order = [step.layer for step in self.steps if step.dense]
        if order != sorted(set(order)):
            raise PlanError(f"dense layers must rise and not repeat, got {order}")

    @classmethod
    def dense(cls, n_layers: int) -> Plan:
        """Every layer, as it is."""
        return cls(n_layers, tuple(Step(i) for i in range(n_layers)))

    @classmethod
    def drop(cls, n_layers: int, removed: Iterable[int]) -> Plan:
        """Leave out some layers.

        Raises:
            PlanError: If a layer is named twice or does not exist.
        """
        gone = list(removed)
        if len(set(gone)) != len(gone) or any(not 0 <= i < n_layers for i in gone):
            raise PlanError(
                f"layers to remove must be distinct and in [0, {n_layers}), got {sorted(gone)}"
            )
        return cls(n_layers, tuple(Step(i) for i in range(n_layers) if i not in set(gone)))

    @classmethod
    def replace(cls, n_layers: int, span: Span | Sequence[Span], kind: str) -> Plan:
        """Replace a span, or each of several that follow each other, by one module of a kind.

        Raises:
            PlanError: If a span is empty, does not fit, or does not begin where the one before
                ends.
        """
        spans = [span] if isinstance(span, Span) else list(span)
        for part in spans:
            if not len(part) or part.stop > n_layers:
                raise PlanError(f"cannot replace span {part} of a model of {n_layers} layers")
        if not spans or any(a.stop != b.start for a, b in zip(spans, spans[1:], strict=False)):
            raise PlanError(f"spans to replace must follow each other, got {spans}")
        steps = (
            *(Step(i) for i in range(spans[0].start)),
            *(Step(part.start, kind, part) for part in spans),
            *(Step(i) for i in range(spans[-1].stop, n_layers)),
        )
        return cls(n_layers, steps, kind)

    @property
    def kept_layers(self) -> list[int]:
        """Layers of the dense model that still run as they are."""
        return [step.layer for step in self.steps if step.dense]

    @property
    def removed_layers(self) -> list[int]:
        """Layers that no longer run as themselves: removed, or replaced by something else."""
        kept = set(self.kept_layers)
        partial = {s.layer for s in self.steps if not s.dense and s.span is None}
        return [i for i in range(self.n_layers) if i not in kept and i not in partial]

    @property
    def removals(self) -> list[str]:
        """What is removed, as the method ``given-layers`` reads it: ``21-29``, ``24.attention``.

        Raises:
            PlanError: If something runs in the place of what is gone, so that it is no removal.
        """
        partly = {f"no-{kind}": kind for kind in ("attention", "mlp")}
        items = []
        for step in self.steps:
            if not step.dense and (step.kind not in partly or step.span is not None):
                raise PlanError(
                    f"the plan runs {step.kind} at layer {step.layer}, which a list of removed "
                    "layers cannot say; run the method that made it"
                )
            if not step.dense:
                items.append(f"{step.layer}.{partly[step.kind]}")
        first = last = -1
        for layer in (*self.removed_layers, self.n_layers + 1):
            if layer != last + 1 and last >= 0:
                items.append(str(first) if first == last else f"{first}-{last}")
            first = first if layer == last + 1 and last >= 0 else layer
            last = layer
        return items

    @property
    def is_dense(self) -> bool:
        """Whether the plan changes nothing."""
        return len(self.kept_layers) == self.n_layers

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which :meth:`from_json` makes the same plan."""
        return {
            "n_layers": self.n_layers,
            "removed_layers": self.removed_layers,
            "kept_layers": self.kept_layers,
            "replacement": self.replacement,
            "steps": [
                {"layer": s.layer, "kind": s.kind}
                | ({"span": [s.span.start, s.span.stop]} if s.span else {})
                for s in self.steps
            ],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """Read what :meth:`to_json` wrote.

        Raises:
            PlanError: If a field is missing or does not fit.
        """
        try:
            steps = tuple(
                Step(s["layer"], s["kind"], Span(*s["span"]) if "span" in s else None)
                for s in data["steps"]
            )
            return cls(data["n_layers"], steps, data["replacement"])
        except (KeyError, TypeError) as error:
            raise PlanError(f"not a plan: {error!r} in {str(data)[:200]}") from error
