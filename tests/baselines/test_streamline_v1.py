from __future__ import annotations

import pytest
import torch
from transformers import OPTConfig

from streamline.baselines.streamline_v1 import (
    StreamlineV1Layer,
    StreamlineV1LayerShared,
    StreamlineV1MLP,
    StreamlineV1MLPShared,
    StreamlineV1MultipleMLP,
)
from streamline.calibration import measure
from streamline.engine.decoder import Decoder
from streamline.modeling.modeling_layers import Repeated
from streamline.plan import Span

TOKENS = torch.randint(0, 256, (4, 12), generator=torch.Generator().manual_seed(8))
ALL = (
    StreamlineV1Layer,
    StreamlineV1LayerShared,
    StreamlineV1MLP,
    StreamlineV1MLPShared,
    StreamlineV1MultipleMLP,
)


@pytest.fixture(scope="module")
def opt_2_7b() -> Decoder:
    """OPT-2.7B without weights."""
    return Decoder.from_config(
        OPTConfig(
            hidden_size=2560,
            word_embed_proj_dim=2560,
            ffn_dim=10240,
            num_hidden_layers=32,
            num_attention_heads=32,
            vocab_size=50272,
            max_position_embeddings=2048,
            do_layer_norm_before=True,
        )
    )


def test_counts_of_opt_2_7b_are_those_of_the_first_version(opt_2_7b):
    """6, 9 and 12 layers with one d-2d-d are the 16.8, 25.7 and 34.6 % of its Table 3."""
    dense = opt_2_7b.n_parameters()
    assert dense == 2_651_596_800
    layer, mlp = 12 * 2560**2 + 13 * 2560, 4 * 2560**2 + 3 * 2560
    for target, n, printed in ((0.168, 6, 16.8), (0.257, 9, 25.7), (0.346, 12, 34.6)):
        size = StreamlineV1MLP().size(opt_2_7b, target)
        assert size.n_removed == n
        assert size.pruned == dense - n * layer + mlp
        assert round(100 * size.removed_fraction, 1) == printed
        assert StreamlineV1MLPShared().size(opt_2_7b, target) == size


def test_other_networks_of_the_set_count_what_they_bring(opt_2_7b):
    dense = opt_2_7b.n_parameters()
    layer, mlp = 12 * 2560**2 + 13 * 2560, 4 * 2560**2 + 3 * 2560
    for method in (StreamlineV1Layer(), StreamlineV1LayerShared()):
        size = method.size(opt_2_7b, 0.25)
        assert size.pruned == dense - (size.n_removed - 1) * layer
    size = StreamlineV1MultipleMLP().size(opt_2_7b, 0.12)
    assert size.pruned == dense - size.n_removed * (layer - mlp)


@pytest.mark.parametrize("method", ALL)
def test_networks_replace_the_most_similar_span(method, tiny_opt):
    decoder = Decoder(tiny_opt(n_layers=8))
    calibration = measure(decoder, TOKENS)
    pruned = method().prune(decoder, calibration, 0.2, TOKENS, 0)
    removed = pruned.plan.removed_layers
    best = calibration.ranked_spans(len(removed))[0][0]
    assert removed == best.layers and len(removed) >= 2
    (module,) = pruned.modules.values()
    if "Shared" in method.__name__:
        assert isinstance(module, Repeated) and module.times == len(removed)
    assert pruned.n_parameters(decoder) == method().size(decoder, 0.2).pruned


def test_multiple_mlps_learn_one_layer_each(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=8))
    pruned = StreamlineV1MultipleMLP().prune(decoder, measure(decoder, TOKENS), 0.2, TOKENS, 0)
    removed = pruned.plan.removed_layers
    assert [student.span for student in pruned.students] == [Span(i, i + 1) for i in removed]
    assert len({id(student.module) for student in pruned.students}) == len(removed) >= 2
    (module,) = pruned.modules.values()
    assert [student.module for student in pruned.students] == list(module.parts)
