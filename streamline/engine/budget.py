"""From a target sparsity to each method's own knob, by exact parameter count; FLOPs from shapes.

``removed fraction = 1 - parameters(pruned) / parameters(dense)``: embeddings included, tied weights
once, whatever a replacement adds counted against what was removed.

Example:
    n = layers_to_remove(decoder, 0.25)                       # Llama-2-7B: 8, i.e. 24.03 %
    n = layers_to_remove(decoder, 0.25, added=lambda n: ffn)  # 9 when an FFN replaces them
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from streamline.engine.decoder import Decoder, submodule
from streamline.engine.paths import Path, PathTrie, tries_of
from streamline.errors import ConfigError, UnsupportedModelError


def removed_fraction(dense: int, pruned: int) -> float:
    """Fraction of the dense model's parameters that is gone (negative if the model grew)."""
    return 1.0 - pruned / dense


def check_sparsity(sparsity: float) -> float:
    """Give a sparsity back if it can be a target.

    Raises:
        ConfigError: Unless ``0 <= sparsity < 1``.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ConfigError(f"sparsity must be at least 0 and below 1, got {sparsity}")
    return sparsity


def mean_layer_parameters(decoder: Decoder) -> float:
    """Parameters of one layer, averaged where layers differ."""
    return sum(map(decoder.layer_parameters, range(decoder.n_layers))) / decoder.n_layers


@dataclass(frozen=True)
class Size:
    """What a method would leave of a model, known from its config alone.

    Attributes:
        dense: Parameters of the dense model.
        pruned: Parameters that remain, replacements included.
        n_removed: Layers removed or replaced; None for methods that keep all.
    """

    dense: int
    pruned: int
    n_removed: int | None = None

    @classmethod
    def without(cls, decoder: Decoder, n_removed: int, added: int = 0) -> Size:
        """What is left without some layers of mean size, and with what a replacement adds.

        Args:
            decoder: The dense model; its weights may lie on the meta device.
            n_removed: Layers removed or replaced.
            added: Parameters that the replacement adds.
        """
        dense = decoder.n_parameters()
        gone = round(n_removed * mean_layer_parameters(decoder))
        return cls(dense, dense - gone + added, n_removed)

    @property
    def removed_fraction(self) -> float:
        """Fraction of the dense model's parameters that is gone."""
        return removed_fraction(self.dense, self.pruned)


def layers_to_remove(
    decoder: Decoder, sparsity: float, added: Callable[[int], int] | None = None
) -> int:
    """How many layers to remove to come nearest to a sparsity.

    Args:
        decoder: The dense model; its weights may lie on the meta device.
        sparsity: Target fraction of all parameters to remove, in [0, 1).
        added: Parameters that a method puts in place of ``n`` layers.

    Returns:
        The number of layers between 0 and L; the smaller one where two are equally near. 0 for
        sparsity 0, whatever a replacement would add.

    Raises:
        ConfigError: If the sparsity is outside [0, 1).
        UnsupportedModelError: If it lies above what taking out every layer reaches by more than
            half a layer.
    """
    if check_sparsity(sparsity) == 0.0:
        return 0
    dense = decoder.n_parameters()
    layer = mean_layer_parameters(decoder)

    def fraction(n: int) -> float:
        return (n * layer - (added(n) if added and n else 0)) / dense

    best = min(range(decoder.n_layers + 1), key=lambda n: (abs(fraction(n) - sparsity), n))
    highest = fraction(decoder.n_layers)
    if sparsity > highest + 0.5 * layer / dense:
        raise UnsupportedModelError(
            f"sparsity {sparsity} cannot be reached by removing layers of {decoder.name}: taking "
            f"out all {decoder.n_layers} removes {highest:.1%} of the parameters"
        )
    return best


def weights(decoder: Decoder, modules: Iterable[nn.Module]) -> int:
    """Weights of the matrices of some modules that a token meets, what is used twice twice.

    Of a mixture these are the chosen experts; attention's products with its context are no weights,
    as where models are compared by parameters.
    """
    return matrix_weights(decoder, (p for module in modules for p in module.parameters()))


