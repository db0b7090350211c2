"""The language-model objective: the loss of a whole pruned model, training only replacements.

Layers before the first trained one run without gradients, once for all pupils that share them (a
trie); those behind it are frozen but let gradients through. The head's logits are made in pieces,
so that a large vocabulary does not decide the batch size.

Example::

    fit(decoder, [Student(span, module, Recipe(objective="lm"))], train, validation)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from streamline.engine.decoder import Decoder, Entry
from streamline.engine.paths import Node, Path, PathTrie
from streamline.training.activations import Shelf
from streamline.training.objectives import Consume, Pupil, as_dtype, mixed

__all__ = ["NextToken", "holds", "next_token_loss"]

#: Rows of logits that are made at once.
HEAD_ROWS = 1024


@dataclass(frozen=True)
class NextToken:
    """Summed cross-entropy of the next token under each pupil's pruned model."""

    decoder: Decoder
    autocast: torch.dtype | None

    def n_terms(self, length: int) -> int:
        """Every token but the first is predicted."""
        return length - 1

    def depths(self, pupils: Sequence[Pupil]) -> set[int]:
        """None: prefixes are computed anew, so nothing is kept."""
        return set()

    def walk(
        self,
        ids: Tensor,
        indices: Tensor,
        pupils: Sequence[Pupil],
        consume: Consume,
        shelf: Shelf | None,
    ) -> None:
        """Run the common prefixes once, then each pupil's own way to the head."""
        training = torch.is_grad_enabled()
        ways = [self._split(pupil) for pupil in pupils]
        trie = PathTrie([Path(self.decoder, prefix) for prefix, _ in ways])

        def at_end(index: int, hidden: Tensor) -> None:
            with torch.set_grad_enabled(training):
                hidden = self._suffix(pupils[index], ways[index][1], hidden, entry)
                error = next_token_loss(self.decoder, hidden, ids)
                consume(pupils[index], error, None)

        with torch.no_grad(), mixed(self.decoder.device, self.autocast):
            entry = self.decoder.enter(ids)
            trie.walk(entry, at_end)

    def _split(self, pupil: Pupil) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        """The nodes before the first trained one, and the rest."""
        nodes = self._nodes(pupil)
        first = next(i for i, node in enumerate(nodes) if holds(node, pupil.modules))
        return nodes[:first], nodes[first:]

    def _nodes(self, pupil: Pupil) -> tuple[Node, ...]:
        if pupil.path is not None:
            return pupil.path.nodes
        (span,), layers = pupil.spans, self.decoder.layers
        return (
            *(Node(layers[i], i) for i in range(span.start)),
            Node(pupil.modules[0], span.start),
            *(Node(layers[i], i) for i in range(span.stop, len(layers))),
        )

    def _suffix(
        self, pupil: Pupil, nodes: tuple[Node, ...], hidden: Tensor, entry: Entry
    ) -> Tensor:
        dtype = self.decoder.dtype
        for node in nodes:
            if holds(node, pupil.modules):
                call = as_dtype(entry, node.layer, torch.float32)
                hidden = self.decoder.run(node.module, hidden.float(), call, node.layer).to(dtype)
            else:
                hidden = self.decoder.run(node.module, hidden, entry, node.layer)
        return hidden


def holds(node: Node, modules: Iterable[nn.Module]) -> bool:
    """Whether one of some modules is a node's module or a part of it."""
    wanted = {id(module) for module in modules}
    return any(id(module) in wanted for module in node.module.modules())


def next_token_loss(
    decoder: Decoder, hidden: Tensor, ids: Tensor, scored: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the next tokens, summed, float32.

    Args:
        decoder: Whose final norm and head are used.
        hidden: Hidden states after the last layer, [B, T, D].
        ids: The tokens, [B, T].
        scored: Which tokens count, [B, T], bool; the first of a row never does. None for all.
    """
    rows = hidden[:, :-1].flatten(0, 1)
    labels = ids[:, 1:].flatten().to(hidden.device)
    if scored is not None:
        chosen = scored[:, 1:].flatten().to(hidden.device)
        rows, labels = rows[chosen], labels[chosen]

    def piece(rows: Tensor, labels: Tensor) -> Tensor:
        logits = decoder.leave(rows).float()
        loss: Tensor = functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")
        return loss

    total: Tensor | None = None
    for part, target in zip(
        torch.split(rows, HEAD_ROWS), torch.split(labels, HEAD_ROWS), strict=True
    ):
        if torch.is_grad_enabled() and len(rows) > HEAD_ROWS:
            loss = checkpoint(piece, part, target, use_reentrant=False)
        else:
            loss = piece(part, target)
        total = loss if total is None else total + loss.to(total.device)
    assert total is not None
    return total
