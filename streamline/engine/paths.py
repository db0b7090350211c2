"""The engine: many paths through one model's layers, walked at once as a trie.

A depth-pruned model is a path through the dense model's own layer modules, with some left out,
merged or replaced. The dense model and its variants share a prefix, so each shared module runs once
per batch, and memory is bounded by the number of branchings on one path, not by the number of
paths.

Example:
    trie = PathTrie([dense_path(decoder), *(pruned.path(decoder) for pruned in variants)])
    trie.walk(decoder.enter(input_ids), at_end=lambda i, hidden: store(i, decoder.leave(hidden)))
    trie.n_runs, trie.n_naive_runs      # layer evaluations per batch, with and without sharing
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from streamline.engine.decoder import Decoder, Entry, count_parameters


@dataclass(frozen=True)
class Node:
    """One module on a path.

    Attributes:
        module: A layer of the dense model, or a module called like one.
        layer: Original index of the layer whose mask and positions it is called with.
    """

    module: nn.Module
    layer: int

    @property
    def key(self) -> tuple[int, int]:
        """Two nodes with equal keys after equal prefixes compute the same."""
        return id(self.module), self.layer


@dataclass(frozen=True)
class Path:
    """A way from a model's embeddings to its head.

    Attributes:
        decoder: The model that is entered and left.
        nodes: The modules between, in order.
        name: A label for progress and errors.
    """

    decoder: Decoder
    nodes: tuple[Node, ...]
    name: str = ""

    def n_parameters(self) -> int:
        """Distinct parameters on the path, embeddings and head included, tied ones once."""
        shell = nn.ParameterList(self.decoder.shell_parameters())
        return count_parameters([shell, *(node.module for node in self.nodes)])


def dense_path(decoder: Decoder, name: str = "dense") -> Path:
    """The path of the unpruned model."""
    return Path(decoder, tuple(Node(m, i) for i, m in enumerate(decoder.layers)), name)


@dataclass
class Branch:
    """A trie node.

    Attributes:
        node: What runs here; None at the root.
        children: What follows, by :attr:`Node.key`.
        ends: Indices of the paths that end behind it.
    """

    node: Node | None
    children: dict[tuple[int, int], Branch] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)


class PathTrie:
    """Paths that enter the same model, merged where they share a prefix.

    Args:
        paths: At least one path; all with the same decoder.

    Raises:
        ValueError: If there is no path, or the decoders differ.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise ValueError("a trie needs at least one path")
        if any(path.decoder is not paths[0].decoder for path in paths):
            raise ValueError("paths of one trie must enter the same decoder")
        self.decoder = paths[0].decoder
        self.paths = tuple(paths)
        self.n_naive_runs = sum(len(path.nodes) for path in paths)
        self.n_runs = 0
        self.root = Branch(None)
        for index, path in enumerate(paths):
            branch = self.root
            for node in path.nodes:
                if node.key not in branch.children:
                    branch.children[node.key] = Branch(node)
                    self.n_runs += 1
                branch = branch.children[node.key]
            branch.ends.append(index)

    def walk(self, entry: Entry, at_end: Callable[[int, Tensor], None]) -> None:
        """Run every path on one batch.

        Args:
            entry: The batch, from the decoder's ``enter``.
            at_end: Called once per path with its index and its hidden states after the last
                module, [B, T, D]; the tensor may be shared between paths, so it must not be
                changed in place.
        """
        self._walk(self.root, entry.hidden, entry, at_end)

    def _walk(
        self, branch: Branch, hidden: Tensor, entry: Entry, at_end: Callable[[int, Tensor], None]
    ) -> None:
        while True:
            for index in branch.ends:
                at_end(index, hidden)
            children = list(branch.children.values())
            if not children:
                return
            for child in children[:-1]:
                self._walk(child, self._run(child, hidden, entry), entry, at_end)
            branch = children[-1]
            hidden = self._run(branch, hidden, entry)

    def _run(self, branch: Branch, hidden: Tensor, entry: Entry) -> Tensor:
        node = branch.node
        assert node is not None
        return self.decoder.run(node.module, hidden, entry, node.layer)
