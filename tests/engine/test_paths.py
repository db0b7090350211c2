"""The trie gives what each path alone gives, and runs no shared layer twice."""

from __future__ import annotations

import weakref

import pytest
import torch
from families import THREE
from torch import Tensor, nn

from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, Path, PathTrie, dense_path
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.plan import Plan, Span
from streamline.testing.models import tiny_model


def ids() -> Tensor:
    """Random tokens, [2, 8]."""
    return torch.randint(0, 250, (2, 8), generator=torch.Generator().manual_seed(1))


def variants(decoder: Decoder) -> list[Path]:
    """The dense path, two with layers dropped, one with a replacement, and one equal to another."""
    n = decoder.n_layers
    span = Span(2, 4)
    ffn = make("ffn", decoder, span)
    plans = [Plan.drop(n, [1]), Plan.drop(n, [2, 3]), Plan.drop(n, [2, 3])]
    paths = [Pruned(plan).path(decoder) for plan in plans]
    replaced = Pruned(Plan.replace(n, span, "ffn"), {2: ffn}).path(decoder)
    return [dense_path(decoder), *paths, replaced]


@pytest.mark.parametrize("order", ["depth_first", "level_by_level"])
@pytest.mark.parametrize("family", THREE)
@torch.no_grad()
def test_trie_equals_each_path_alone(family: str, order: str) -> None:
    decoder = Decoder(tiny_model(family))
    paths = variants(decoder)
    entry = decoder.enter(ids())
    found: dict[int, Tensor] = {}
    trie = PathTrie(paths)
    getattr(trie, order)(entry, lambda index, hidden: found.update({index: hidden}))
    for index, path in enumerate(paths):
        hidden = entry.hidden
        for node in path.nodes:
            hidden = decoder.run(node.module, hidden, entry, node.layer)
        torch.testing.assert_close(found[index], hidden)
    assert sorted(found) == list(range(len(paths)))
    assert not torch.allclose(found[0], found[1])


def test_shared_layers_run_once(tiny_llama) -> None:  # type: ignore[no-untyped-def]
    decoder = Decoder(tiny_llama())
    trie = PathTrie(variants(decoder))
    entry = decoder.enter(ids())
    counts = [0] * decoder.n_layers
    hooks = [
        layer.register_forward_hook(
            lambda *_, i=i: counts.__setitem__(i, counts[i] + 1)  # type: ignore[misc]
        )
        for i, layer in enumerate(decoder.layers)
    ]
    with torch.no_grad():
        trie.forward(entry, lambda index, hidden: None)
    for hook in hooks:
        hook.remove()
    # 6 dense; 4 after [0] without 1; 2 after [0, 1] without 2, 3; the FFN and 2 behind it
    assert trie.n_runs == 6 + 4 + 2 + 3
    assert sum(counts) == trie.n_runs - 1
    assert counts[0] == 1
    assert trie.n_naive_runs == 6 + 5 + 4 + 4 + 5


@torch.no_grad()
def test_level_by_level_each_layer_meets_all_states_at_once(tiny_llama) -> None:  # type: ignore[no-untyped-def]
    decoder = Decoder(tiny_llama())
    trie, entry = PathTrie(variants(decoder)), decoder.enter(ids())
    rows = [0] * decoder.n_layers
    counts = [0] * decoder.n_layers

    def count(i: int, output: Tensor) -> None:
        counts[i] += 1
        rows[i] += len(output)

    hooks = [
        layer.register_forward_hook(lambda _m, _a, output, i=i: count(i, output))  # type: ignore[misc]
        for i, layer in enumerate(decoder.layers)
    ]
    trie.level_by_level(entry, lambda index, hidden: None)
    assert counts == [1] * 6
    assert rows == [2, 2, 4, 4, 8, 8]
    trie.level_by_level(entry, lambda index, hidden: None, most_tokens=1)
    for hook in hooks:
        hook.remove()
    assert counts == [2, 2, 3, 3, 5, 5], "the states of one path are never cut"


def test_memory_is_bounded_by_the_branchings(tiny_llama) -> None:  # type: ignore[no-untyped-def]
    decoder = Decoder(tiny_llama(n_layers=8))
    layers = decoder.layers
    paths = [
        Path(decoder, tuple(Node(m, i) for i, m in enumerate(layers) if i != gone))
        for gone in range(8)
    ]
    entry = decoder.enter(ids())
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def count(module: nn.Module, args: object, output: Tensor) -> None:
        nonlocal most
        alive.append(weakref.ref(output))
        most = max(most, sum(ref() is not None for ref in alive))

    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        PathTrie(paths[::-1]).forward(entry, lambda index, hidden: None)
        deep, alive, most = most, [], 0
        PathTrie(paths).forward(entry, lambda index, hidden: None)
    for hook in hooks:
        hook.remove()
    # a hidden state per open branching, the one that is read and the one that is written
    assert deep <= 8 + 1
    assert most <= 8 + 1
    assert len(alive) > 30


@torch.no_grad()
def test_sparsity_zero_is_the_model_itself(tiny_opt) -> None:  # type: ignore[no-untyped-def]
    model = tiny_opt()
    decoder = Decoder(model)
    path = Pruned(Plan.dense(6)).path(decoder)
    logits = []
    PathTrie([path]).forward(
        decoder.enter(ids()), lambda index, hidden: logits.append(decoder.leave(hidden))
    )
    torch.testing.assert_close(logits[0], model(ids()).logits, rtol=0, atol=1e-5)
    assert path.n_parameters() == decoder.n_parameters()


def test_parameters_of_a_path_count_once(tiny_llama) -> None:  # type: ignore[no-untyped-def]
    decoder = Decoder(tiny_llama(tied=True))
    twice = Path(decoder, (Node(decoder.layers[0], 0), Node(decoder.layers[0], 1)))
    shell = sum(p.numel() for p in decoder.shell_parameters())
    assert twice.n_parameters() == shell + decoder.layer_parameters(0)


def test_a_trie_needs_paths_of_one_decoder(tiny_llama) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="at least one path"):
        PathTrie([])
    paths = [dense_path(Decoder(tiny_llama(n_layers=1))) for _ in range(2)]
    with pytest.raises(ValueError, match="same decoder"):
        PathTrie(paths)
