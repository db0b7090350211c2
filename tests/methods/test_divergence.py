from __future__ import annotations

import pytest
import torch
from torch.nn.functional import kl_div

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.errors import ConfigError, NotFiniteError
from streamline.method import Pruned
from streamline.methods.divergence import Divergences
from streamline.plan import Plan
from streamline.testing.models import tiny_model

TOKENS = torch.randint(0, 256, (5, 12), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_against_the_logits_of_whole_models(family):
    decoder = Decoder(tiny_model(family, n_layers=4))
    plans = [Plan.drop(4, [1]), Plan.drop(4, [2, 3])]
    paths = [Pruned(plan).path(decoder) for plan in plans]
    pieces = [TOKENS[:3], TOKENS[3:, :7]]
    found = Divergences(decoder, batch_tokens=20)(paths, pieces)
    for path, value in zip(paths, found, strict=True):
        total, n = 0.0, 0
        for tokens in pieces:
            with torch.no_grad():
                teacher = decoder.model(tokens).logits[:, :-1].double().log_softmax(-1)
                student = assemble(path)(tokens).logits[:, :-1].double().log_softmax(-1)
            total += float(kl_div(student, teacher, reduction="sum", log_target=True))
            n += teacher.shape[0] * teacher.shape[1]
        assert value == pytest.approx(total / n, rel=1e-4)


def test_the_dense_model_is_at_no_distance_from_itself(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=3))
    assert Divergences(decoder)([dense_path(decoder)], [TOKENS]) == [0.0]


def test_what_cannot_be_measured_is_said(tiny_llama):
    decoder = Decoder(tiny_llama(n_layers=3))
    path = Pruned(Plan.drop(3, [1])).path(decoder)
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        Divergences(decoder)([path], [TOKENS[:, :1]])
    with torch.no_grad():
        decoder.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="calibration sequence"):
        Divergences(decoder)([path], [TOKENS])
