"""From a target sparsity to each method's own knob, by exact parameter count; weights for FLOPs.

``removed fraction = 1 - parameters(pruned) / parameters(dense)``: embeddings included, tied weights
once, whatever a replacement adds counted against what was removed.

Example:
    n = layers_to_remove(decoder, 0.25)                       # Llama-2-7B: 8, i.e. 24.03 %
    n = layers_to_remove(decoder, 0.25, added=lambda n: ffn)  # 9 when an FFN replaces them
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from streamline.engine.decoder import Decoder, submodule
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
