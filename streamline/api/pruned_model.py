"""A pruned model as a user holds it: its plan, the model itself, and how it came about.

Example::

    short = sl.prune(model, tokenizer, "shortgpt", sparsity=0.25)
    short.plan.removed_layers, short.removed_fraction
    short.model.generate(**inputs)
    short.save("out/short")
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.api.variants import Dense, Variant
from streamline.checkpoints.checkpoint import save
from streamline.engine.assemble import assemble
from streamline.engine.budget import removed_fraction
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path as LayerPath
from streamline.environment import versions
from streamline.plan import Plan
from streamline.results.record import Record

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PrunedModel"]


@dataclass(frozen=True, kw_only=True, repr=False)
class PrunedModel:
    """What pruning made of a model.

    Attributes:
        dense: The model that it was made of; it is not changed, and its layers are shared.
        variant: What the stages handed over.
        provenance: How it was made; JSON.
        token: Distinguishes it from every other pruned model of this process.
    """

    dense: Dense
    variant: Variant
    provenance: dict[str, Any]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(
        cls, dense: Dense, variant: Variant, method: str, texts: dict[str, str], **known: Any
    ) -> PrunedModel:
        """What the stages handed over, with how it came about.

        Args:
            dense: The model that it was made of.
            variant: What the stages handed over.
            method: The method as it was given.
            texts: Content hashes of the token batches that were used.
            **known: What else is to stand in the provenance; JSON.
        """
        target = variant.target
        cell = {"model": dense.name, "method": method, "sparsity": target.sparsity}
        provenance = {
            "cell": {**cell, "seed": target.seed, "recovery": target.recovery},
            "method": repr(target.method),
            "paper": target.method.paper,
            "dense_parameters": dense.decoder.n_parameters(),
            "notes": variant.pruned.notes,
            "training": dict(variant.training),
            "versions": versions(dense.decoder.device),
            "model_sha256": dense.fingerprint,
            "model_commit": dense.commit,
            "texts": texts,
            **known,
        }
        return cls(dense=dense, variant=variant, provenance=provenance)

    @property
    def name(self) -> str:
        """The method as it was given."""
        return self.variant.target.name

    @property
    def plan(self) -> Plan:
        """Which layers stayed, went, or were replaced."""
        return self.variant.pruned.plan

    @property
    def notes(self) -> dict[str, Any]:
        """What the method reports of its decision; JSON."""
        return self.variant.pruned.notes

    @property
    def training(self) -> dict[str, dict[str, Any]]:
        """How each training went, by its name: tokens, seconds, losses before and after."""
        return dict(self.variant.training)

    @property
    def costs(self) -> dict[str, float]:
        """Seconds and tokens by stage."""
        return dict(self.variant.costs)

    @cached_property
    def n_parameters(self) -> int:
        """Parameters, embeddings and replacements included, tied ones once."""
        return self.path().n_parameters()

    @property
    def removed_fraction(self) -> float:
        """Fraction of the dense model's parameters that is gone."""
        return removed_fraction(self.dense.decoder.n_parameters(), self.n_parameters)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The pruned model as transformers knows it; its tensors are shared with the dense one."""
        made: PreTrainedModel = self.variant.pruned.model or assemble(self.path())
        made.eval()
        return made

    def path(self, decoder: Decoder | None = None, name: str = "") -> LayerPath:
        """Its path through the dense model's layers, or of its own model.

        Args:
            decoder: Another decoder of the same dense model, to be evaluated jointly with it.
            name: A label for progress.
        """
        return self.variant.pruned.path(decoder or self.dense.decoder, name or self.name)

    def save(
        self,
        folder: str | Path,
        *,
        verify: bool = True,
        record: Record | None = None,
        dense: Record | None = None,
    ) -> Path:
        """Write a checkpoint that appears whole or not at all.

        Args:
            folder: Must not exist or be empty; ``~`` is expanded.
            verify: Whether a fresh process reads the folder layer by layer on the CPU, before it
                appears, and compares it with the model in memory.
            record: What was measured of it, for its card.
            dense: What was measured of the dense model, likewise.

        Returns:
            The folder. ``AutoModelForCausalLM`` loads it; where layers were replaced, after
            :func:`streamline.register` or with ``trust_remote_code``.

        Raises:
            ConfigError: If the folder exists and is not empty.
            AssetError: If a fresh process finds another model than the one in memory.
        """
        return save(
            self.variant.pruned,
            self.dense.decoder,
            self.dense.tokenizer,
            folder,
            self.provenance,
            verify=verify,
            record=record,
            dense=dense,
        )

    def __repr__(self) -> str:
        """Method, layers and size in one line."""
        removed, n_layers = len(self.plan.removed_layers), self.plan.n_layers
        return (
            f"PrunedModel({self.name}: {removed} of {n_layers} layers removed, "
            f"{100 * self.removed_fraction:.1f} % of the parameters)"
        )
