"""The language-model objective: the loss of a whole pruned model, training only replacements.

Layers before the first trained one run without gradients, once for all groups that share them;
those after it are frozen but let gradients through. The head's logits are made in chunks, so that a
large vocabulary does not decide the batch size.

Example::

    fit(decoder, [Student(span, module, Recipe(objective="lm"))], train, validation)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder, Entry
from streamline.engine.forward import Depths, attempt, run
from streamline.engine.head import summed_loss
from streamline.engine.paths import Node, Path
from streamline.training.activations import ActivationStore
from streamline.training.objectives import Consume, StudentGroup, as_dtype, mixed

__all__ = ["NextToken", "holds"]


@dataclass(frozen=True)
class NextToken:
    """Summed cross-entropy of the next token under each group's pruned model.

    ``parts`` run in the place of the modules with these ids, where each of several processes has a
    part of their weights.
    """

    decoder: Decoder
    autocast: torch.dtype | None
    parts: Mapping[int, nn.Module] | None = None

    def n_terms(self, length: int) -> int:
        """Every token but the first is predicted."""
        return length - 1

    def depths(self, groups: Sequence[StudentGroup]) -> set[int]:
        """None: prefixes are computed anew, so nothing is kept."""
        return set()

    def errors(
        self,
        ids: Tensor,
        indices: Tensor,
        groups: Sequence[StudentGroup],
        consume: Consume,
        store: ActivationStore | None,
    ) -> None:
        """Run the common prefixes once, then each group's own rest to the head."""
        splits = [self._split(group) for group in groups]
        prefixes = [Path(self.decoder, prefix) for prefix, _ in splits]
        with mixed(self.decoder.device, self.autocast):
            with torch.no_grad():
                entry = self.decoder.enter(ids)
            states = self._states(prefixes, Depths(ids, entry, for_training=True))
            for group, (_, rest), hidden in zip(groups, splits, states, strict=True):
                hidden = self._suffix(group, rest, hidden, entry)
                consume(group, summed_loss(self.decoder, hidden, ids), None)

    def _states(self, prefixes: Sequence[Path], job: Depths) -> Any:
        """Hidden states at the prefixes' ends; a batch of layers in parts is never split."""
        if self.parts is not None:
            return attempt(prefixes, job)
        ((_, states),) = run(prefixes, [job])
        return states

    def _split(self, group: StudentGroup) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        """The nodes before the first trained one, and the rest."""
        nodes = self._nodes(group)
        first = next(i for i, node in enumerate(nodes) if holds(node, group.modules))
        parts = self.parts or {}
        nodes = tuple(Node(parts.get(id(n.module), n.module), n.layer) for n in nodes)
        return nodes[:first], nodes[first:]

    def modules(self, groups: Sequence[StudentGroup]) -> list[nn.Module]:
        """What runs in some pruned models beside what is trained, in the order of the layers."""
        found: dict[int, Node] = {}
        beside: set[int] = set()  # parameters of modules that hold a trained one
        for group in groups:
            for node in self._nodes(group):
                if holds(node, group.modules):
                    beside |= {id(parameter) for parameter in node.module.parameters()}
                else:
                    found[id(node.module)] = node
        ordered = sorted(found.values(), key=lambda node: node.layer)
        return [
            node.module
            for node in ordered
            if not beside & {id(parameter) for parameter in node.module.parameters()}
        ]

    def _nodes(self, group: StudentGroup) -> tuple[Node, ...]:
        if group.path is not None:
            return group.path.nodes
        (span,), layers = group.spans, self.decoder.layers
        return (
            *(Node(layers[i], i) for i in range(span.start)),
            Node(group.modules[0], span.start),
            *(Node(layers[i], i) for i in range(span.stop, len(layers))),
        )

    def _suffix(
        self, group: StudentGroup, nodes: tuple[Node, ...], hidden: Tensor, entry: Entry
    ) -> Tensor:
        dtype = self.decoder.dtype
        for node in nodes:
            if holds(node, group.modules):
                call = as_dtype(entry, node.layer, torch.float32)
                hidden = self.decoder.run(node.module, hidden.float(), call, node.layer).to(dtype)
            else:
                hidden = self.decoder.run(node.module, hidden, entry, node.layer)
        return hidden


def holds(node: Node, modules: Iterable[nn.Module]) -> bool:
    """Whether one of some modules is a node's module or a part of it."""
    wanted = {id(module) for module in modules}
    return any(id(module) in wanted for module in node.module.modules())
