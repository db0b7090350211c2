"""A pruning method of your own in a dozen lines, run against ShortGPT on a tiny model.

A method is a frozen dataclass: its fields are its hyper-parameters, and ``select`` chooses the
layers from the statistics of one calibration pass. As a plugin of its own:
``streamline-bench new-method NAME``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import streamline as sl
from streamline.testing.models import tiny_model, tiny_tokenizer


@dataclass(frozen=True, kw_only=True)
class Spread(sl.DepthMethod):
    """Remove the least influential layers, but never two neighbours."""

    name: ClassVar[str] = "spread"
    paper: ClassVar[str] = "an example"

    keep_first: int = 1

    def select(self, calibration: sl.Calibration, n_remove: int) -> sl.Plan:
        influence = calibration.influence.tolist()
        removed: list[int] = []
        for layer in sorted(
            range(self.keep_first, calibration.n_layers), key=influence.__getitem__
        ):
            if len(removed) < n_remove and not {layer - 1, layer + 1} & set(removed):
                removed.append(layer)
        if len(removed) < n_remove:
            raise sl.PlanError(f"{n_remove} layers cannot be removed without two neighbours")
        return sl.Plan.drop(calibration.n_layers, removed)


# A tiny model with random weights and a text of its own: no download.
model, tokenizer = tiny_model("llama", n_layers=8), tiny_tokenizer()
Path("text.txt").write_text(
    "\n\n".join(f"line {i} of a text that says {i * i}" for i in range(500))
)

with sl.session(model, tokenizer, texts="text.txt", n_samples=8, length=64) as session:
    for method in (Spread(), "shortgpt"):
        pruned = session.prune(method, sparsity=0.3)
        print(pruned, "without layers", *pruned.plan.removed_layers)
