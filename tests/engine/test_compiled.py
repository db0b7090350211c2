"""Compiled layers answer as plain ones do, from one graph for each kind of layer."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from torch._dynamo.utils import counters

from streamline.engine import forward
from streamline.engine.decoder import Decoder
from streamline.engine.kernels import CompiledLayers
from streamline.engine.paths import Node, Path, dense_path
from streamline.evaluation.scoring.score import Request, score
from streamline.methods.replacement import FFN
from streamline.testing.models import tiny_model


def test_compiled_layers_answer_alike_from_one_graph_a_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The eager backend runs the captured graphs without a compiler, which takes a minute.
    monkeypatch.setattr(forward, "CompiledLayers", partial(CompiledLayers, backend="eager"))
    decoder = Decoder(tiny_model("llama", n_layers=5))
    layers = decoder.layers
    pruned = Path(decoder, (Node(layers[0], 0), Node(FFN(32, 16), 1), Node(layers[4], 4)))
    paths = [dense_path(decoder), pruned]
    requests = [
        Request("t", i, j, (i, 7, i + j) * (1 + i % 5), (j, i)) for i in range(30) for j in range(2)
    ]
    wanted = score(paths, requests, batch_tokens=60)
    counters.clear()
    found = score(paths, requests, batch_tokens=60, compiled=True)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.loglikelihood, other.loglikelihood, rtol=1e-5, atol=2e-5)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert not any("forward" in layer.__dict__ for layer in layers)


def test_what_is_replaced_already_is_left_alone() -> None:
    decoder = Decoder(tiny_model("llama", n_layers=2))
    first, second = decoder.layers
    first.forward = kept = lambda hidden, **kwargs: hidden
    with CompiledLayers([first, second], backend="eager").active():
        assert first.__dict__["forward"] is kept
        assert "forward" in second.__dict__
    assert first.__dict__["forward"] is kept
    assert "forward" not in second.__dict__
