"""Paths through a model's layers, and the trie that they share.

A depth-pruned model is a path through the dense model's own layer modules, with some left out,
merged or replaced. The dense model and its variants share a prefix, so each shared module runs once
per batch.

Example:
    trie = PathTrie([dense_path(decoder), *(pruned.path(decoder) for pruned in variants)])
    trie.forward(decoder.enter(ids), at_end=lambda i, hidden: store(i, decoder.leave(hidden)))
    trie.n_runs, trie.n_naive_runs      # layer evaluations per batch, with and without sharing
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from streamline.engine.decoder import Decoder, Entry, count_parameters, submodule

__all__ = ["Branch", "Node", "Path", "PathTrie", "dense_path", "prefix_paths", "tries_of"]

AtEnd = Callable[[int, Tensor], None]

#: Most tokens of the states that meet one layer in one batch, level by level.
_LEVEL_TOKENS = 1 << 17


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

    def without(self, position: int, name: str = "") -> Path:
        """The path without one of its nodes.

        Args:
            position: Which, from 0; not its layer's index where layers are gone already.
            name: As for every path.
        """
        return Path(self.decoder, (*self.nodes[:position], *self.nodes[position + 1 :]), name)

    def n_parameters(self) -> int:
        """Distinct parameters on the path, embeddings and head included, tied ones once."""
        shell = nn.ParameterList(self.decoder.shell_parameters())
        return count_parameters([shell, *(node.module for node in self.nodes)])


def dense_path(decoder: Decoder, name: str = "dense") -> Path:
    """The path of the unpruned model."""
    return Path(decoder, tuple(Node(m, i) for i, m in enumerate(decoder.layers)), name)


def prefix_paths(decoder: Decoder, depths: Collection[int]) -> list[Path]:
    """The dense path cut at some depths: what gives the hidden states there, in one pass.

    Args:
        decoder: The dense model.
        depths: 0 is the input of layer 0, i the raw output of layer i - 1: never after the final
            norm, unlike the last entry of ``output_hidden_states``.

    Returns:
        One path for each depth, in rising order.
    """
    nodes = dense_path(decoder).nodes
    return [Path(decoder, nodes[:depth], f"depth {depth}") for depth in sorted(depths)]


@dataclass
class Branch:
    """A trie node.

    Attributes:
        node: What runs here; None at the root.
        children: What follows, by :attr:`Node.key`.
        ends: Indices of the paths that end here.
    """

    node: Node | None
    children: dict[tuple[int, int], Branch] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)


class PathTrie:
    """Paths that enter the same model, merged where they share a prefix.

    Args:
        paths: At least one path; all with the same decoder.

    Attributes:
        decoder: The model that all paths enter.
        paths: The paths.
        root: The branch before the first layer.
        n_runs: Layer evaluations for one batch.
        n_naive_runs: The same if every path ran by itself.

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

    def runs(self) -> Iterator[nn.Module]:
        """The module of every layer evaluation of one batch."""
        waiting = [self.root]
        while waiting:
            branch = waiting.pop()
            waiting += branch.children.values()
            if branch.node is not None:
                yield branch.node.module

    def modules(self, *, head: bool = True) -> list[nn.Module]:
        """Every distinct module of the paths, the head first if it is wanted."""
        found = [submodule(self.decoder.model, self.decoder.family.head)] if head else []
        found += [node.module for path in self.paths for node in path.nodes]
        return list({id(module): module for module in found}.values())

    def forward(self, entry: Entry, at_end: AtEnd) -> None:
        """Run every path on one batch.

        On a CPU depth first, so that memory is bounded by the number of branchings on one path; on
        an accelerator level by level, so that the number of kernel launches is bounded by the
        number of layers, not by that of paths. The results are the same up to rounding.

        Args:
            entry: The batch, from the decoder's ``enter``.
            at_end: Called once per path with its index and its hidden states after the last
                module, [B, T, D]; the tensor may be shared between paths, so it must not be
                changed in place.
        """
        if self.decoder.device.type == "cpu":
            self.depth_first(entry, at_end)
        else:
            self.level_by_level(entry, at_end)

    def depth_first(self, entry: Entry, at_end: AtEnd) -> None:
        """:meth:`forward`, one branch to its end before the next."""
        todo = [(self.root, entry.hidden)]
        while todo:
            branch, hidden = todo.pop()
            if branch.node is not None:
                node = branch.node
                hidden = self.decoder.run(node.module, hidden, entry, node.layer)
            for index in branch.ends:
                at_end(index, hidden)
            todo += [(child, hidden) for child in reversed(branch.children.values())]

    def level_by_level(self, entry: Entry, at_end: AtEnd, most_tokens: int = _LEVEL_TOKENS) -> None:
        """:meth:`forward`, the states of all paths that meet the same layer in one batch.

        Args:
            entry: As for :meth:`forward`.
            at_end: As for :meth:`forward`; the order of the paths is not that of their indices.
            most_tokens: Most tokens of such a batch; the states of one path are never cut.
        """
        waiting: dict[tuple[int, int], list[tuple[Branch, Tensor]]] = {}

        def settle(branch: Branch, hidden: Tensor) -> None:
            for index in branch.ends:
                at_end(index, hidden)
            for key, child in branch.children.items():
                waiting.setdefault(key, []).append((child, hidden))

        together = max(1, most_tokens // max(1, entry.hidden[..., 0].numel()))
        settle(self.root, entry.hidden)
        while waiting:
            key = min(waiting, key=lambda key: key[1])  # the first of the shallowest layer
            for branches, states in _in_parts(waiting.pop(key), together):
                node = branches[0].node
                assert node is not None
                outputs = self.decoder.run_together(node.module, states, entry, node.layer)
                for branch, output in zip(branches, outputs, strict=True):
                    settle(branch, output)


def _in_parts(
    items: list[tuple[Branch, Tensor]], size: int
) -> Iterator[tuple[list[Branch], list[Tensor]]]:
    """Branches and their states, at most some at once; what was given out is let go."""
    while items:
        part, items = items[:size], items[size:]
        branches, states = [branch for branch, _ in part], [hidden for _, hidden in part]
        del part
        yield branches, states


def tries_of(paths: Sequence[Path]) -> list[tuple[PathTrie, list[int]]]:
    """Paths grouped by decoder: each group's trie, and the indices of its paths."""
    groups: dict[int, list[int]] = {}
    for index, path in enumerate(paths):
        groups.setdefault(id(path.decoder), []).append(index)
    return [(PathTrie([paths[i] for i in members]), members) for members in groups.values()]
