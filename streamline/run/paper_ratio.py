"""A paper's own pruning ratio from configs alone, set against ours and the printed one.

A paper may count other things over another total than :mod:`streamline.engine.budget` does. Its
rule is data in a suite's ``report`` block::

    report:
      ratio:
        counts: matrices                  # weight matrices only; or parameters: all, as here
        over: {opt-1.3b: 1300000000}      # the total it divides by; the exact one if not named
        open: {Llama2-7B: {"ShortGPT*": why its ratio is not reached}}

Example::

    found = paper_ratio(RatioRule(counts="matrices", over={"opt-1.3b": 1_300_000_000}),
                        "opt-1.3b", decoder, StreamlineV1MLP(), 5)
    round(100 * found.ratio, 1)         # 18.1, where 17.86 % of all parameters are gone
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError
from streamline.method import DepthMethod, Method
from streamline.methods.replacement import make, split_kind
from streamline.plan import Span
from streamline.report.published import PublishedRow, model_name, plain

__all__ = ["PaperRatio", "RatioRule", "paper_ratio", "printed_for", "ratio_rule"]

_CLOSE = 1.5  # points: how far a printed ratio may lie from the recomputed one to belong to it


class RatioRule(BaseModel):
    """How a paper counts.

    Attributes:
        counts: ``"matrices"``: parameters of two dimensions, so neither biases nor norms; or
            ``"parameters"``: all of them.
        over: Model -> the total it divides by; a model that is not named has its exact total.
        open: Printed model -> printed method -> why its ratio does not come out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    counts: Literal["matrices", "parameters"] = "parameters"
    over: dict[str, int] = {}
    open: dict[str, dict[str, str]] = {}


@dataclass(frozen=True)
class PaperRatio:
    """A ratio as a paper counts, with what makes it differ from ours.

    Attributes:
        removed: Parameters or weights that are removed, by the paper's count.
        added: Those that replace them.
        total: What the paper divides by.
        exact: All parameters of the dense model, which we divide by.
        gone: Parameters removed less those added, by our count.
    """

    removed: int
    added: int
    total: int
    exact: int
    gone: int

    @property
    def ratio(self) -> float:
        """Fraction that is removed, as the paper counts."""
        return (self.removed - self.added) / self.total

    @property
    def counted(self) -> float:
        """Fraction that is removed, as we count."""
        return self.gone / self.exact

    @property
    def by_counting(self) -> float:
        """What our counting biases and norms too adds to the paper's fraction."""
        return (self.gone - (self.removed - self.added)) / self.total

    @property
    def by_total(self) -> float:
        """What our dividing by the exact total adds then; with it the sum is :attr:`counted`."""
        return self.gone / self.exact - self.gone / self.total


def ratio_rule(report: Mapping[str, Any]) -> RatioRule | None:
    """The rule in a suite's ``report`` block, or None if it has none.

    Raises:
        ConfigError: If it is malformed.
    """
    if "ratio" not in report:
        return None
    try:
        return RatioRule.model_validate(report["ratio"])
    except ValidationError as error:
        raise ConfigError(
            f"report.ratio must have counts, over and open as streamline/run/paper_ratio.py "
            f"describes them: {error}"
        ) from error


def paper_ratio(
    rule: RatioRule, model: str, decoder: Decoder, method: Method, n_removed: int | None
) -> PaperRatio | None:
    """A method's ratio as a paper counts it.

    Args:
        rule: How the paper counts.
        model: The model's name in the run.
        decoder: The dense model; its weights may lie on the meta device.
        method: What is done to it.
        n_removed: Layers that go.

    Returns:
        The ratio, or None for a method that does not remove whole layers or puts something in
        their place whose shape only the method knows.
    """
    kind = getattr(method, "kind", None)
    if n_removed is None or not (isinstance(method, DepthMethod) or isinstance(kind, str)):
        return None
    layers = decoder.layers[:n_removed]  # all layers of these families are alike
    removed, everything = _count(layers, rule), _count(layers, RatioRule())
    added = added_all = 0
    if isinstance(kind, str) and n_removed:
        prefix, base = split_kind(kind)
        network = decoder.layers[0]
        if base != "layer":
            with torch.device("meta"):
                network = make(base, decoder, Span(0, 1))
        copies = n_removed if prefix == "multiple-" else 1
        added, added_all = (copies * _count([network], count) for count in (rule, RatioRule()))
    exact = decoder.n_parameters()
    return PaperRatio(
        removed=removed,
        added=added,
        total=rule.over.get(model, exact),
        exact=exact,
        gone=everything - added_all,
    )


def _count(modules: Iterable[nn.Module], rule: RatioRule) -> int:
    least = 2 if rule.counts == "matrices" else 0
    found = {id(p): p for module in modules for p in module.parameters() if p.dim() >= least}
    return sum(parameter.numel() for parameter in found.values())


def printed_for(
    layout: Mapping[str, Any],
    rows: Sequence[PublishedRow],
    model: str,
    method: str,
    ratio: float | None,
) -> PublishedRow | None:
    """The printed row that a cell belongs to: same model and method, nearest ratio.

    Args:
        layout: The suite's ``report.layout``.
        rows: Of the published table.
        model: The model's name in the run.
        method: The method's spec, with `` +lora`` after it if it was fine-tuned.
        ratio: Its ratio as the paper counts, or as given; None for the dense model.

    Returns:
        The row, or None if no printed one is near.
    """
    names: Mapping[str, str] = layout.get("methods") or {}
    near = [
        row
        for row in rows
        if row.ratio is not None
        and model_name(row.llm, layout) == plain(model)
        and plain(names.get(row.method, row.method)) == plain(method)
        and abs(row.ratio - 100 * (ratio or 0.0)) <= _CLOSE
    ]
    return min(near, key=lambda row: abs((row.ratio or 0.0) - 100 * (ratio or 0.0)), default=None)