def matrix_weights(decoder: Decoder, parameters: Iterable[nn.Parameter]) -> int:
    """Weights of the matrices among some parameters, of experts those that a token meets."""
    chosen = int(decoder.config.num_experts_per_tok) if decoder.family.mixture else 0
    return sum(
        p[0].numel() * chosen if chosen and p.dim() == 3 else p.numel()  # [experts, ...]
        for p in parameters
        if p.dim() >= 2
    )


def head_weights(decoder: Decoder) -> int:
    """Weights of the head's matrix."""
    return weights(decoder, [submodule(decoder.model, decoder.family.head)])


def path_weights(paths: Sequence[Path], head: bool) -> int:
    """Weights that a token meets along all of some paths, the head at the end of each if wanted."""
    tries = [trie for trie, _ in tries_of(paths)]
    found = sum(weights(trie.decoder, trie.runs()) for trie in tries)
    return found + head * sum(len(trie.paths) * head_weights(trie.decoder) for trie in tries)


@dataclass(frozen=True)
class Effort:
    """What a method takes beside the training of its networks.

    Attributes:
        calibrate: FLOPs of its calibration, which methods of equal calibration keys share.
        prune: FLOPs of its decision for one sparsity.
        algebra: FLOPs of the decompositions of matrices in it, in float64. Processors do them many
            times more slowly than products.
        passes: How often the whole model is read in deciding, where its layers are read one at a
            time; beside the one pass of the calibration.
    """

    calibrate: float = 0.0
    prune: float = 0.0
    algebra: float = 0.0
    passes: int = 0


def reading_flops(decoder: Decoder, tokens: int, *, head: bool = False) -> float:
    """One forward pass of the dense model.

    Args:
        decoder: The model.
        tokens: How many it reads.
        head: Whether all of their logits are wanted.
    """
    layers = weights(decoder, decoder.layers)
    return 2.0 * tokens * (layers + (head_weights(decoder) if head else 0))


def statistics_flops(decoder: Decoder, tokens: int) -> float:
    """:func:`streamline.calibration.measure`: one pass, and the cosines of all pairs of depths."""
    pairs = (decoder.n_layers + 1) ** 2
    return reading_flops(decoder, tokens) + 2.0 * tokens * pairs * decoder.hidden_size


def trials_flops(paths: Sequence[Path], tokens: int, *, heads: float | None = None) -> float:
    """The losses of some paths, their common prefixes once.

    Args:
        paths: Paths of one decoder.
        tokens: What each of them reads.
        heads: How often the whole head is run; None for once on each path.
    """
    decoder, known = paths[0].decoder, dict[int, int]()

    def of(module: nn.Module) -> int:
        if id(module) not in known:
            known[id(module)] = weights(decoder, [module])
        return known[id(module)]

    layers = sum(map(of, PathTrie(paths).runs()))
    head = head_weights(decoder) * (len(paths) if heads is None else heads)
    return 2.0 * tokens * (layers + head)


def round_flops(decoder: Decoder, tokens: int, *, left: float, tried: int, heads: float) -> float:
    """A round of a search that takes one piece after another away: each trial lacks one more.

    The trials lie all over the model, so that each runs half of what is left by itself.

    Args:
        decoder: The dense model.
        tokens: What each trial reads.
        left: Share of the layers' weights that is there after the round.
        tried: Trials.
        heads: How often the whole head is run.
    """
    layers, head = weights(decoder, decoder.layers), head_weights(decoder)
    return 2.0 * tokens * (layers * left * (1 + tried / 2) + heads * head)


def gradient_flops(decoder: Decoder, tokens: int) -> float:
    """The gradients of the layers' weights: forward, and back through layers and head."""
    layers, head = weights(decoder, decoder.layers), head_weights(decoder)
    return float(tokens) * (6 * layers + 4 * head)
