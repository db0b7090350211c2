from __future__ import annotations

from streamline.engine.decoder import Decoder
from streamline.methods.halves import Halves, Unit


def test_a_layer_without_both_halves_is_gone(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=4))
    gone: list[Unit] = [(1, "mlp"), (2, "attention"), (1, "attention")]
    pruned = Halves(decoder).pruned(gone, {})
    assert [(s.layer, s.kind) for s in pruned.plan.steps] == [
        (0, "layer"),
        (2, "no-attention"),
        (3, "layer"),
    ]
    assert pruned.plan.removed_layers == [1]
    assert pruned.plan.kept_layers == [0, 3]
    layer = decoder.layers[0]
    attention = sum(p.numel() for p in layer.self_attn.parameters()) + 32
    assert Halves(decoder).n_removed(gone) == decoder.layer_parameters(0) + attention


def test_one_module_per_half_so_that_paths_share_it(tiny_opt):
    halves = Halves(Decoder(tiny_opt(n_layers=3)))
    assert halves.left((1, "mlp")) is halves.left((1, "mlp"))
    assert halves.left((1, "mlp")) is not halves.left((1, "attention"))
    first, second = (halves.path([(1, "mlp"), extra]) for extra in ((2, "mlp"), (0, "mlp")))
    assert first.nodes[1].key == second.nodes[1].key


def test_a_unit_is_taken_only_if_it_brings_the_count_nearer(tiny_llama):
    halves = Halves(Decoder(tiny_llama(n_layers=3)))
    size = halves.n_removed([(0, "mlp")])
    assert halves.nearer([], (0, "mlp"), size)
    assert halves.nearer([], (0, "mlp"), 0.51 * size)
    assert not halves.nearer([], (0, "mlp"), 0.5 * size)
    assert not halves.nearer([(1, "mlp")], (0, "mlp"), size)
